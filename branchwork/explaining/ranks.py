"""Rank correlation with ties, and what can be concluded from a few pairs.

scipy is imported inside the function, since that takes a second.
"""

import math
from collections.abc import Sequence
from typing import Literal

from branchwork.language import mark
from branchwork.training.evaluate import Z_95

Verdict = Literal["yes", "no", "too close to call", "too few branches to tell"]

# Four pairs are in perfect order, one way or the other, in 1 of 12 cases by chance alone.
FEWEST = 5
# A correlation below this would explain less than a quarter of the order.
WEAK = 0.5


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, ties by their mean rank; None if all of one side are equal."""
    if len(set(one)) < 2 or len(set(other)) < 2:
        return None
    from scipy.stats import spearmanr

    return float(spearmanr(one, other).statistic)


def rank_interval(correlation: float, count: int) -> tuple[float, float] | None:
    """Return the 95% interval of a Spearman correlation (Bonett and Wright 2000); None for fewer than 5 pairs."""
    if count < FEWEST:
        return None
    # Fisher's z of a perfect order is infinite: take half a step from the next order instead.
    most = 1 - 6 / (count * (count**2 - 1))
    correlation = min(most, max(-most, correlation))
    half = Z_95 * math.sqrt((1 + correlation**2 / 2) / (count - 3))
    return math.tanh(math.atanh(correlation) - half), math.tanh(math.atanh(correlation) + half)


def verdict_of(count: int, interval: tuple[float, float] | None) -> Verdict:
    """Return whether two orders of `count` branches agree, as far as the interval of their correlation tells.

    None as the interval means that nothing is known of the correlation.
    """
    if count < FEWEST:
        return mark("too few branches to tell")
    low, high = interval or (-1, 1)
    if high < WEAK:  # a weak correlation is a no, however surely it is above 0
        return mark("no")
    return mark("yes") if low > 0 else mark("too close to call")
