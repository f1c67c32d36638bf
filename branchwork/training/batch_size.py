"""Which batch fits, and which of those is fast: whole steps are tried, each of twice as many images as the last."""

import time
from collections.abc import Callable

import torch

from branchwork.datasets.dataset import Split
from branchwork.errors import BatchTooLarge
from branchwork.files import available_memory
from branchwork.training.machine import peak_memory, resident_memory
from branchwork.training.recipe import Recipe
from branchwork.training.state import TrainState
from branchwork.training.step import Moment, train_step

# A larger batch has to be faster by at least this, or the smaller one is taken: it learns more an epoch.
WORTH = 1.05
# The share of a CPU's free memory that a step may take: other programs, and the evaluation, want some too.
SHARE = 0.6
# Where the system does not tell its free memory, no more images than this are tried.
UNTOLD = 256
# Of each size, so many steps at least, for so many seconds.
TRIES, TRY_SECONDS = 3, 0.1


def fitting_batch(rate_of: Callable[[int], float], most: int, device: torch.device) -> int:
    """Return the smallest power of two, up to `most`, of images in a step that are as fast as larger steps.

    `rate_of` takes steps of so many images, and gives images per second. A step has to fit: on a GPU that is tried, on
    a CPU twice the peak of the step before is compared with the free memory (on Linux; elsewhere at most 256 images
    are tried). And no larger step that fits is more than a twentieth faster per image. Raises `BatchTooLarge` if not
    even two images fit.
    """
    free, before = available_memory(), resident_memory()
    if device.type == "cpu" and (free is None or before is None):
        most = min(most, UNTOLD)
    rates: dict[int, float] = {}
    size = 2
    while True:
        try:
            rates[size] = rate_of(size)
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


def images_per_second(batch_size: int, *, state: TrainState, images: Split, recipe: Recipe) -> float:
    """Return the rate of the fastest of some steps of `batch_size` images, for which `images` are repeated.

    The steps train the net of `state`: it is not to be used afterwards.
    """
    chosen = torch.arange(batch_size, device=images.labels.device) % len(images)
    seconds: list[float] = []
    while len(seconds) < TRIES or sum(seconds) < TRY_SECONDS:
        began = time.perf_counter()
        loss = train_step(
            state, images, chosen, recipe=recipe, moment=Moment(0, 0, 0), learning_rate=recipe.learning_rate
        )
        float(loss)  # waits for the device
        seconds.append(time.perf_counter() - began)
    return batch_size / min(seconds)


def _would_not_fit(free: int | None, before: int | None) -> bool:
    """Whether twice what the process has grown by is more than it may take."""
    peak = peak_memory(torch.device("cpu"))
    return None not in (free, before, peak) and 2 * (peak - before) > SHARE * free  # type: ignore[operator]
