"""The report of a study: one HTML file that opens anywhere, offline, in the reader's language."""

from collections.abc import Sequence
from html import escape
from typing import Any

from branchwork.datasets.dataset import DataSet
from branchwork.files import typed
from branchwork.language import say, sentences, times
from branchwork.pages import facts, footer, page, paragraph, plot, section, table
from branchwork.studies.design import Answer, Conclusion, Records, Setting, Study, StudyResult, Table, verdict_name
from branchwork.studies.trainings import shrinking
from branchwork.training.statistics import PairedDifference, difference_words, mean_words, measure_name, p_words

# The fields of the recipe that a user may change.
CHANGEABLE = ("epochs", "precision")


def study_page(
    study: Study, result: StudyResult, *, setting: Setting, data: DataSet, records: Records, answer: Answer
) -> str:
    """Return the report of a study as HTML."""
    tables = [_nets(study, records), *answer.tables]
    if answer.comparisons:
        tables.append(_comparisons(answer.comparisons))
    parts = [
        paragraph(say(study.claim)),
        section(say("The answer"), _method(result), "\n".join(map(_conclusion, answer.findings))),
        *(section(drawn.title, drawn.words, plot(drawn.draw())) for drawn in answer.plots),
        *(section(shown.title, shown.words, table(shown.head, shown.rows)) for shown in tables),
        f"<h2>{say('How it was run')}</h2>",
        f"<p><code>{escape(_command(study, result, setting, data=data, records=records))}</code></p>",
        facts(_facts(result, setting, data=data, records=records)),
        footer(
            say("Made by Branchwork. The figures are also in answer.json, and those of each training in trainings/.")
        ),
    ]
    return page(say(study.question), parts)


def _command(study: Study, result: StudyResult, setting: Setting, *, data: DataSet, records: Records) -> str:
    """Return the command that runs this study again, anywhere."""
    job = records.first(records.arms[0].label).job
    flags: dict[str, object] = {
        "preset": result.preset,
        "data": data.path or data.name,
        "seeds": len(result.seeds),
        "seed": result.seeds[0],
        "threads": job.threads,
        "device": job.device,
    }
    if len(records.arms) < len(study.arms(result.preset)):
        flags["arms"] = ",".join(arm.label for arm in records.arms)
    usual = study.setting(result.preset, len(data.train)).recipe
    changed = {name: getattr(setting.recipe, name) for name in CHANGEABLE}
    flags |= {name: value for name, value in changed.items() if value != getattr(usual, name)}
    words = [str(word) for name, value in flags.items() for word in (f"--{name}", value)]
    return " ".join(map(typed, ("branchwork", "study", result.study, *words)))


def _method(result: StudyResult) -> str:
    seeds = len(result.seeds)
    count = say("{trainings} trainings on {data}.", trainings=result.trainings, data=result.data)
    method = say(
        "Each net was trained with one seed, which gives no interval and settles nothing: use --seeds 3 or more."
        if seeds == 1
        else "Each net was trained with {seeds} seeds. Intervals are 95% (Student's t over the seeds, on a scale "
        "without impossible values); pairs are compared seed by seed (paired t-test; p values and intervals after "
        "Holm's correction).",
        seeds=seeds,
    )
    return sentences((count, method))


def _conclusion(conclusion: Conclusion) -> str:
    style = {"yes": "yes", "no": "no", "too close to call": "open"}[conclusion.verdict]
    return (
        f'<div class="finding"><b class="{style}">{verdict_name(conclusion.verdict)}</b>'
        f"<div><h3>{escape(conclusion.question)}</h3><p>{escape(conclusion.words)}</p></div></div>"
    )


def _nets(study: Study, records: Records) -> Table:
    rows = []
    for arm in records.arms:
        means = [mean_words(measure, records.mean(arm.label, measure)) for measure in study.measures]
        record, diverged = records.first(arm.label), records.diverged(arm.label)
        label = say(arm.label)
        if diverged:
            label = say("{label} ({diverged} diverged)", label=label, diverged=diverged)
        rows.append((label, *means, f"{record.macs:,}", f"{record.parameters:,}"))
    return Table(
        say("All nets"),
        say(
            "Means over the seeds, with 95% intervals. Training errors are those of the finished net on its training "
            "images, without augmentation. Trainings that diverged are left out."
        ),
        (say("net"), *map(measure_name, (*study.measures, "macs", "parameters"))),
        tuple(rows),
    )


def _comparisons(differences: Sequence[PairedDifference]) -> Table:
    rows = []
    for d in differences:
        interval = "–"
        if d.low is not None and d.high is not None:
            interval = f"{difference_words(d.measure, d.low)} – {difference_words(d.measure, d.high)}"
        tests = ["–" if p is None else p_words(p) for p in (d.p, d.adjusted)]
        change = difference_words(d.measure, d.difference)
        rows.append(
            (f"{say(d.first)} − {say(d.second)}", measure_name(d.measure), str(d.count), change, interval, *tests)
        )
    return Table(
        say("Compared on the same seeds"),
        say("Paired t-tests; differences of errors are in points, of times in seconds."),
        (
            say("pair"),
            say("measure"),
            say("seeds"),
            say("difference"),
            say("95%, after Holm"),
            "p",
            say("p after Holm"),
        ),
        tuple(rows),
    )


def _facts(result: StudyResult, setting: Setting, *, data: DataSet, records: Records) -> dict[str, Any]:
    factor = shrinking(data.image_size, setting.side)
    height, width = (side // factor for side in data.image_size)
    # No counts are known if all trainings diverged.
    counts = {record.train_images for record in records.by_training.values() if record.train_images is not None}
    images = [f"{count:,}" for count in sorted(counts)]
    minutes = result.seconds / 60
    return {
        say("data"): f"{data.name}, {data.origin}",
        say("training images"): ", ".join([*images, times((data.channels, height, width))]),
        say("test images"): f"{len(data.test):,}",
        say("recipe"): _recipe_words(setting, records),
        say("seeds"): ", ".join(map(str, result.seeds)),
        say("total training time"): say("{minutes:.1f} minutes", minutes=minutes),
        say("machines"): "; ".join(result.machines),
        say("versions"): " | ".join(
            "; ".join(f"{name} {version}" for name, version in versions.items()) for versions in result.versions
        ),
    }


def _recipe_words(setting: Setting, records: Records) -> str:
    """Return the recipe, and the fields in which the recipes of some nets differ from it."""
    recipe = setting.recipe
    changed: dict[str, list[str]] = {}
    for arm in records.arms:
        if arm.changes:
            changes = ", ".join(f"{key} {value}" for key, value in arm.changes.items())
            changed.setdefault(changes, []).append(say(arm.label))
    names = (
        "epochs", "batch_size", "optimizer", "learning_rate", "momentum", "weight_decay", "schedule", "warmup",
        "clip", "pad", "flip", "precision",
    )  # fmt: skip
    fields = ", ".join([*(f"{name} {getattr(recipe, name)}" for name in names), f"execute {setting.execute}"])
    return "; ".join([fields, *(f"{', '.join(labels)}: {changes}" for changes, labels in changed.items())])
