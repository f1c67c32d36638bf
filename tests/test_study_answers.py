"""The answers of the studies on made-up records: each must be able to say yes, no, and too close to call."""

import re
from dataclasses import asdict, replace
from html import unescape

import pytest
from helpers.reference import torch_macs

from branchwork.catalogue.googlenet import _inception
from branchwork.datasets.load import load_data
from branchwork.language import say
from branchwork.studies import bottleneck, branches, depth, shortcuts
from branchwork.studies.design import ArmResult, Records, StudyResult
from branchwork.studies.records import GradientNorms, Job, Record
from branchwork.studies.study_report import study_page
from branchwork.training.statistics import mean_words

SEEDS = (0, 1, 2, 3)
NOISE = (0.001, -0.0015, 0.0005, 0.0002)
VERSIONS = {"branchwork": "0.1.0", "python": "3.11.1", "torch": "2.13.0"}


def made_up(study, errors, *, seeds=SEEDS, noise=NOISE, norms=None, **measures):
    """Records in which an arm errs by what `errors` gives for it, and a noise that differs from arm to arm."""
    arms = study.arms("quick")
    by_training = {}
    for place, arm in enumerate(arms):
        for at, seed in enumerate(seeds):
            error = errors(arm) + noise[(at + place) % len(noise)]
            first = 1.0 if norms is None else norms(arm)
            layers = {f"conv{n}": first * 1.1**n for n in range(arm.facts.get("depth", 3))}
            record = Record(
                Job(arm.net, "sample", 0, None, None, {}, seed, 1, "auto", "auto", None, None, True),
                parameters=1000 + place,
                macs=1_000_000 * (place + 1),
                machine="a machine",
                versions=VERSIONS,
                outcome="trained",
                message=None,
                whole_seconds=12.0,
                gradients=(GradientNorms(0, layers), GradientNorms(5, layers)),
                train_error=error,
                test_error=error + 0.02,
                validation_error=error + 0.01,
                train_images=18_000,
                seconds=10.0 + 10 * noise[at % len(noise)],
                branches={"incep1": {"b1": 0.1, "b5": 0.3, "b3": 0.2, "pool": 0.15}},
            )
            by_training[arm.label, seed] = replace(record, **{key: value(arm) for key, value in measures.items()})
    return Records(arms, tuple(seeds), by_training)


def change(records, label, **fields):
    """Change the record of an arm with the first seed."""
    records.by_training[label, SEEDS[0]] = replace(records.by_training[label, SEEDS[0]], **fields)


def verdicts(study, records):
    return [finding.verdict for finding in study.answer(records).findings]


def by_depth(plain, residual):
    return lambda arm: (plain if arm.facts["kind"] == "plain" else residual)[arm.facts["depth"]]


DEGRADES = by_depth({8: 0.11, 20: 0.18, 56: 0.5}, {8: 0.11, 20: 0.1, 56: 0.09})


def norms_of(batch, torch, he):
    return lambda arm: {"batch": batch, "torch": torch, "he": he}[arm.facts["norm"]][arm.facts["depth"]]


def test_depth_says_yes_where_plain_nets_degrade():
    norms = norms_of({8: 1, 20: 5, 56: 200}, {8: 1, 20: 1e-9, 56: 0.0}, {20: 1, 56: 0.5})
    records = made_up(depth.DEPTH, DEGRADES, norms=norms)
    worse, vanish, residual, helps, vanish_bare, vanish_he, helps_bare = depth.DEPTH.answer(records).findings
    assert [f.verdict for f in (worse, vanish, residual, helps)] == ["yes", "no", "no", "yes"]
    assert [f.verdict for f in (vanish_bare, vanish_he, helps_bare)] == ["yes", "no", "yes"]
    assert "plain-56 50.0" in worse.words and "The intervals do not overlap" in worse.words
    assert "200 times as large with 56 layers as with 8" in vanish.words


def test_depth_says_no_where_they_do_not():
    better = by_depth({8: 0.3, 20: 0.2, 56: 0.1}, {8: 0.3, 20: 0.2, 56: 0.3})
    norms = norms_of({8: 1, 20: 1e-2, 56: 1e-4}, {8: 1, 20: 1, 56: 1}, {20: 1, 56: 1e-6})
    found = verdicts(depth.DEPTH, made_up(depth.DEPTH, better, norms=norms))
    assert found == ["no", "yes", "yes", "no", "no", "yes", "no"]


def test_depth_says_no_where_they_are_equal_within_the_margin():
    records = made_up(depth.DEPTH, by_depth({8: 0.1, 20: 0.1, 56: 0.1}, {8: 0.1, 20: 0.1, 56: 0.1}))
    worse, *_ = depth.DEPTH.answer(records).findings
    assert worse.verdict == "no" and "equal within the margin of ±0.5 points" in worse.words


