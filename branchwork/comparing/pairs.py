"""Two nets on the same test images: McNemar's test, or over several seeds the paired t-test, each with an interval.

scipy is imported where it is needed, since importing it takes a second.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor

from branchwork.language import mark, say
from branchwork.training.evaluate import paired_interval
from branchwork.training.statistics import ALPHA, PairedDifference, holm, paired

TestName = Literal["exact", "mid-p", "t"]
# Fewer images than this, on which only one of two nets is right, are tested exactly. The exact test keeps its 5% at any
# number, but as a rule errs far below them; the mid-p test comes close to them from about here on (Fagerland, Lydersen
# and Laake 2013). Both sum the binomial distribution itself, so that no number of images needs the chi-square.
EXACT_BELOW = 25


@dataclass(frozen=True)
class ClassPair:
    """One class of the test images, and on how many of its `images` only the first or only the second net is right."""

    name: str
    images: int
    only_first: float
    only_second: float


@dataclass(frozen=True)
class Pair:
    """Two entries of a comparison on the same test images.

    On `only_first` images the first is right and the second wrong, on `only_second` the other way round: means over
    the `seeds` that both have. `difference` is the accuracy of the first minus that of the second, a fraction, from
    `low` to `high` with 95% confidence: for one seed by Bonett and Price, for several by Student. `p` is that of
    `test`: McNemar's, `exact` or `mid-p`, or Student's paired `t`. `adjusted` is p after Holm's correction for all
    pairs, and the interval is widened by the same. `classes` are in the order of the data.
    """

    first: str
    second: str
    seeds: int
    only_first: float
    only_second: float
    difference: float
    low: float
    high: float
    test: TestName
    p: float
    adjusted: float
    classes: tuple[ClassPair, ...]


def make_pair(names: tuple[str, str], first: Tensor, second: Tensor, *, labels: Tensor, classes: Sequence[str]) -> Pair:
    """Compare two nets by which images each classifies correctly, bool S×N with a row for each seed."""
    ahead, behind = first & ~second, second & ~first
    seeds, images = first.shape
    test: TestName
    if seeds == 1:
        lost, gained = int(ahead.sum()), int(behind.sum())
        test, p = mcnemar(lost, gained)
        difference, (low, high) = (lost - gained) / images, paired_interval(lost, gained, images)
    else:
        accuracies = [dict(enumerate(right.double().mean(1).tolist())) for right in (first, second)]
        result = paired(*accuracies, names=names, measure="gain")
        assert result and result.low is not None and result.high is not None and result.p is not None
        test, p, difference, low, high = "t", result.p, result.difference, result.low, result.high
    counts = [labels.eq(number) for number in range(len(classes))]
    return Pair(
        *names,
        seeds=seeds,
        only_first=_mean_count(ahead),
        only_second=_mean_count(behind),
        difference=difference,
        low=low,
        high=high,
        test=test,
        p=p,
        adjusted=p,
        classes=tuple(
            ClassPair(name, int(of_class.sum()), _mean_count(ahead & of_class), _mean_count(behind & of_class))
            for name, of_class in zip(classes, counts, strict=True)
        ),
    )


def mcnemar(only_first: int, only_second: int) -> tuple[Literal["exact", "mid-p"], float]:
    """Return which of McNemar's tests fits so many images on which only one net is right, and its two-sided p value."""
    count, fewer = only_first + only_second, min(only_first, only_second)
    if count == 0:
        return "exact", 1.0
    from scipy import stats

    p = 2 * float(stats.binom.cdf(fewer, count, 0.5))
    if count < EXACT_BELOW:
        return "exact", min(1.0, p)
    return "mid-p", min(1.0, p - float(stats.binom.pmf(fewer, count, 0.5)))


def adjust(pairs: Sequence[Pair], images: int) -> tuple[Pair, ...]:
    """Return the pairs with `adjusted` and the intervals after Holm's correction for all of them together."""
    if len(pairs) == 1:
        return tuple(pairs)
    # What an interval is widened by depends on how many values its spread is estimated from: seeds, or images.
    counts = [pair.seeds if pair.test == "t" else images for pair in pairs]
    tested = [
        PairedDifference(pair.first, pair.second, "gain", count, pair.difference, pair.low, pair.high, pair.p, pair.p)
        for pair, count in zip(pairs, counts, strict=True)
    ]
    corrected = []
    for pair, result in zip(pairs, holm(tested), strict=True):
        assert result and result.low is not None and result.high is not None and result.adjusted is not None
        low, high = max(-1.0, result.low), min(1.0, result.high)
        corrected.append(replace(pair, adjusted=result.adjusted, low=low, high=high))
    return tuple(corrected)


def _mean_count(images: Tensor) -> float:
    """Return how many images of bool S×N are true, as a mean over the rows."""
    return float(images.sum(1).double().mean())


TESTS: dict[TestName, str] = {
    "exact": mark("McNemar's, exact: the pictures that only one net gets right are fewer than 25"),
    "mid-p": mark(
        "McNemar's with mid-p: the pictures that only one net gets right are 25 or more, and for so many the exact "
        "test is too strict"
    ),
    "t": mark("Student's, paired over the seeds that both have"),
}


def verdict(pair: Pair) -> str:
    """Return which net is better in words, if the test says so after Holm's correction."""
    if pair.adjusted >= ALPHA:
        message = (
            mark("{first} and {second}: these seeds do not settle which is better")
            if pair.test == "t"
            else mark("{first} and {second}: these pictures do not settle which is better")
        )
        return say(message, first=pair.first, second=pair.second)
    better, worse = (pair.first, pair.second) if pair.difference > 0 else (pair.second, pair.first)
    return say("{better} is better than {worse}", better=better, worse=worse)
