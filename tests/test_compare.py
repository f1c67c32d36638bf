"""Nets on the same test images: the tests against scipy and exact fractions, the rest against single evaluations."""

import dataclasses
import json
import math
import random
import re
import shutil
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from helpers.folders import two_classes
from helpers.training import SGD, SMALL
from PIL import Image
from scipy import stats
from scipy.special import expit, logit

import branchwork as bw
from branchwork.comparing import compare as comparing
from branchwork.comparing.pairs import EXACT_BELOW, Pair, adjust, make_pair, mcnemar, verdict
from branchwork.datasets.dataset import Split
from branchwork.errors import DataError, RunError
from branchwork.training.evaluate import paired_interval
from branchwork.training.infer import predict_logits


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(comparing, "TIMED", 0.01)


@pytest.fixture(scope="module")
def other(sample, tmp_path_factory):
    """A small net on the same data, worse than the residual one."""
    folder = tmp_path_factory.mktemp("compare") / "small"
    return bw.train(SMALL, data=sample, recipe=SGD.but({"epochs": 1}), out=folder)


@pytest.fixture(scope="module")
def seeds(small, tmp_path_factory):
    """Two nets with three seeds each, of which they share two."""
    folder, recipe = tmp_path_factory.mktemp("compare"), SGD.but({"epochs": 1})
    for name, first, rate in (("slow", 0, 0.01), ("fast", 1, 0.05)):
        options = bw.Options(seed=first)
        bw.train_seeds(
            SMALL, seeds=3, data=small, recipe=recipe.but({"learning_rate": rate}), options=options, out=folder / name
        )
    return folder


@pytest.mark.parametrize(("ahead", "behind"), [(0, 0), (1, 0), (0, 6), (3, 9), (7, 7), (20, 4)])
def test_few_disagreements_are_tested_exactly_as_scipy_does(ahead, behind):
    name, p = mcnemar(ahead, behind)
    theirs = stats.binomtest(ahead, ahead + behind, 0.5).pvalue if ahead + behind else 1.0
    assert name == "exact" and p == pytest.approx(theirs, rel=1e-12)


@pytest.mark.parametrize(("ahead", "behind"), [(13, 12), (20, 5), (40, 40), (63, 21), (700, 600)])
def test_many_disagreements_get_the_mid_p_of_exact_fractions(ahead, behind):
    count, fewer = ahead + behind, min(ahead, behind)
    tail = sum(Fraction(math.comb(count, k), 2**count) for k in range(fewer + 1))
    theirs = 2 * tail - Fraction(math.comb(count, fewer), 2**count)
    name, p = mcnemar(ahead, behind)
    assert name == "mid-p" and count >= EXACT_BELOW and p == pytest.approx(float(min(1, theirs)), rel=1e-9)
    # Between the exact test's and the chi-square's without its correction, which it approaches.
    exact = stats.binomtest(ahead, count, 0.5).pvalue
    square = stats.chi2.sf((ahead - behind) ** 2 / count, 1)
    assert p <= exact and abs(p - square) < 0.02


def test_the_mid_p_test_errs_in_about_five_percent_and_the_exact_one_in_far_fewer():
    for count in (30, 60):
        chance = [math.comb(count, k) / 2**count for k in range(count + 1)]
        errs = sum(c for k, c in enumerate(chance) if mcnemar(k, count - k)[1] < 0.05)
        strict = sum(c for k, c in enumerate(chance) if stats.binomtest(k, count, 0.5).pvalue < 0.05)
        assert strict <= errs < 0.055 and errs > 0.03


def rows(*lines: str) -> torch.Tensor:
    return torch.tensor([[letter == "+" for letter in line] for line in lines])


def test_a_pair_by_hand():
    labels = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])
    pair = make_pair(("A", "B"), rows("++++-++-"), rows("+--++--+"), labels=labels, classes=("cat", "dog"))
    assert (pair.only_first, pair.only_second, pair.seeds, pair.test) == (4, 2, 1, "exact")
    assert pair.difference == pytest.approx(2 / 8) and (pair.low, pair.high) == paired_interval(4, 2, 8)
    assert pair.p == pair.adjusted == pytest.approx(stats.binomtest(4, 6).pvalue)
    assert [(c.name, c.images, c.only_first, c.only_second) for c in pair.classes] == [
        ("cat", 4, 2, 0),
        ("dog", 4, 2, 2),
    ]


def test_seeds_are_compared_in_pairs_as_scipy_does():
    generator = torch.Generator().manual_seed(3)
    first, second = (torch.rand(5, 400, generator=generator) < share for share in (0.9, 0.8))
    pair = make_pair(("A", "B"), first, second, labels=torch.arange(400) % 2, classes=("a", "b"))
    theirs = stats.ttest_rel(first.double().mean(1), second.double().mean(1))
    bounds = theirs.confidence_interval(0.95)
    assert (pair.test, pair.seeds) == ("t", 5) and pair.p == pytest.approx(theirs.pvalue)
    assert (pair.low, pair.high) == (pytest.approx(bounds.low), pytest.approx(bounds.high))
    assert pair.only_first - pair.only_second == pytest.approx(400 * pair.difference)
    assert sum(c.only_first for c in pair.classes) == pytest.approx(pair.only_first)


