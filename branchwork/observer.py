"""How long-running functions report their progress without printing."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Step:
    """The progress of a training after one optimiser step."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Epoch:
    """One finished epoch. `validation_accuracy` is a fraction, None if nothing is held out.

    `weights` are the live tensors of the net that was validated, by their keys: copy what is to outlast the next step.
    """

    epoch: int
    epochs: int
    train_loss: float
    validation_accuracy: float | None
    seconds: float
    images_per_second: float
    weights: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


class Observer:
    """Receives progress and ignores it. The command line's subclass draws a progress bar."""

    def note(self, message: str) -> None:
        """Receive something that the user should read; the first line says it all."""

    def download(self, name: str, done: int, total: int) -> None:
        """Receive that `done` of `total` bytes of `name` have arrived; `total` is 0 while it is unknown."""

    def download_end(self) -> None:
        """The last announced download has ended, successfully or not."""

    def count(self, title: str, done: int, total: int) -> None:
        """Receive that `done` of `total` files are finished; `title` says of which work."""

    def count_end(self) -> None:
        """The last announced count has ended, successfully or not."""

    def start(self, title: str) -> None:
        """A training called `title` begins."""

    def step(self, step: Step) -> None:
        """An optimiser step is done."""

    def epoch(self, epoch: Epoch) -> None:
        """An epoch is done."""

    def end(self) -> None:
        """The training that `start` announced has ended, successfully or not."""
