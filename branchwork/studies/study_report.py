"""The answer of a study as one HTML file that opens anywhere, offline, in the reader's language."""

import shlex
from collections.abc import Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from branchwork.datasets.dataset import DataSet
from branchwork.language import say, times
from branchwork.pages import facts, footer, page, paragraph, plot, section, table
from branchwork.studies.design import Answer, Finding, Setting, Study, Table
from branchwork.studies.records import Records, measure_name
from branchwork.studies.statistics import Comparison
from branchwork.studies.trainings import shrinking
from branchwork.studies.wording import difference_words, mean_words, p_words, verdict_name

if TYPE_CHECKING:
    from branchwork.studies.study import StudyResult


def study_page(
    study: Study, result: "StudyResult", setting: Setting, data: DataSet, records: Records, answer: Answer
) -> str:
    tables = [_nets(study, records), *answer.tables]
    if answer.comparisons:
        tables.append(_comparisons(answer.comparisons))
    parts = [
        paragraph(study.claim()),
        section(say("The answer", "回答"), _asked(result), "\n".join(map(_finding, answer.findings))),
        *(section(picture.title, picture.words, plot(picture.draw())) for picture in answer.pictures),
        *(section(shown.title, shown.words, table(shown.head, shown.rows)) for shown in tables),
        f"<h2>{say('How it was run', '如何得到')}</h2>",
        f"<p><code>{escape(command(result, data, records))}</code></p>",
        facts(_how(result, setting, data, records)),
        footer(
            say(
                "Made by Branchwork. The figures are also in answer.json, those of each training in trainings/.",
                "由 Branchwork 生成。数据也在 answer.json 中，每次训练的记录在 trainings/ 中。",
            )
        ),
    ]
    return page(study.question(), parts, say("en", "zh-Hans"))


def command(result: "StudyResult", data: DataSet, records: Records) -> str:
    """What runs this study again, anywhere."""
    job = records.any_of(records.arms[0].label)["job"]
    flags = {
        "preset": result.preset,
        "data": data.path or data.name,
        "seeds": len(result.seeds),
        "seed": result.seeds[0],
        "threads": job["threads"],
        "device": job["device"],
    }
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    return shlex.join(["branchwork", "study", result.study, *words])


def _asked(result: "StudyResult") -> str:
    seeds = len(result.seeds)
    sure = (
        say(
            f"Each net was trained with {seeds} seeds; intervals are 95% (Student's t over the seeds), pairs are "
            "compared seed by seed (paired t-test, Holm's correction).",
            f"每个网络用 {seeds} 个种子训练；区间为 95%（学生 t 区间），"
            "两两比较按相同种子配对（配对 t 检验，Holm 校正）。",
        )
        if seeds > 1
        else say(
            "Each net was trained with one seed, which gives no interval and decides nothing: take --seeds 3 or more.",
            "每个网络只用一个种子训练，得不出区间，也不能下结论：请用 --seeds 3 或更多。",
        )
    )
    return say(
        f"{result.trainings} trainings on {result.data}. {sure}",
        f"在 {result.data} 上共训练 {result.trainings} 次。{sure}",
    )


def _finding(finding: Finding) -> str:
    kind = {"yes": "yes", "no": "no", "too close to call": "open"}[finding.verdict]
    return (
        f'<div class="finding"><b class="{kind}">{verdict_name(finding.verdict)}</b>'
        f"<div><h3>{escape(finding.question)}</h3><p>{escape(finding.words)}</p></div></div>"
    )


def _nets(study: Study, records: Records) -> Table:
    head = (say("net", "网络"), *map(measure_name, (*study.measures, "macs", "parameters")))
    rows = []
    for arm in records.arms:
        means = [mean_words(measure, records.mean(arm.label, measure)) for measure in study.measures]
        record = records.any_of(arm.label)
        lost = records.diverged(arm.label)
        label = arm.label + (say(f" ({lost} diverged)", f"（{lost} 次发散）") if lost else "")
        rows.append((label, *means, f"{record['macs']:,}", f"{record['parameters']:,}"))
    return Table(
        say("Every net", "每个网络"),
        say(
            "Means over the seeds, with 95% intervals. Training errors are those of the finished net on its training "
            "images, unchanged. Trainings that diverged are left out.",
            "对种子的均值和 95% 区间。训练误差是训练完的网络在未增强的训练图上的误差。发散的训练不计入。",
        ),
        head,
        tuple(rows),
    )


def _comparisons(comparisons: Sequence[Comparison]) -> Table:
    rows = []
    for c in comparisons:
        interval = "–"
        if c.low is not None and c.high is not None:
            interval = f"{difference_words(c.measure, c.low)} – {difference_words(c.measure, c.high)}"
        rows.append(
            (
                f"{c.first} − {c.second}",
                measure_name(c.measure),
                str(c.count),
                difference_words(c.measure, c.difference),
                interval,
                "–" if c.p is None else p_words(c.p),
                "–" if c.adjusted is None else p_words(c.adjusted),
            )
        )
    return Table(
        say("Compared on the same seeds", "相同种子下的比较"),
        say(
            "Paired t-tests; differences of errors in points, of times in seconds.",
            "配对 t 检验；误差之差以百分点计，时间之差以秒计。",
        ),
        (
            say("pair", "比较"),
            say("measure", "指标"),
            say("seeds", "种子数"),
            say("difference", "差"),
            "95%",
            "p",
            say("p after Holm", "Holm 校正后 p"),
        ),
        tuple(rows),
    )


def _changed(records: Records) -> dict[str, list[str]]:
    """What recipes have otherwise than the others', in words, with the nets that have it."""
    found: dict[str, list[str]] = {}
    for arm in records.arms:
        if arm.changes:
            words = ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in arm.changes.items())
            found.setdefault(words, []).append(arm.label)
    return found


def _how(result: "StudyResult", setting: Setting, data: DataSet, records: Records) -> dict[str, Any]:
    factor = shrinking(data.image_size, setting.side)
    height, width = (side // factor for side in data.image_size)
    recipe = setting.recipe
    counts = {record["train_images"] for record in records.found.values() if "train_images" in record}
    images = [f"{count:,}" for count in sorted(counts)]  # none where all trainings diverged
    versions = ["; ".join(f"{name} {version}" for name, version in kind.items()) for kind in result.versions]
    return {
        say("data", "数据"): f"{data.name}, {data.origin}",
        say("training images", "训练图"): ", ".join([*images, times((data.channels, height, width))]),
        say("test images", "测试图"): f"{len(data.test):,}",
        say("recipe", "训练方法"): (
            f"{recipe.epochs} epochs, batch {recipe.batch_size}, {recipe.optimizer} {recipe.learning_rate:g}, "
            f"momentum {recipe.momentum:g}, weight decay {recipe.weight_decay:g}, {recipe.schedule}, "
            f"clip {recipe.clip:g}, shift {recipe.shift:g}, flip {recipe.flip:g}, {recipe.precision}, {setting.execute}"
            + "".join(f"; {', '.join(labels)}: {words}" for words, labels in _changed(records).items())
        ),
        say("seeds", "种子"): ", ".join(map(str, result.seeds)),
        say("time of all trainings", "全部训练用时"): say(
            f"{result.seconds / 60:.1f} minutes, added up", f"合计 {result.seconds / 60:.1f} 分钟"
        ),
        say("machines", "机器"): "; ".join(result.machines),
        say("versions", "版本"): " | ".join(versions),
    }
