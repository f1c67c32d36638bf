"""Which batch fits and is fast: whole steps are tried, each of twice as many images as the one before."""

import time

import torch
from torch import Tensor

from branchwork.datasets.load import Split
from branchwork.errors import BatchTooLarge
from branchwork.training.loop import Loop
from branchwork.training.machine import available_memory, peak_memory, resident_memory

# A larger batch has to be faster by at least this, or the smaller one is taken: it learns more an epoch.
WORTH = 1.05
# The share of a CPU's free memory that a step may take: other programs, and the evaluation, want some too.
SHARE = 0.6
# Where the system does not tell its free memory, no more images than this are tried.
UNTOLD = 256
# Of each size, so many steps at least, for so many seconds.
TRIES, TRY_SECONDS = 3, 0.1


def fitting_batch(loop: Loop, images: Split, most: int) -> int:
    """The smallest power of two, up to `most`, of images in whole steps of `loop` that is as fast as larger ones.

    A step is forward, backward and optimiser. It has to fit: on a GPU by trying, on a CPU by what the step before took
    at its peak, doubled, against the memory that is free (on Linux; elsewhere at most 256 images are tried, unseen).
    And of those that fit, none is to be more than a twentieth faster an image. `loop` is trained on `images`, which
    are repeated, and is not to be used afterwards. Raises `BatchTooLarge` where not even two images fit.
    """
    device = images.labels.device
    free, before = available_memory(), resident_memory()
    if device.type == "cpu" and (free is None or before is None):
        most = min(most, UNTOLD)
    rates: dict[int, float] = {}
    size = 2
    while True:
        try:
            rates[size] = _rate(loop, images, torch.arange(size, device=device) % len(images))
        except BatchTooLarge:
            if not rates:
                raise
            if device.type == "cuda":
                torch.cuda.empty_cache()
            break
        *smaller, previous, last = 0.0, *rates.values()
        # One that brings nothing may have been disturbed; two in a row were not.
        if smaller and max(previous, last) < WORTH * max(smaller):
            break
        if 2 * size > most or (device.type == "cpu" and _would_not_fit(free, before)):
            break
        size *= 2
    return min(size for size, rate in rates.items() if WORTH * rate >= max(rates.values()))


def _rate(loop: Loop, images: Split, chosen: Tensor) -> float:
    """Images a second in the fastest of some steps."""
    seconds: list[float] = []
    while len(seconds) < TRIES or sum(seconds) < TRY_SECONDS:
        began = time.perf_counter()
        float(loop.step(images, chosen))  # waits for the device
        seconds.append(time.perf_counter() - began)
    return len(chosen) / min(seconds)


def _would_not_fit(free: int | None, before: int | None) -> bool:
    """Whether twice what the process has grown by is more than it may take."""
    peak = peak_memory(torch.device("cpu"))
    return None not in (free, before, peak) and 2 * (peak - before) > SHARE * free  # type: ignore[operator]
