import math
import random

import pytest
from scipy import stats

from branchwork.training.statistics import Mean, PairedDifference, holm, mean_interval, measure_interval, paired

random.seed(0)
FIRST = {seed: random.gauss(0.2, 0.02) for seed in range(6)}
SECOND = {seed: random.gauss(0.15, 0.02) for seed in range(6)}


def test_the_interval_is_student_s():
    mean = mean_interval(FIRST.values())
    low, high = stats.t.interval(0.95, 5, loc=mean.mean, scale=stats.sem(list(FIRST.values())))
    assert (mean.low, mean.high, mean.count) == (pytest.approx(low), pytest.approx(high), 6)
    # By hand, with the table's value for one degree of freedom.
    assert mean_interval([1.0, 3.0]).high == pytest.approx(2 + 12.7062 * 1, rel=1e-5)
    assert mean_interval([0.3]) == Mean(1, 0.3, None, None)
    assert mean_interval([0.3, 0.3, 0.3]) == Mean(3, pytest.approx(0.3), pytest.approx(0.3), pytest.approx(0.3))
    with pytest.raises(ValueError, match="no value"):
        mean_interval([])


def test_intervals_of_errors_and_times_hold_no_impossible_value():
    wild = measure_interval([0.02, 0.05, 0.9], "test_error")
    assert mean_interval([0.02, 0.05, 0.9]).low < 0 < wild.low < wild.mean < wild.high < 1
    late = measure_interval([1.0, 1.2, 30.0], "seconds")
    assert mean_interval([1.0, 1.2, 30.0]).low < 0 < late.low < late.mean < late.high
    # Where the bounds are far, it is Student's: the two scales differ by terms of second order.
    narrow, plain = measure_interval([0.5, 0.501, 0.499], "test_error"), mean_interval([0.5, 0.501, 0.499])
    assert (narrow.low, narrow.high) == (pytest.approx(plain.low, rel=1e-4), pytest.approx(plain.high, rel=1e-4))
    # On the log-odds the interval is symmetric, with the half-width of the mean divided by p(1 − p).
    odds = [math.log(share / (1 - share)) for share in (wild.low, wild.mean, wild.high)]
    assert odds[2] - odds[1] == pytest.approx(odds[1] - odds[0])
    half = stats.t.ppf(0.975, 2) * stats.sem([0.02, 0.05, 0.9])
    assert odds[2] - odds[1] == pytest.approx(half / (wild.mean * (1 - wild.mean)))
    assert late.high / late.mean == pytest.approx(late.mean / late.low)
    for same in ([0.0, 0.0], [1.0, 1.0, 1.0], [0.25]):
        assert measure_interval(same, "test_error") == mean_interval(same)


def test_intervals_overlap_or_do_not():
    assert Mean(3, 1, 0, 2).overlaps(Mean(3, 3, 2, 4)) and Mean(3, 3, 2, 4).overlaps(Mean(3, 1, 0, 2))
    assert Mean(3, 1, 0, 2).overlaps(Mean(3, 3, 2.1, 4)) is False
    assert Mean(1, 1, None, None).overlaps(Mean(3, 3, 2.1, 4)) is None


def test_the_paired_test_is_scipy_s():
    found = paired(FIRST, SECOND, names=("a", "b"), measure="test_error")
    theirs = stats.ttest_rel(list(FIRST.values()), list(SECOND.values()))
    interval = theirs.confidence_interval(0.95)
    assert found.p == pytest.approx(theirs.pvalue) and found.adjusted == found.p
    assert (found.low, found.high) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert found.difference == pytest.approx(sum(FIRST.values()) / 6 - sum(SECOND.values()) / 6)


def test_only_seeds_that_both_have_are_compared():
    few = {seed: SECOND[seed] for seed in (1, 4, 5)} | {99: 5.0}
    found = paired(FIRST, few, names=("a", "b"), measure="test_error")
    assert found.count == 3
    assert found.difference == pytest.approx(sum(FIRST[s] - SECOND[s] for s in (1, 4, 5)) / 3)
    assert paired(FIRST, {99: 5.0}, names=("a", "b"), measure="test_error") is None
    alone = paired({1: 0.5}, {1: 0.25}, names=("a", "b"), measure="test_error")
    assert (alone.difference, alone.low, alone.p, alone.adjusted) == (0.25, None, None, None)


def test_differences_that_do_not_vary():
    same = paired({1: 0.5, 2: 0.25}, {1: 0.5, 2: 0.25}, names=("a", "b"), measure="m")
    other = paired({1: 0.5, 2: 0.25}, {1: 0.25, 2: 0.0}, names=("a", "b"), measure="m")
    assert (same.p, same.low, same.high) == (1.0, 0.0, 0.0)
    assert (other.p, other.low, other.high) == (0.0, 0.25, 0.25)


def of_p(p):
    return None if p is None else PairedDifference("a", "b", "m", 3, 0.1, 0.0, 0.2, p, p)


def test_holm_is_the_textbook_s():
    # Holm 1979: the smallest of four is multiplied by 4, and so on, never less than the one before.
    adjusted = holm([of_p(p) for p in (0.01, None, 0.04, 0.03, 0.005)])
    assert [None if c is None else round(c.adjusted, 10) for c in adjusted] == [0.03, None, 0.06, 0.06, 0.02]
    assert [c.p for c in adjusted if c] == [0.01, 0.04, 0.03, 0.005]
    assert [c.adjusted for c in holm([of_p(0.9), of_p(0.8)])] == [1.0, 1.0]
    assert holm([]) == []


def test_an_interval_and_its_p_value_never_contradict_each_other():
    generator = random.Random(1)
    for _ in range(200):
        shifts = [generator.gauss(0, 2) for _ in range(4)]
        sets = [{seed: shift + generator.gauss(0, 1) for seed in range(4)} for shift in shifts]
        raw = [paired(one, dict.fromkeys(range(4), 0.0), names=("a", "b"), measure="m") for one in sets]
        for before, after in zip(raw, holm(raw), strict=True):
            assert (after.low > 0 or after.high < 0) == (after.adjusted < 0.05)
            assert after.low <= before.low + 1e-12 and before.high <= after.high + 1e-12, "a correction only widens"
    # Bonferroni's interval, which is Holm's for the smallest p value, by another route.
    (first, *_) = sorted(holm(raw), key=lambda d: d.p)
    values = next(list(one.values()) for one, d in zip(sets, raw, strict=True) if d.p == first.p)
    low, high = stats.t.interval(1 - 0.05 / 4, 3, loc=first.difference, scale=stats.sem(values))
    assert (first.low, first.high) == (pytest.approx(low), pytest.approx(high))


@pytest.mark.parametrize(
    ("difference", "low", "high", "adjusted", "judgement"),
    [
        (0.10, 0.05, 0.15, 0.001, "more"),
        (-0.10, -0.15, -0.05, 0.001, "less"),
        (0.10, 0.05, 0.15, 0.06, "open"),  # Holm's correction takes it away
        (0.004, -0.001, 0.009, 0.1, "same"),
        (0.004, 0.003, 0.005, 0.001, "same"),  # significant, and of no account
        (0.004, -0.02, 0.03, 0.5, "open"),
        (0.009, 0.001, 0.017, 0.03, "open"),  # significant; larger than the margin or not
        (0.10, None, None, None, "open"),
    ],
)
def test_judgements(difference, low, high, adjusted, judgement):
    comparison = PairedDifference("a", "b", "m", 3, difference, low, high, adjusted, adjusted)
    assert comparison.judge(0.01) == judgement
