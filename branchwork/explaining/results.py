"""The values that `explain` returns."""

from dataclasses import dataclass
from typing import Literal

from branchwork.explaining.ranks import Verdict
from branchwork.language import say
from branchwork.shown import Shown

Measure = Literal["weight_rms", "weight_norm", "activation_rms", "macs"]


@dataclass(frozen=True)
class Contribution:
    """What one branch of a join contributes, and what it costs.

    `lost_by_mean` and `lost_by_zero` are by how much the accuracy falls, a fraction, if the branch is replaced by its
    mean or by zeros, with `evaluate.paired_interval`. `weight_rms` is the root mean square of all numbers in its
    kernels and matrices, without biases and norms, and `weight_norm` the root of their sum of squares; None if it has
    none. `activation_rms` is that of what it gives to the join. Parameters that it shares with another branch count in
    both. `macs` are per image; `milliseconds` are those of its operations, as written, for `timed_batch` images.
    """

    join: str
    branch: str
    lost_by_mean: float
    lost_by_mean_interval: tuple[float, float]
    lost_by_zero: float
    lost_by_zero_interval: tuple[float, float]
    weight_rms: float | None
    weight_norm: float | None
    activation_rms: float
    parameters: int
    macs: int
    milliseconds: float


@dataclass(frozen=True)
class Relation:
    """How the order of branches by one measure agrees with their order by the accuracy lost without them.

    Over the `count` branches that have the measure, of one join or, if `join` is None, of all. `spearman` is None if
    all are equal; `verdict` is what `ranks.verdict_of` makes of its interval.
    """

    measure: Measure
    join: str | None
    count: int
    spearman: float | None
    interval: tuple[float, float] | None
    verdict: Verdict


@dataclass(frozen=True)
class Explanation(Shown):
    """What the branches of a run's net contribute, measured on `images` images of `data`; `macs` are the whole net's.

    `residuals` are, for each join with a shortcut, the mean over images of ‖F(x)‖/‖x‖: the size of the residual beside
    that of the shortcut. `single` are joins of one branch, which cannot be taken out.
    """

    net: str
    data: str
    split: Literal["validation", "test"]
    images: int
    accuracy: float
    interval: tuple[float, float]
    macs: int
    branches: tuple[Contribution, ...]
    residuals: dict[str, float]
    single: tuple[str, ...]
    relations: tuple[Relation, ...]
    timed_batch: int
    threads: int
    machine: str

    @property
    def measured_on(self) -> str:
        """What it was measured on, in words."""
        if self.split == "validation":
            return say("{images:,} validation images of {data}", **vars(self))
        return say("{images:,} test images of {data}", **vars(self))


@dataclass(frozen=True)
class BranchEvidence:
    """The evidence of a branch for a class, on one picture.

    `share` is its part of the difference in `JoinEvidence`. `lost_blind` is how much the class's logit falls if only
    this branch reads a black picture, and `probability_blind` is the probability of the class then; `lost_by_zero` is
    how much the logit falls if the branch returns zeros.
    """

    branch: str
    share: float
    lost_blind: float
    lost_by_zero: float
    probability_blind: float


@dataclass(frozen=True)
class JoinEvidence:
    """The evidence of a join's branches for a class: integrated gradients (Sundararajan et al. 2017) at the join.

    The shares add up to `difference`: the class's logit, minus that with all branches of the join as for the black
    picture. `error` is by how much they do not after `steps` steps; `complete` tells whether that is within tolerance.
    """

    join: str
    branches: tuple[BranchEvidence, ...]
    difference: float
    error: float
    steps: int
    complete: bool


@dataclass(frozen=True)
class PictureExplanation(Shown):
    """What supports a class on one picture. Heat maps are H×W, as the net got the picture.

    `probability` and `logit` are those of `target`, by default the class that the net `predicted`. `gradients` are
    integrated gradients from the black picture, summed over channels; all of them add up to `logit - black_logit`, but
    for `error` after `steps` steps. `cam` is Grad-CAM (Selvaraju et al. 2017) at the operation `layer`, None if none
    has height and width. `occlusion` is by how much the logit falls if a `window`, height and width, is black: the mean
    over the windows that cover a pixel (Zeiler and Fergus 2014).
    """

    image: str
    predicted: str
    target: str
    probability: float
    logit: float
    black_logit: float
    layer: str | None
    cells: tuple[int, int] | None
    cam: tuple[tuple[float, ...], ...] | None
    gradients: tuple[tuple[float, ...], ...]
    error: float
    steps: int
    complete: bool
    window: tuple[int, int]
    occlusion: tuple[tuple[float, ...], ...]
    joins: tuple[JoinEvidence, ...]