@pytest.mark.parametrize(("diverged", "verdict"), [("plain-56", "yes"), ("plain-20", "too close to call")])
def test_what_diverged_can_only_confirm_that_its_net_is_worse(diverged, verdict):
    records = made_up(depth.DEPTH, DEGRADES)
    change(records, diverged, outcome="diverged", message="the loss is not a number")
    worse, *_ = depth.DEPTH.answer(records).findings
    assert worse.verdict == verdict and f"1 of 4 trainings of {diverged} diverged" in worse.words
    equal = made_up(depth.DEPTH, by_depth({8: 0.1, 20: 0.1, 56: 0.1}, {8: 0.1, 20: 0.1, 56: 0.1}))
    change(equal, diverged, outcome="diverged", message="the loss is not a number")
    assert depth.DEPTH.answer(equal).findings[0].verdict == "too close to call"


def test_depth_says_too_close_to_call():
    noise = (0.08, -0.08, 0.03, -0.03)
    close = by_depth({8: 0.3, 20: 0.3, 56: 0.32}, {8: 0.3, 20: 0.3, 56: 0.3})
    norms = norms_of({8: 1, 20: 1, 56: 0.03}, {8: 1, 20: 1, 56: 0.03}, {20: 1, 56: 0.03})
    assert set(verdicts(depth.DEPTH, made_up(depth.DEPTH, close, noise=noise, norms=norms))) == {"too close to call"}


@pytest.mark.parametrize("study", [depth.DEPTH, shortcuts.SHORTCUTS, branches.BRANCHES, bottleneck.BOTTLENECK])
def test_one_seed_decides_nothing_that_is_measured(study):
    records = made_up(study, lambda arm: 0.1 + len(arm.label) / 100, seeds=(7,))
    answer = study.answer(records)
    measured = [f for f in answer.findings if "MAC" not in f.words]
    assert {finding.verdict for finding in measured} == {"too close to call"}
    assert all(c.low is None and c.p is None for c in answer.comparisons)


def some_of(records, *labels):
    return replace(records, arms=tuple(arm for arm in records.arms if arm.label in labels))


def test_some_nets_answer_the_questions_about_them():
    every = made_up(depth.DEPTH, DEGRADES, norms=norms_of({8: 1, 20: 5, 56: 200}, {8: 1, 20: 1, 56: 1}, {20: 1, 56: 1}))
    paper = some_of(every, "plain-20", "plain-56", "residual-20", "residual-56")
    assert verdicts(depth.DEPTH, paper) == ["yes", "no", "no", "yes"]
    assert "40 times as large with 56 layers as with 20" in depth.DEPTH.answer(paper).findings[1].words
    pages = [report_of(depth.DEPTH, paper)]
    assert "--arms plain-20,residual-20,plain-56,residual-56" in unescape(pages[0]) and pages[0].count("<svg") == 2
    for labels, found in (
        (("plain-20",), []),
        (("plain-8", "residual-8"), []),
        (("residual-20", "residual-56"), ["no"]),
        (("plain-56", "residual-56"), ["yes"]),
        (("plain-56 norm=none", "residual-56 norm=none"), ["yes"]),
    ):
        assert verdicts(depth.DEPTH, some_of(every, *labels)) == found, labels
        pages.append(report_of(depth.DEPTH, some_of(every, *labels)))
    shown = made_up(shortcuts.SHORTCUTS, lambda arm: 0.1 if arm.label == "identity" else 0.2)
    assert verdicts(shortcuts.SHORTCUTS, some_of(shown, "identity", "conv")) == ["yes"]
    assert verdicts(shortcuts.SHORTCUTS, some_of(shown, "gated", "conv")) == []
    pages.append(report_of(shortcuts.SHORTCUTS, some_of(shown, "gated", "conv")))
    assert all("<svg" in page for page in pages)


def test_shortcuts():
    errors = {"identity": 0.10, "scale": 0.10, "conv": 0.15, "gated": 0.13, "gate-only": 0.18, "dropout": 0.25}
    errors |= {"none": 0.4, "pre-activation": 0.07}
    found = verdicts(shortcuts.SHORTCUTS, made_up(shortcuts.SHORTCUTS, lambda arm: errors[arm.label]))
    assert found == ["no", "yes", "yes", "yes", "yes", "yes", "yes"]
    errors["pre-activation"], errors["conv"] = 0.12, 0.05
    found = verdicts(shortcuts.SHORTCUTS, made_up(shortcuts.SHORTCUTS, lambda arm: errors[arm.label]))
    assert (found[1], found[-1]) == ("no", "no")


WORTH = {"b1": 0.001, "b5": 0.04, "b3": 0.02, "pool": 0.0}


def additive(arm):
    return 0.2 - sum(WORTH[branch] for branch in arm.facts["branches"])


