"""What `explain` found."""

from dataclasses import dataclass
from typing import Literal

from branchwork.explaining.ranks import Verdict

Measure = Literal["weight_rms", "weight_norm", "activation_rms", "macs"]


@dataclass(frozen=True)
class Contribution:
    """A branch of a join. `lost_by_mean` and `lost_by_zero` are what the accuracy falls by without it, fractions.

    It is taken out as `ablation.Removal` says; the intervals are `metrics.paired_interval`. `weight_rms` is the root of
    the mean square of all numbers in its kernels and matrices, without biases and norms, and `weight_norm` the root of
    their sum of squares; None where it has none. `activation_rms` is that of what it gives to the join. `parameters`
    that another branch shares count in both. `macs` are an image's; `milliseconds` those of its operations, as written,
    for a batch of `timed_batch` images.
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
    """How the order of branches by one measure goes with their order by what is lost when their mean is put in place.

    Over the branches of one join, or of all where `join` is None, that have the measure: `count` of them. `spearman` is
    None where all are equal; `verdict` is `ranks.judge` of the interval of Spearman's.
    """

    measure: Measure
    join: str | None
    count: int
    spearman: float | None
    interval: tuple[float, float] | None
    verdict: Verdict


@dataclass(frozen=True)
class Explanation:
    """What the branches of a run's net contribute, measured on `images` images of `data`.

    `residuals` are, for each join of a shortcut, the mean over images of ‖F(x)‖/‖x‖, the size of the residual beside
    that of the shortcut at the join. `single` are joins with one branch, from which nothing can be taken.
    """

    net: str
    data: str
    split: Literal["validation", "test"]
    images: int
    accuracy: float
    interval: tuple[float, float]
    branches: tuple[Contribution, ...]
    residuals: dict[str, float]
    single: tuple[str, ...]
    relations: tuple[Relation, ...]
    timed_batch: int
    threads: int
    machine: str


@dataclass(frozen=True)
class Evidence:
    """What a branch of a join says for a class, on one picture.

    `share` is its part of the difference of `JoinEvidence`. `lost_blind` is what the class's logit falls by when the
    branch alone gives what it gives for the black picture, `lost_by_zero` when it gives zeros; `probability_blind` is
    what is left of the class's probability in the first case.
    """

    branch: str
    share: float
    lost_blind: float
    lost_by_zero: float
    probability_blind: float


@dataclass(frozen=True)
class JoinEvidence:
    """What the branches of a join say for a class: integrated gradients (Sundararajan et al. 2017) at the join.

    The shares add up to `difference`, the class's logit less the one when all branches of the join give what they give
    for the black picture; `error` is by how much they do not, after so many `steps`, and `complete` whether that is
    within the tolerance.
    """

    join: str
    branches: tuple[Evidence, ...]
    difference: float
    error: float
    steps: int
    complete: bool


@dataclass(frozen=True)
class PictureExplanation:
    """What speaks for a class, on one picture. The maps are H×W, as the net got the picture.

    `probability` and `logit` are those of `target`, which is by default the class that the net `predicted`. `gradients`
    are integrated gradients from the black picture, whose logit is `black_logit`, summed over channels: all of them add
    up to the difference, but for `error` after so many `steps`. `cam` is Grad-CAM (Selvaraju et al. 2017) at the node
    `layer`, None where no layer has height and width. `occlusion` is what the logit falls by where a `window`, height
    and width, is black, as the mean over the windows that cover a pixel (Zeiler and Fergus 2014).
    """

    image: str
    predicted: str
    target: str
    probability: float
    logit: float
    black_logit: float
    layer: str | None
    cam: tuple[tuple[float, ...], ...] | None
    gradients: tuple[tuple[float, ...], ...]
    error: float
    steps: int
    complete: bool
    window: tuple[int, int]
    occlusion: tuple[tuple[float, ...], ...]
    joins: tuple[JoinEvidence, ...]
