"""What several seeds say: a mean with its interval, a difference on the same seeds, and whether it is one.

scipy is imported where it is needed, since it takes a second.
"""

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

# Differences with a p value below this are taken for real.
ALPHA = 0.05


@dataclass(frozen=True)
class Mean:
    """A mean over `count` seeds and its 95% interval; `low` and `high` are None where there is one seed only."""

    count: int
    mean: float
    low: float | None
    high: float | None

    def overlaps(self, other: "Mean") -> bool | None:
        """Whether the intervals have a point in common; None where one of the two has no interval."""
        if self.low is None or self.high is None or other.low is None or other.high is None:
            return None
        return self.low <= other.high and other.low <= self.high


@dataclass(frozen=True)
class Comparison:
    """`first` minus `second` in `measure`, seed by seed: the mean difference with its 95% interval, and a paired test.

    `p` is that of the paired t-test, `adjusted` the same after Holm's correction for the comparisons made with it.
    `low`, `high`, `p` and `adjusted` are None where fewer than two seeds have both.
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
        """Whether `first` has more of the measure than `second`.

        `same` where the interval lies within ±`margin`; `more` and `less` where the difference is significant after
        the correction and larger than `margin`; else `open`.
        """
        if self.low is None or self.high is None or self.adjusted is None:
            return "open"
        if -margin <= self.low and self.high <= margin:
            return "same"
        if self.adjusted >= ALPHA or abs(self.difference) <= margin:
            return "open"
        return "more" if self.difference > 0 else "less"


def mean_interval(values: Iterable[float]) -> Mean:
    """The mean with Student's 95% interval, t·s/√n. Raises `ValueError` where there is no value."""
    values = list(values)
    if not values:
        raise ValueError("there is no value to take the mean of")
    mean = statistics.mean(values)
    if len(values) == 1:
        return Mean(1, mean, None, None)
    half = _half_width(values)
    return Mean(len(values), mean, mean - half, mean + half)


def paired(
    first: Mapping[int, float], second: Mapping[int, float], names: tuple[str, str], measure: str
) -> Comparison | None:
    """Compare by seed, over the seeds that both have; None where there is none."""
    differences = [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]
    if not differences:
        return None
    mean = mean_interval(differences)
    p = _p_value(differences)
    return Comparison(*names, measure, len(differences), mean.mean, mean.low, mean.high, p, p)


def holm(comparisons: Sequence[Comparison | None]) -> list[Comparison | None]:
    """The comparisons with `adjusted` set for all of them together (Holm 1979): in their order, gaps and all."""
    tested = [(c.p, index) for index, c in enumerate(comparisons) if c is not None and c.p is not None]
    adjusted = list(comparisons)
    before = 0.0
    for rank, (p, index) in enumerate(sorted(tested)):
        before = max(before, min(1.0, (len(tested) - rank) * p))
        comparison = adjusted[index]
        assert comparison is not None
        adjusted[index] = replace(comparison, adjusted=before)
    return adjusted


def _half_width(values: Sequence[float]) -> float:
    from scipy import stats

    return float(stats.t.ppf(0.975, len(values) - 1)) * statistics.stdev(values) / math.sqrt(len(values))


def _p_value(differences: Sequence[float]) -> float | None:
    if len(differences) < 2:
        return None
    from scipy import stats

    spread = statistics.stdev(differences)
    if spread == 0:  # the test divides by it
        return 1.0 if differences[0] == 0 else 0.0
    t = statistics.mean(differences) / (spread / math.sqrt(len(differences)))
    return float(2 * stats.t.sf(abs(t), len(differences) - 1))
