"""Rank correlations with ties, and what so few pairs allow one to say.

scipy is imported where it is needed, since it takes a second.
"""

import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from branchwork.training.metrics import Z_95

Verdict = Literal["yes", "no", "too close to call", "too few branches to tell"]

# Of four pairs even a perfect order comes about by chance in 1 of 12, either way round.
FEWEST = 5
# A correlation below this would explain less than a quarter of the order.
WEAK = 0.5


def spearman(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Spearman's rank correlation, ties with their mean rank; None where there are not two ranks on both sides."""
    if len(set(one)) < 2 or len(set(other)) < 2:
        return None
    from scipy.stats import rankdata

    return float(np.corrcoef(rankdata(one), rankdata(other))[0, 1])


def rank_interval(correlation: float, count: int) -> tuple[float, float] | None:
    """The 95% interval of Spearman's correlation of `count` pairs (Bonett and Wright 2000); None for fewer than 5."""
    if count < FEWEST:
        return None
    # Fisher's z of a perfect order is infinite: it is taken as half a step from the next order.
    most = 1 - 6 / (count * (count**2 - 1))
    correlation = min(most, max(-most, correlation))
    half = Z_95 * math.sqrt((1 + correlation**2 / 2) / (count - 3))
    return math.tanh(math.atanh(correlation) - half), math.tanh(math.atanh(correlation) + half)


def judge(count: int, interval: tuple[float, float] | None) -> Verdict:
    """Whether one order of `count` branches goes with another, as far as the interval of their correlation tells.

    None stands for a correlation that nothing is known of.
    """
    if count < FEWEST:
        return "too few branches to tell"
    if interval is None:
        return "too close to call"
    low, high = interval
    # A weak correlation is a no, however surely it is above 0.
    return "no" if high < WEAK else "yes" if low > 0 else "too close to call"