def test_several_pairs_are_corrected_together_and_the_words_follow():
    pairs = [Pair("A", "B", 1, 1, 1, d, d - 0.2, d + 0.2, "exact", p, p, ()) for d, p in ((0.1, 0.03), (-0.1, 0.01))]
    adjusted = adjust(pairs, 1000)
    assert [pair.adjusted for pair in adjusted] == [pytest.approx(0.03), pytest.approx(0.02)]
    assert [verdict(pair) for pair in adjusted] == ["A is better than B", "B is better than A"]
    # The smaller p is doubled, and its interval is then one of 97.5%.
    wider = stats.norm.ppf(1 - 0.0125) / stats.norm.ppf(0.975)
    assert adjusted[1].high - adjusted[1].low == pytest.approx(0.4 * wider, rel=1e-2)
    assert (adjusted[0].low, adjusted[0].high) == (pytest.approx(-0.1), pytest.approx(0.3))  # not changed
    assert adjust(pairs[:1], 1000) == (pairs[0],)
    (third, *_) = adjust([*pairs, dataclasses.replace(pairs[0], p=0.04)], 1000)
    assert third.adjusted == pytest.approx(0.06) and "these pictures do not settle" in verdict(third)
    assert "these seeds do not settle" in verdict(dataclasses.replace(third, test="t"))


def test_the_figures_are_those_of_each_run_alone(run, other, sample):
    comparison = bw.compare([run.folder, other.folder])
    (pair,), (first, second) = comparison.pairs, comparison.entries
    for entry, result in ((first, run), (second, other)):
        assert (entry.accuracy, entry.interval) == (result.test_accuracy, result.test_interval)
        assert (entry.parameters, entry.macs, entry.train_seconds) == (
            result.parameters, result.macs, result.train_seconds,
        )  # fmt: skip
        evaluation = bw.evaluate(result.folder)
        assert entry.right == tuple(row[index] for index, row in enumerate(evaluation.confusion))
        assert entry.milliseconds > 0 and entry.seeds == (0,)
    right = []
    for result in (run, other):
        trained = bw.load_run(result.folder)
        right.append(predict_logits(trained.net, sample.test.images, trained.model).argmax(1) == sample.test.labels)
    assert (pair.only_first, pair.only_second) == (int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum()))
    assert pair.difference == pytest.approx(first.accuracy - second.accuracy) and pair.difference > 0.02
    assert pair.test == "mid-p" and "A is better than B" in verdict(pair)
    assert {each.index for each in comparison.disagreements} == set((right[0] != right[1]).nonzero()[:, 0].tolist())
    for each in comparison.disagreements:
        assert each.true == str(int(sample.test.labels[each.index]))
        for label, theirs in zip("AB", right, strict=True):
            assert (label in each.read_by) == bool(theirs[each.index]) == (each.answers[label] == each.true)
    sure = [each.confidence_of_mistake() for each in comparison.disagreements]
    assert sure == sorted(sure, reverse=True)


def test_equal_nets_do_not_differ(run, tmp_path):
    copy = shutil.copytree(run.folder, tmp_path / "copy")
    comparison = bw.compare([run.folder, copy], draw=tmp_path / "none.png")
    (pair,) = comparison.pairs
    assert (pair.p, pair.difference, comparison.disagreements) == (1.0, 0.0, ()) and pair.low < 0 < pair.high
    assert not (tmp_path / "none.png").exists()


def test_folders_of_seeds_count_as_one_net_each(seeds):
    comparison = bw.compare([seeds / "fast", seeds / "slow"], data="sample")
    (pair,), (first, second) = comparison.pairs, comparison.entries
    assert first.seeds == (1, 2, 3) and second.seeds == (0, 1, 2)
    alone = {
        (name, seed): bw.evaluate(seeds / name / f"seed-{seed}").accuracy
        for name in ("fast", "slow")
        for seed in (1, 2)
    }
    assert first.accuracies[:2] == tuple(alone["fast", seed] for seed in (1, 2))
    differences = [alone["fast", seed] - alone["slow", seed] for seed in (1, 2)]
    assert (pair.seeds, pair.test) == (2, "t") and pair.difference == pytest.approx(sum(differences) / 2)
    slope = 1 / (first.accuracy * (1 - first.accuracy))  # of the log-odds, by the delta method
    scale = slope * stats.sem(first.accuracies)
    assert first.interval == pytest.approx(expit(stats.t.interval(0.95, 2, loc=logit(first.accuracy), scale=scale)))


