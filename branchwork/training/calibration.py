"""Whether a net's probabilities can be believed: of the answers given with 90%, are 90% right?"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from branchwork.figures import GOOD, INK, plain_axes
from branchwork.language import say

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BINS = 15


@dataclass(frozen=True)
class Bin:
    """Images whose answers have a probability from `low` to `high`: how many, its mean, and their accuracy."""

    low: float
    high: float
    images: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Calibration:
    """The expected calibration error: the mean over images of `|accuracy − confidence|` of their bin, a fraction.

    `ece` has 15 bins of equal width, as papers have it (Guo et al. 2017); `bins` are those that hold images. A good
    net gives most answers with more than 93% and so has nearly all images in the last one: `ece_equal_mass` has 15 bins
    with equal numbers of images. Both are above 0 by chance for a perfect net, the more so the fewer the images.
    """

    ece: float
    ece_equal_mass: float
    bins: tuple[Bin, ...]


def calibrate(confidence: Tensor, right: Tensor) -> Calibration:
    """Return the calibration of answers with probabilities `confidence`, of which those in `right`, bool, are right."""
    confidence, order = confidence.double().sort(stable=True)
    right = right[order].double()
    # Bins of equal width are open below, so that a probability of exactly 1/15 is in the first.
    edges = torch.linspace(0, 1, BINS + 1, dtype=torch.float64)[1:-1]
    width = _bins(confidence, right, torch.bucketize(confidence, edges))
    mass = _bins(confidence, right, torch.arange(len(right)) * BINS // len(right))
    return Calibration(_error(width), _error(mass), width)


def _bins(confidence: Tensor, right: Tensor, numbers: Tensor) -> tuple[Bin, ...]:
    """Return the bins that hold images; `numbers` has the bin of each, in ascending order."""
    found = []
    for number in sorted(set(numbers.tolist())):
        inside, hits = confidence[numbers == number], right[numbers == number]
        found.append(Bin(float(inside[0]), float(inside[-1]), len(hits), float(inside.mean()), float(hits.mean())))
    return tuple(found)


def _error(bins: tuple[Bin, ...]) -> float:
    return sum(each.images * abs(each.accuracy - each.confidence) for each in bins) / sum(each.images for each in bins)


def draw_reliability(axes: "Axes", calibration: Calibration) -> None:
    """Draw the accuracy of each bin against its confidence: on the diagonal, a probability means what it says.

    The area of a point grows with its images.
    """
    bins, most = calibration.bins, max(each.images for each in calibration.bins)
    axes.plot([0, 100], [0, 100], color=INK, linewidth=0.8, linestyle=":")
    axes.scatter(
        [100 * each.confidence for each in bins],
        [100 * each.accuracy for each in bins],
        [10 + 150 * each.images / most for each in bins],
        color=GOOD,
        clip_on=False,
        zorder=3,
    )
    axes.set(xlim=(0, 100), ylim=(0, 100), aspect="equal")
    axes.set_xlabel(say("probability of the answer, %"))
    axes.set_ylabel(say("of these, right, %"))
    plain_axes(axes)