def test_gains_of_branches_are_the_mean_over_the_nets_without_it():
    records = made_up(branches.BRANCHES, additive, noise=(0.0,))
    for branch, gain in branches.gains(records, "test_error").items():
        assert gain == pytest.approx(dict.fromkeys(SEEDS, WORTH[branch]))
    # By hand where branches go together: b1 brings something only beside b5.
    errors = {arm.label: 0.2 - 0.08 * ({"b1", "b5"} <= set(arm.facts["branches"])) for arm in records.arms}
    records = made_up(branches.BRANCHES, lambda arm: errors[arm.label], noise=(0.0,))
    found = branches.gains(records, "test_error")
    assert found["b1"][0] == pytest.approx(4 / 7 * 0.08) and found["pool"][0] == pytest.approx(0)


def test_branches_say_which_is_worth_most_and_whether_weights_show_it():
    four, winner, weights, spare = branches.BRANCHES.answer(made_up(branches.BRANCHES, additive)).findings
    assert four.verdict == "yes" and "b1+b5+b3+pool" in four.words and "b5 1" in four.words
    assert winner.verdict == "yes" and "b5 is worth more than each of the others" in winner.words
    assert weights.verdict == "yes" and "+0.80" in weights.words  # b5 has the largest weights in these records
    assert spare.verdict == "yes"  # without pool
    sizes = {"incep1": {"b1": 0.5, "b5": 0.1, "b3": 0.2, "pool": 0.15}}
    records = made_up(branches.BRANCHES, additive, branches=lambda arm: sizes)
    assert branches.BRANCHES.answer(records).findings[2].verdict == "no"


def test_weights_are_refuted_where_the_heaviest_branch_is_beaten_though_the_best_is_not_known():
    worth = WORTH | {"b3": WORTH["b5"]}

    def findings(heaviest):
        kernels = {"incep1": dict.fromkeys(branches.BRANCHES_OF, 0.1) | {heaviest: 0.3}}
        records = made_up(
            branches.BRANCHES,
            lambda arm: 0.2 - sum(worth[branch] for branch in arm.facts["branches"]),
            branches=lambda arm: kernels,
        )
        return branches.BRANCHES.answer(records).findings[1:3]

    winner, weights = findings("b1")
    assert winner.verdict == "too close to call"
    assert weights.verdict == "no" and re.search(r"b1 is worth less than b[35]\.", weights.words)
    for heaviest in ("b5", "b3"):
        assert findings(heaviest)[1].verdict == "too close to call"


def test_branches_say_no_and_too_close():
    worth = dict.fromkeys(WORTH, 0.05)
    records = made_up(branches.BRANCHES, lambda arm: 0.3 - sum(worth[b] for b in arm.facts["branches"]))
    assert verdicts(branches.BRANCHES, records) == ["yes", "too close to call", "too close to call", "no"]
    noise = (0.06, -0.06, 0.02, -0.02)
    records = made_up(branches.BRANCHES, lambda arm: 0.1, noise=noise)
    assert verdicts(branches.BRANCHES, records)[0] == "too close to call"


def test_the_bottleneck_of_the_slide_and_of_the_lecture():
    macs = {"1×1 to 16": 6_019_200, "no 1×1": 5_310_080, "1×1 to 8": 4_946_560, "1×1 to 4": 4_410_240}
    seconds = {"1×1 to 16": 12.0, "no 1×1": 10.0, "1×1 to 8": 9.0, "1×1 to 4": 8.0}
    records = made_up(
        bottleneck.BOTTLENECK,
        lambda arm: 0.05 if arm.label == "1×1 to 4" else 0.02,
        noise=tuple(value / 10 for value in NOISE),
        macs=lambda arm: macs[arm.label],
        seconds=lambda arm: seconds[arm.label],
    )
    answer = bottleneck.BOTTLENECK.answer(records)
    assert [f.verdict for f in answer.findings] == ["yes", "no", "yes", "no", "yes", "no", "yes"]
    slide, lecture = answer.findings[:2]
    assert "120,422,400" in slide.words and "12,443,648" in slide.words and "9.68 times" in slide.words
    assert "13.4% more" in lecture.words


