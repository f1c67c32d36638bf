"""Small nets, recipes and observers for tests of training, and how two runs are compared."""

import signal
from pathlib import Path

import safetensors.torch
import torch
from torch import nn

import branchwork as bw
from branchwork.observer import Observer


class Small(nn.Sequential):
    """A convolution and a linear layer, which train in no time."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 8, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))


class Normed(nn.Sequential):
    """A small net with batch norms, which have statistics and a count beside their weights."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 8, 5, stride=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 5, stride=2), nn.BatchNorm2d(8),
            nn.ReLU(), nn.Flatten(), nn.Linear(128, 10),
        )  # fmt: skip


SMALL, NORMED = f"{__name__}:Small", f"{__name__}:Normed"
# Batches of 64 from 1,350 images: the last has 6.
SGD = bw.course().but({"epochs": 2, "learning_rate": 0.05, "momentum": 0.9, "validation": 0.1})
EXACT = SGD.but({"precision": "fp64"})


class StopAt(Observer):
    """Presses Ctrl-C at one optimiser step; where losses are read only after several, as on a GPU, at the next read."""

    def __init__(self, epoch, step):
        self.at, self.pressed = (epoch, step), False

    def step(self, step):
        if (step.epoch, step.step) >= self.at and not self.pressed:
            self.pressed = True
            signal.raise_signal(signal.SIGINT)


def weights(folder: Path | str, file: str = "model.safetensors") -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(Path(folder) / file)


def last(folder: str) -> dict[str, torch.Tensor]:
    """The weights of the last step, in the dtype of the training."""
    return {k[4:]: v for k, v in weights(folder, "last/state.safetensors").items() if k.startswith("net.")}


def same(first: Path | str, second: Path | str) -> bool:
    """Whether two runs ended with the same weights, kept and last, and the same optimiser state, bit for bit."""
    return all(
        a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)
        for file in ("model.safetensors", "last/state.safetensors")
        for a, b in [(weights(first, file), weights(second, file))]
    )
