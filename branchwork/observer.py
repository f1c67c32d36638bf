"""How long-running functions tell of their progress without printing."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Step:
    """Where a training stands after one optimiser step."""

    epoch: int
    epochs: int
    step: int
    steps: int
    loss: float
    images_per_second: float
    seconds_left: float


@dataclass(frozen=True)
class Epoch:
    """One finished epoch. Accuracy is a fraction; None where nothing is held out for validation."""

    epoch: int
    epochs: int
    train_loss: float
    validation_accuracy: float | None
    seconds: float
    images_per_second: float


class Observer:
    """Sees what happens and does nothing. The command line's own draws a progress bar."""

    def note(self, message: str) -> None:
        """Something that the user should read; its first line says it all."""

    def download(self, name: str, done: int, total: int) -> None:
        """`done` of `total` bytes of `name` are here; total is 0 while it is unknown."""

    def download_end(self) -> None:
        """The download that was told of last is over, well or badly."""

    def count(self, title: str, done: int, total: int) -> None:
        """`done` of `total` files are done with, of what `title` says in words."""

    def count_end(self) -> None:
        """The counting that was told of last is over, well or badly."""

    def start(self, title: str) -> None:
        """A training called `title` begins."""

    def step(self, step: Step) -> None:
        """An optimiser step is done."""

    def epoch(self, epoch: Epoch) -> None:
        """An epoch is done."""

    def end(self) -> None:
        """The training that `start` announced is over, well or badly."""
