"""What training processes share: their images, their clock, and the outcome that they report."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Annotated

import torch
from cyclopts import Parameter
from torch import Tensor, nn

from branchwork.files import write_json

MEAN, STD = 0.1307, 0.3081

JsonFile = Annotated[Path, Parameter(name="--json")]


@dataclass(frozen=True)
class Outcome:
    """The result of one training. `train_seconds` excludes evaluations; `test_accuracy` is a fraction.

    An `estimated` outcome was not trained to its end: `extra_seconds` is what the rest would have taken, evaluations
    included, and there is no accuracy.
    """

    train_seconds: float
    test_accuracy: float | None
    estimated: bool = False
    extra_seconds: float = 0.0

    def write(self, path: Path) -> None:
        write_json(path, asdict(self))


def timed(device: torch.device, work: Callable[[], object]) -> float:
    """Return the seconds that `work` takes, on a GPU until it has finished."""
    began = perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return perf_counter() - began


def as_floats(images: Tensor) -> Tensor:
    """Normalise images as the lecture does, in place, so that no second copy counts as memory."""
    return images.float().div_(255).sub_(MEAN).div_(STD)


def count_correct(net: nn.Module, images: Tensor, labels: Tensor) -> int:
    return int((net(images).argmax(1) == labels).sum())
