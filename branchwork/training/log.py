"""A training's figures, written for TensorBoard while it runs."""

import importlib.util
from pathlib import Path
from typing import Any

from branchwork.errors import RecipeError
from branchwork.observer import Epoch, Observer, Step

LOG = "tensorboard"


def need_tensorboard() -> None:
    """Raise `RecipeError` if tensorboard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        raise RecipeError("--log tensorboard needs the extra `log`: pip install 'branchwork[log]', or leave it out")


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
