"""Which batch fits and is fast: whole steps are tried, each of twice as many images as the one before."""

import time

import torch
from torch import Tensor

from branchwork.datasets.load import Split
from branchwork.errors import BatchTooLarge
from branchwork.training.loop import Loop
from branchwork.training.machine import available_memory, peak_memory, resident_memory

# A batch of twice as many images has to bring at least this, or the smaller one is taken: it learns more an epoch.
WORTH = 1.05
# The share of a CPU's free memory that a step may take: other programs, and the evaluation, want some too.
SHARE = 0.6
# Where the system does not tell its free memory, no more images than this are tried.
UNTOLD = 256
TRIES = 3


def fitting_batch(loop: Loop, images: Split, most: int) -> int:
    """The largest power of two, up to `most`, of images that go through whole steps of `loop` and pay.

    A step is forward, backward and optimiser. It has to fit: on a GPU by trying, on a CPU by what the step before took
    at its peak, doubled, against the memory that is free (on Linux; elsewhere at most 256 images are tried, unseen).
    And it has to be at least a twentieth faster an image than the half of it. `loop` is trained on `images`, which are
    repeated, and is not to be used afterwards. Raises `BatchTooLarge` where not even two images fit.
    """
    device = images.labels.device
    free, before = available_memory(), resident_memory()
    if device.type == "cpu" and (free is None or before is None):
        most = min(most, UNTOLD)
    best, size = 0.0, 2
    while True:
        try:
            rate = _rate(loop, images, torch.arange(size, device=device) % len(images))
        except BatchTooLarge:
            if size == 2:
                raise
            if device.type == "cuda":
                torch.cuda.empty_cache()
            return size // 2
        if rate < WORTH * best:
            return size // 2
        best, size = rate, 2 * size
        if size > most or (device.type == "cpu" and _would_not_fit(free, before)):
            return size // 2


def _rate(loop: Loop, images: Split, chosen: Tensor) -> float:
    """Images a second in the fastest of some steps."""
    seconds = []
    for _ in range(TRIES):
        began = time.perf_counter()
        float(loop.step(images, chosen))  # waits for the device
        seconds.append(time.perf_counter() - began)
    return len(chosen) / min(seconds)


def _would_not_fit(free: int | None, before: int | None) -> bool:
    """Whether twice what the process has grown by is more than it may take."""
    peak = peak_memory(torch.device("cpu"))
    return None not in (free, before, peak) and 2 * (peak - before) > SHARE * free  # type: ignore[operator]
