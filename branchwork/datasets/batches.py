"""From a data set to batches: validation images, order, batches and normalisation.

All are pure functions, so that a resumed or distributed training needs no other state.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from branchwork.datasets.dataset import DataSet, Split
from branchwork.errors import DataError


def train_and_validation(data: DataSet, held_out: float, seed: int, *, used: float = 1.0) -> tuple[Split, Split]:
    """Return training and validation images.

    The data's own validation images are used if there are any, else the fraction `held_out` of every class is held
    out of the training images. With 0 held out there is no validation. Only the fraction `used` of each class of the
    training images is kept, at least one image. Raises `DataError` if a class would have none left.
    """
    if held_out and data.validation is not None:
        train, validation = data.train, data.validation
    else:
        train, validation = hold_out(data.train, held_out, seed, classes=data.classes)
    if used < 1:
        generator = generator_of(seed, "use", 0)
        members = [_members(train, label) for label in torch.unique(train.labels)]
        chosen = [_draw(rows, max(1, round(used * len(rows))), generator) for rows in members]
        train = train.pick(torch.cat(chosen).sort().values)
    return train, validation


def hold_out(split: Split, fraction: float, seed: int, *, classes: Sequence[str] = ()) -> tuple[Split, Split]:
    """Divide `split` into training and validation, the latter with `fraction` of every class, drawn by `seed`.

    With a fraction of 0 the validation is empty. Raises `DataError` if a class, named as in `classes`, would have
    none left.
    """
    if fraction == 0:
        return split, split.pick(torch.empty(0, dtype=torch.int64))
    generator = generator_of(seed, "hold out", 0)
    held = []
    for label in torch.unique(split.labels):
        members = _members(split, label)
        count = round(fraction * len(members))
        if not 0 < count < len(members):
            name = classes[label] if classes else int(label)
            raise DataError(
                "class {name} has {members} images, too few to hold out {fraction:.0%} for validation: "
                "set --validation 0 or another fraction",
                name=name,
                members=len(members),
                fraction=fraction,
            )
        held.append(_draw(members, count, generator))
    return _divide(split, torch.cat(held))


def one_fold(data: DataSet, fold: int, folds: int, seed: int) -> DataSet:
    """Return `data` with one fold of its training images as its test images, and the others to train on.

    Every training image is in one of the `folds`, which are numbered from 1 and are drawn by `seed`, each with the same
    share of every class. Raises `DataError` if a class has fewer images than there are folds.
    """
    generator = generator_of(seed, "folds", 0)
    tested = []
    for label in torch.unique(data.train.labels):
        members = _members(data.train, label)
        if len(members) < folds:
            raise DataError(
                "class {name} has {members} training images, too few for {folds} folds: set --folds to {members} or "
                "less, or add pictures",
                name=data.classes[label],
                members=len(members),
                folds=folds,
            )
        tested.append(_draw(members, len(members), generator)[fold - 1 :: folds])
    train, test = _divide(data.train, torch.cat(tested))
    return replace(data, train=train, test=test)


def _divide(split: Split, rows: Tensor) -> tuple[Split, Split]:
    """Return `split` without `rows`, and these, both in the order of `split`."""
    rest = torch.ones(len(split), dtype=torch.bool)
    rest[rows] = False
    return split.pick(rest.nonzero()[:, 0]), split.pick(rows.sort().values)


def _members(split: Split, label: Tensor) -> Tensor:
    return (split.labels == label).nonzero()[:, 0]


def _draw(rows: Tensor, count: int, generator: torch.Generator) -> Tensor:
    return rows[torch.randperm(len(rows), generator=generator)[:count]]


def epoch_order(count: int, seed: int, epoch: int) -> Tensor:
    """Return the order of `count` images in an epoch, int64."""
    return torch.randperm(count, generator=generator_of(seed, "order", epoch))


def count_batches(images: int, batch_size: int) -> int:
    """Return how many batches `images` make. A single one that is left over joins the batch before it.

    Batch norm after the last pooling has no variance over one image.
    """
    return max(min(1, images), math.ceil((images - (batch_size > 1)) / batch_size))


def batches(order: Tensor, batch_size: int, start: int = 0) -> Iterator[Tensor]:
    """Yield the indices of each batch from batch number `start` on; the last may be smaller, or larger by one."""
    count = count_batches(len(order), batch_size)
    for number in range(start, count):
        yield order[number * batch_size : (number + 1) * batch_size if number + 1 < count else None]


def normalise(images: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Convert uint8 N×C×H×W to float32: (pixel / 255 − mean) / std, channel by channel.

    Training, evaluation and prediction all use it.
    """
    scale = constant(tuple(1 / (255 * s) for s in std), images.device)
    shift = constant(tuple(-m / s for m, s in zip(mean, std, strict=True)), images.device)
    return torch.addcmul(shift.view(1, -1, 1, 1), images, scale.view(1, -1, 1, 1))


@cache  # without a limit: a CUDA graph holds the address of this tensor
def constant(numbers: tuple[float, ...], device: torch.device) -> Tensor:
    """Return `numbers` on `device`, always the same tensor: a GPU waits for each number that is sent to it anew."""
    with torch.inference_mode(False):
        return torch.tensor(numbers, device=device)


def send(values: Tensor, device: torch.device) -> Tensor:
    """Return `values` on `device`. A copy from the CPU to a GPU is asynchronous, from pinned memory."""
    if device.type == "cuda" and values.device.type == "cpu":
        return values.pin_memory().to(device, non_blocking=True)
    return values.to(device)


def generator_of(seed: int, purpose: str, *position: int) -> torch.Generator:
    """Return random numbers for one `purpose` at one `position` of a training: its epoch, or its epoch and step."""
    # SeedSequence mixes its words well, so neighbouring seeds and epochs share nothing.
    words = [seed, *position, *purpose.encode()]
    return torch.Generator().manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1))