def test_the_command_shows_tables_a_page_json_and_the_pictures(run, other, command):
    code, out, err = command(
        "compare", run.folder, other.folder, "--draw", "d.png", "--out", "c.html", "--json", "c.json"
    )
    assert code == 0, err
    found = json.loads(Path("c.json").read_text())
    assert f"A: {run.folder}" in out and "A is better than B" in out and "mid-p" in out
    assert f"{100 * run.test_accuracy:.2f} (" in out and "41,514" in out and "2,013,184" in out
    assert f"disagree on {len(found['disagreements']):,}" in out
    with Image.open("d.png") as picture:
        assert min(picture.size) > 400
    page = Path("c.html").read_text()
    assert not re.search(r'(src|href)="(?!data:image/png;base64,|#)', page) and "<script" not in page
    assert page.count("<svg") == 1 and "A is better than B" in page
    assert page.count("data:image/png;base64,") == sum(
        min(24, sum(1 for each in found["disagreements"] if each["read_by"] == [label])) for label in "AB"
    )


def test_three_nets_are_three_pairs(run, other, command, tmp_path):
    copy = shutil.copytree(other.folder, tmp_path / "copy")
    code, out, _ = command("compare", run.folder, other.folder, copy)
    assert code == 0 and "after Holm" in out
    assert [line.split("  ")[0].strip() for line in out.splitlines() if " − " in line] == ["A − B", "A − C", "B − C"]
    assert "B and C: these pictures do not settle which is better" in out


def test_runs_that_cannot_be_compared_are_refused(run, other, seeds, refused):
    assert "from 2 to 26 runs, got 1" in refused("compare", run.folder)
    assert "is named twice" in refused("compare", run.folder, other.folder, f"{run.folder}/")
    assert "holds no trained net" in refused("compare", run.folder, "gone")
    words = refused("compare", run.folder, seeds / "fast")
    assert "holds 3 seeds, but" in words and "seed-1" in words
    assert "written as .txt" in refused("compare", run.folder, other.folder, "--draw", "x.txt")
    Path("file").write_text("")
    assert "file is a file" in refused("compare", run.folder, other.folder, "--out", "file/c.html")


def test_seeds_that_have_too_few_in_common_are_refused(seeds, tmp_path):
    few = shutil.copytree(seeds / "slow", tmp_path / "few")
    plans = json.loads((few / "seeds.json").read_text())
    (few / "seeds.json").write_text(json.dumps(plans[:2]))
    with pytest.raises(RunError, match="at least two must be the same"):
        bw.compare([seeds / "fast", few])


def test_other_test_images_are_refused_with_what_differs(run, sample, tmp_path, monkeypatch):
    copy = shutil.copytree(run.folder, tmp_path / "copy")
    model = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(model | {"data": "mnist"}))
    changed = sample.test.images.clone()
    changed[[3, 7], 0, 5, 5] += 1
    labels = sample.test.labels.roll(1)
    for test, words in (
        (sample.test.pick(torch.arange(999)), "sample has 1,000 test images, mnist has 999"),
        (Split(changed, sample.test.labels), "2 of 1,000 test images, or their labels, differ"),
        (Split(sample.test.images, labels), f"{int((labels != sample.test.labels).sum())} of 1,000 test images"),
    ):
        theirs = dataclasses.replace(sample, name="mnist", test=test)
        sets = {"mnist": theirs, "sample": sample}
        monkeypatch.setattr("branchwork.training.evaluate.load_data", lambda name, sets=sets, **_: sets[name])
        with pytest.raises(DataError) as caught:
            bw.compare([run.folder, copy])
        assert words in str(caught.value) and "--data" in str(caught.value)
    sets["mnist"] = dataclasses.replace(sample, name="mnist")
    assert bw.compare([run.folder, copy]).images == 1000


def test_other_classes_are_refused(run, tmp_path):
    copy = shutil.copytree(run.folder, tmp_path / "copy")
    model = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(model | {"classes": [*"012345678", "ten"]}))
    with pytest.raises(DataError, match="only in the net: ten"):
        bw.compare([run.folder, copy])


def test_nets_of_other_sizes_get_the_same_pictures(tmp_path):
    random.seed(0)
    folder = two_classes(tmp_path / "pets")
    recipe = bw.course().but({"epochs": 1, "batch_size": 8, "validation": 0.0})
    for side in (16, 20):
        data = bw.load_data(str(folder), size=side)
        bw.train("residual", data=data, recipe=recipe, options=bw.Options(threads=1, execute="written"), out=f"r{side}")
    comparison = bw.compare(["r16", "r20"], draw=tmp_path / "d.png", out=tmp_path / "c.html")
    assert [entry.input_shape for entry in comparison.entries] == [(3, 16, 16), (3, 20, 20)]
    assert comparison.classes == ("cat", "dog") and comparison.entries[0].macs < comparison.entries[1].macs
    Path("r20/result.json").unlink()
    assert bw.compare(["r16", "r20"]).entries[1].train_seconds is None