def test_macs_of_layers_are_those_that_torch_counts():
    from torch import nn

    direct, through = bottleneck.SLIDE.direct, bottleneck.SLIDE.total
    assert (direct, through) == (120_422_400, 12_443_648)
    assert torch_macs(nn.Conv2d(192, 32, 5, padding=2), (192, 28, 28)) == direct
    assert torch_macs(nn.Sequential(nn.Conv2d(192, 16, 1), nn.Conv2d(16, 32, 5, padding=2)), (192, 28, 28)) == through
    module = _inception(192, b1=64, b3=(96, 128), b5=(16, 32), pool=32, kernel=5)
    (table,) = bottleneck.BOTTLENECK.answer(made_up(bottleneck.BOTTLENECK, lambda arm: 0.1)).tables
    rows = {row[0]: row for row in table.rows}
    assert rows["googlenet incep3a.b3"][4] == f"{torch_macs(module.b3, (192, 28, 28)):,}"
    assert rows["googlenet incep3a.b5"][4] == f"{torch_macs(module.b5, (192, 28, 28)):,}"
    assert rows["inception incep1.b3"][5] == "0.60×"  # 10·24·9 against 10·16 + 16·24·9, a pixel


@pytest.mark.parametrize("language", ["en", "zh_CN.UTF-8"])
@pytest.mark.parametrize("study", [depth.DEPTH, shortcuts.SHORTCUTS, branches.BRANCHES, bottleneck.BOTTLENECK])
def test_the_report_has_every_figure_in_both_languages(study, language, monkeypatch):
    monkeypatch.setenv("BRANCHWORK_LANG", language)
    errors = {arm.label: 0.02 + 0.013 * place for place, arm in enumerate(study.arms("quick"))}
    records = made_up(study, lambda arm: errors[arm.label])
    page = report_of(study, records)
    text = unescape(re.sub("<[^>]*>", " ", page))
    for arm in records.arms:
        assert say(arm.label) in text
        for measure in study.measures:
            assert mean_words(measure, records.mean(arm.label, measure)) in text
    answer = study.answer(records)
    for finding in answer.findings:
        assert finding.question in text and finding.words in text
    for comparison in answer.comparisons:
        assert f"{say(comparison.first)} − {say(comparison.second)}" in text
    assert page.count("<svg") == len(answer.plots) and "<script" not in page and "\\math" not in page
    assert all(place.startswith(("#", "data:")) for place in re.findall(r'(?:src|[^:]href)="([^"]*)"', page))
    assert "18,000" in text and ("learning_rate 0.02" in text) == (study is depth.DEPTH)
    assert "a machine" in text and "torch 2.13.0" in text and f"branchwork study {study.name} --preset quick" in text
    chinese = len(re.findall("[\u4e00-\u9fff]", text))
    assert (chinese > 200) == language.startswith("zh") and (language.startswith("zh") or chinese == 0)


def report_of(study, records):
    setting = study.setting("quick", 60_000)
    answer = study.answer(records)
    rows = tuple(
        ArmResult(arm.label, arm.net, 1, 1, 0, {m: records.mean(arm.label, m) for m in study.measures})
        for arm in records.arms
    )
    result = StudyResult(
        study.name, "quick", "sample", records.seeds, answer.findings, rows, answer.comparisons, 12, 12,
        600.0, ("a machine",), (VERSIONS,), "folder", "folder/report.html",
    )  # fmt: skip
    assert asdict(result)["rows"]
    return study_page(study, result, setting=setting, data=load_data("sample"), records=records, answer=answer)


def texts(svg):
    return [unescape(text) for text in re.findall(r"<text [^>]*>([^<]+)</text>", svg)]


def test_gradients_are_drawn_at_the_start_and_during_training_as_far_as_it_came():
    records = made_up(depth.DEPTH, DEGRADES)
    for arm in records.arms:
        start, end = records.first(arm.label).gradients
        change(records, arm.label, gradients=(start, replace(start, epoch=3), end))
    change(records, "plain-56", outcome="diverged", gradients=(start,))
    *_, gradients = depth.DEPTH.answer(records).plots
    shown = texts(gradients.draw())
    assert [text for text in shown if "epochs" in text] == ["after 3 epochs", "after 5 epochs"]
    assert shown.count("plain, batch norm") == 1 and "at the start" in shown


def test_sets_of_branches_are_drawn_with_one_row_each_and_the_cheapest_first():
    labels = [arm.label for arm in branches.BRANCHES.arms("quick")]
    dearest_first = {label: 1e6 * (20 - place) for place, label in enumerate(labels)}
    records = made_up(branches.BRANCHES, additive, macs=lambda arm: dearest_first[arm.label])
    sets, _ = branches.BRANCHES.answer(records).plots
    assert [text for text in texts(sets.draw()) if text in labels] == labels[::-1]


def test_a_net_that_fails_does_not_squeeze_the_others_together():
    errors = {"dropout": 0.88}
    (picture,) = shortcuts.SHORTCUTS.answer(made_up(shortcuts.SHORTCUTS, lambda arm: errors.get(arm.label, 0.14))).plots
    assert {"15", "20", "50"} <= set(texts(picture.draw()))
    (even,) = shortcuts.SHORTCUTS.answer(made_up(shortcuts.SHORTCUTS, lambda arm: 0.14)).plots
    assert "50" not in texts(even.draw())
