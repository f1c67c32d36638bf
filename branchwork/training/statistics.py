"""Statistics over seeds: means with intervals, paired differences with their tests, and how they are worded.

scipy is imported only where it is needed, since importing it takes a second.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from branchwork.language import say

# Differences with a p value below this count as significant.
ALPHA = 0.05


@dataclass(frozen=True)
class Mean:
    """A mean over `count` seeds, its 95% interval, and the values; `low` and `high` are None if there is one seed."""

    count: int
    mean: float
    low: float | None
    high: float | None
    values: tuple[float, ...] = field(default=(), compare=False)

    def overlaps(self, other: "Mean") -> bool | None:
        """Return whether the two intervals have a point in common; None if one of them is missing."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return None
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class PairedDifference:
    """The mean of `first` minus `second` in `measure`, seed by seed, with its interval and a paired t-test.

    `p` is the test's, `adjusted` the same after Holm's correction for all comparisons made together. The interval is as
    wide as that correction asks: it leaves out 0 if and only if `adjusted` is below 5%. `low`, `high`, `p` and
    `adjusted` are None if fewer than two seeds have both values.
    """

    first: str
    second: str
    measure: str
    count: int
    difference: float
    low: float | None
    high: float | None
    p: float | None
    adjusted: float | None

    def judge(self, margin: float) -> Literal["more", "less", "same", "open"]:
        """Return whether `first` has more of the measure than `second`.

        `same` if the interval lies within ±`margin`; `more` or `less` if the difference is significant after the
        correction and larger than `margin`; otherwise `open`.
        """
        if self.low is None or self.high is None or self.adjusted is None:
            return "open"
        if -margin <= self.low and self.high <= margin:
            return "same"
        if self.adjusted >= ALPHA or abs(self.difference) <= margin:
            return "open"
        return "more" if self.difference > 0 else "less"


def mean_interval(values: Iterable[float]) -> Mean:
    """Return the mean with Student's 95% interval, t·s/√n. Raises `ValueError` if there are no values."""
    values = list(values)
    if not values:
        raise ValueError("the mean of no values is undefined")
    mean = statistics.mean(values)
    if len(values) == 1:
        return Mean(1, mean, None, None, tuple(values))
    half = _quantile(ALPHA, len(values)) * statistics.stdev(values) / math.sqrt(len(values))
    return Mean(len(values), mean, mean - half, mean + half, tuple(values))


def measure_interval(values: Iterable[float], measure: str) -> Mean:
    """Return the mean of an error or of a time with a 95% interval that holds no impossible value.

    Student's half-width is taken where there are no bounds, by the delta method: for errors on the log-odds, for
    seconds on the logarithm. Raises `ValueError` if there are no values.
    """
    mean = mean_interval(values)
    if mean.low is None or mean.high is None or mean.low == mean.high:
        return mean
    half = mean.high - mean.mean
    if measure == "seconds":
        factor = math.exp(half / mean.mean)
        return replace(mean, low=mean.mean / factor, high=mean.mean * factor)
    odds, factor = mean.mean / (1 - mean.mean), math.exp(half / (mean.mean * (1 - mean.mean)))
    return replace(mean, low=odds / (odds + factor), high=odds * factor / (1 + odds * factor))


def _quantile(alpha: float, count: int) -> float:
    from scipy import stats

    return float(stats.t.ppf(1 - alpha / 2, count - 1))


def paired(
    first: Mapping[int, float], second: Mapping[int, float], *, names: tuple[str, str], measure: str
) -> PairedDifference | None:
    """Compare two sets of values by seed, over the seeds that both have; None if there is no such seed."""
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if not differences:
        return None
    mean = mean_interval(differences)
    p = _p_value(differences)
    return PairedDifference(*names, measure, len(differences), mean.mean, mean.low, mean.high, p, p)


def holm(differences: Sequence[PairedDifference | None]) -> list[PairedDifference | None]:
    """Return the same list with p values and intervals after Holm's correction (1979) for all of them together."""
    tested = [(d.p, index) for index, d in enumerate(differences) if d is not None and d.p is not None]
    result = list(differences)
    largest = 0.0
    for rank, (p, index) in enumerate(sorted(tested)):
        largest = max(largest, min(1.0, (len(tested) - rank) * p))
        difference = result[index]
        assert difference is not None
        result[index] = _adjusted(difference, largest)
    return result


def _adjusted(difference: PairedDifference, p: float) -> PairedDifference:
    """Return `difference` with its p value raised to `p`, and its interval widened by the same correction."""
    if difference.low is None or difference.high is None or not difference.p:
        return replace(difference, adjusted=p)
    wider = _quantile(ALPHA * difference.p / p, difference.count) / _quantile(ALPHA, difference.count)
    half = wider * (difference.high - difference.low) / 2
    return replace(difference, adjusted=p, low=difference.difference - half, high=difference.difference + half)


def _p_value(differences: Sequence[float]) -> float | None:
    if len(differences) < 2:
        return None
    from scipy import stats

    spread = statistics.stdev(differences)
    if spread == 0:  # the test divides by it
        return 1.0 if differences[0] == 0 else 0.0
    t = statistics.mean(differences) / (spread / math.sqrt(len(differences)))
    return float(2 * stats.t.sf(abs(t), len(differences) - 1))  # ttest_1samp warns where they are nearly equal


# In words.


def measure_name(measure: str) -> str:
    """Return the name of a measure of the records, for tables and sentences."""
    names = {
        "train_error": say("training error"),
        "validation_error": say("validation error"),
        "test_error": say("test error"),
        "seconds": say("training time"),
        "macs": say("MACs per image"),
        "parameters": say("parameters"),
        "gain": say("gain"),
    }
    return names[measure]


def percent_name(measure: str) -> str:
    """Return the label of an axis that shows `measure` in percent."""
    return say("{measure}, %", measure=measure_name(measure))


def mean_words(measure: str, mean: Mean | None) -> str:
    """Return a mean with its interval: 17.57% (16.20–18.94), or 12.3 s (11.8–12.8)."""
    if mean is None:
        return say("diverged")
    digits, factor, unit = (1, 1, " s") if measure == "seconds" else (2, 100, "%")
    bounds = ""
    if mean.low is not None and mean.high is not None:
        bounds = f" ({factor * mean.low:.{digits}f}–{factor * mean.high:.{digits}f})"
    return f"{factor * mean.mean:.{digits}f}{unit}{bounds}"


def difference_words(measure: str, value: float) -> str:
    """Return a difference without its unit: +3.20 points of error, or +1.3 seconds."""
    return f"{value:+.1f}" if measure == "seconds" else f"{100 * value:+.2f}"


def points_words(value: float, low: float | None, high: float | None) -> str:
    """Return a difference of errors in points with its interval: +3.20 (+1.00 to +5.40)."""
    words = difference_words("gain", value)
    if low is None or high is None:
        return words
    return f"{words} ({difference_words('gain', low)} {say('to')} {difference_words('gain', high)})"


def margin_words(measure: str, margin: float) -> str:
    """Return a margin with its unit: ±0.5 points, or ±0.3 s."""
    if measure == "seconds":
        return say("±{margin:.2g} s", margin=margin)
    return say("±{margin:g} points", margin=100 * margin)


def p_words(p: float) -> str:
    """Return a p value to two digits."""
    return "p < 0.0001" if p < 0.0001 else f"p = {p:.2g}"
