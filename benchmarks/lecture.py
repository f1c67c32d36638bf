"""The lecture's script, rewritten from its description, and the same with its data in memory.

    python -m benchmarks.lecture script inception --seed 0 --json FILE

torchvision is not a dependency, so the work of its MNIST, ToTensor and Normalize is done here, call by call. Compared
with torchvision 0.28, the tensors are equal bit for bit, and an image takes 75 µs against its 81 µs.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from cyclopts import App
from PIL import Image
from torch import Tensor, nn
from torch.optim import SGD
from torch.utils.data import DataLoader, Dataset

from benchmarks.process import MEAN, STD, JsonFile, Outcome, as_floats, count_correct, timed
from branchwork.catalogue.resolve import build_net
from branchwork.datasets.dataset import Split
from branchwork.datasets.load import load_data

EPOCHS, BATCH_SIZE = 10, 64
# The nets as a learner has them, in a script of their own.
SCRIPT = Path(__file__).parents[1] / "tests/helpers/lecture.py"
CLASSES = {"inception": "InceptionNet", "residual": "ResidualNet"}
# For an estimate: warm-up steps, which do not count, and batches of the test set.
WARM_UP, TEST_BATCHES = 20, 30

app = App(result_action="return_value")


class Batches(Protocol):
    """An iterable that yields the batches of one more epoch at each iteration."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...
    def __len__(self) -> int: ...


class ToTensor:
    def __call__(self, picture: Image.Image) -> Tensor:
        pixels = torch.from_numpy(np.array(picture, np.uint8, copy=True))
        pixels = pixels.view(picture.size[1], picture.size[0], len(picture.getbands()))
        return pixels.permute((2, 0, 1)).contiguous().to(dtype=torch.get_default_dtype()).div(255)


class Normalize(nn.Module):
    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.mean, self.std = mean, std

    def forward(self, image: Tensor) -> Tensor:
        image = image.clone()
        mean = torch.as_tensor(self.mean, dtype=image.dtype, device=image.device)
        std = torch.as_tensor(self.std, dtype=image.dtype, device=image.device)
        if (std == 0).any():
            raise ValueError("a standard deviation is 0")
        return image.sub_(mean.view(-1, 1, 1)).div_(std.view(-1, 1, 1))


class Images(Dataset[tuple[Tensor, int]]):
    """One image at a time: from an array to a PIL image to a normalised tensor, as torchvision does."""

    def __init__(self, split: Split) -> None:
        self.images, self.labels = split.images[:, 0], split.labels
        self.transforms = (ToTensor(), Normalize((MEAN,), (STD,)))

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        pixels, label = self.images[index], int(self.labels[index])
        image: Any = Image.fromarray(pixels.numpy())
        for transform in self.transforms:
            image = transform(image)
        return image, label


class InMemory:
    """All images in one tensor, normalised once."""

    def __init__(self, split: Split, shuffle: bool) -> None:
        self.images, self.labels = as_floats(split.images), split.labels
        self.shuffle = shuffle

    def __len__(self) -> int:
        return -(-len(self.labels) // BATCH_SIZE)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.labels)) if self.shuffle else torch.arange(len(self.labels))
        for chosen in order.split(BATCH_SIZE):
            yield self.images[chosen], self.labels[chosen]


def make_net(net: str) -> nn.Module:
    return build_net(f"{SCRIPT}:{CLASSES[net]}")


def make_batches(method: str, split: Split, shuffle: bool) -> Batches:
    if method == "memory":
        return InMemory(split, shuffle)
    return DataLoader(Images(split), batch_size=BATCH_SIZE, shuffle=shuffle, num_workers=0)


def train_on(net: nn.Module, optimizer: SGD, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> None:
    criterion = nn.CrossEntropyLoss()
    running_loss = 0.0
    for step, (images, labels) in enumerate(batches, 1):
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = criterion(net(images), labels)
        loss.backward()
        optimizer.step()
        running_loss += loss.item()
        if step % 300 == 0:
            print(f"step {step}: loss {running_loss / 300:.3f}")
            running_loss = 0.0


def accuracy_on(net: nn.Module, batches: Iterable[tuple[Tensor, Tensor]], device: torch.device) -> float:
    correct = total = 0
    with torch.no_grad():
        for images, labels in batches:
            correct += count_correct(net, images.to(device), labels.to(device))
            total += len(labels)
    return correct / total


def train(net: nn.Module, train_batches: Batches, test_batches: Batches, device: torch.device) -> Outcome:
    """Train all epochs, and evaluate the test set after each."""
    optimizer = SGD(net.parameters(), lr=0.01, momentum=0.5)
    seconds, accuracy = 0.0, 0.0
    for _ in range(EPOCHS):
        seconds += timed(device, partial(train_on, net, optimizer, train_batches, device))
        accuracy = accuracy_on(net, test_batches, device)
    return Outcome(seconds, accuracy)


def estimate(
    net: nn.Module, train_batches: Batches, test_batches: Batches, device: torch.device, steps: int
) -> Outcome:
    """Extrapolate the outcome of `train` from `steps` steps (at most an epoch) and part of the test set."""
    optimizer = SGD(net.parameters(), lr=0.01, momentum=0.5)
    feed, test_feed = iter(train_batches), iter(test_batches)
    steps = min(steps, len(train_batches) - WARM_UP)
    test_steps = min(TEST_BATCHES, len(test_batches))
    warm_up = timed(device, lambda: train_on(net, optimizer, islice(feed, WARM_UP), device))
    trained = timed(device, lambda: train_on(net, optimizer, islice(feed, steps), device))
    tested = timed(device, lambda: accuracy_on(net, islice(test_feed, test_steps), device))
    train_seconds = trained / steps * len(train_batches) * EPOCHS
    test_seconds = tested / test_steps * len(test_batches) * EPOCHS
    extra = train_seconds + test_seconds - (warm_up + trained + tested)
    return Outcome(train_seconds, None, estimated=True, extra_seconds=extra)


@app.default
def main(
    method: Literal["script", "memory"],
    net: str,
    /,
    *,
    seed: int,
    json_file: JsonFile,
    data: str = "mnist",
    device: str = "cpu",
    steps: int | None = None,
) -> None:
    data_set = load_data(data)
    torch.manual_seed(seed)
    where = torch.device(device)
    model = make_net(net).to(where)
    feeds = make_batches(method, data_set.train, True), make_batches(method, data_set.test, False)
    outcome = train(model, *feeds, where) if steps is None else estimate(model, *feeds, where, steps)
    outcome.write(json_file)


if __name__ == "__main__":
    app()
