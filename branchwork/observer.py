"""How long-running functions report their progress without printing: to an `Observer`, such as TensorBoard."""

import importlib.util
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from branchwork.errors import RecipeError


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

    `weights` are the live tensors of the net that was validated, by key: copy any that must outlast the next step.
    """

    epoch: int
    epochs: int
    train_loss: float
    validation_accuracy: float | None
    seconds: float
    images_per_second: float
    weights: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)


class Observer:
    """Receives progress and ignores it. The subclasses in `screen.py` show it."""

    def note(self, message: str) -> None:
        """Receive a message for the user; its first line is enough to read."""

    def download(self, name: str, done: int, total: int) -> None:
        """Receive that `done` of `total` bytes of `name` have arrived; `total` is 0 while it is unknown."""

    def download_end(self) -> None:
        """The last announced download has ended, successfully or not."""

    def count(self, title: str, done: int, total: int) -> None:
        """Receive that `done` of `total` items of the task `title` are finished."""

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


class TensorBoard(Observer):
    """Writes the figures that `observer` receives to `folder`, by optimiser step: loss, speed, validation.

    A resumed training continues in the same folder; steps taken a second time replace the first.
    """

    def __init__(self, observer: Observer, folder: Path) -> None:
        self.observer, self.folder = observer, folder
        self.steps = 0
        self.writer: Any = None  # opened at the first step, whose number it needs

    def note(self, message: str) -> None:
        self.observer.note(message)

    def start(self, title: str) -> None:
        self.observer.start(title)

    def step(self, step: Step) -> None:
        self.steps = (step.epoch - 1) * step.steps + step.step
        if self.writer is None:
            from torch.utils.tensorboard.writer import SummaryWriter

            self.writer = SummaryWriter(str(self.folder), purge_step=self.steps)
        self._write({"loss/train": step.loss, "images per second": step.images_per_second})
        self.observer.step(step)

    def epoch(self, epoch: Epoch) -> None:
        self._write({"loss/epoch": epoch.train_loss, "validation accuracy": epoch.validation_accuracy})
        self.observer.epoch(epoch)

    def end(self) -> None:
        if self.writer is not None:
            self.writer.close()
        self.observer.end()

    def _write(self, figures: dict[str, float | None]) -> None:
        for name, value in figures.items():
            if value is not None:
                self.writer.add_scalar(name, value, self.steps)


def need_tensorboard() -> None:
    """Raise `RecipeError` if tensorboard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise RecipeError('--log tensorboard needs the extra `log`: pip install "branchwork[log]", or leave it out')
