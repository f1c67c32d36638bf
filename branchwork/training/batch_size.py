"""The measured batch size: whole steps are timed with doubling batches, until one no longer fits or gains nothing."""

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

# A larger batch must be faster by at least this factor: a smaller one learns more per epoch.
WORTH = 1.05
# The share of a CPU's free memory that a step may take: other programs and the evaluation need some too.
SHARE = 0.6
# If the free memory is unknown, no more images than this are tried.
UNTOLD = 256
# Each size is timed for at least this many steps and seconds.
TRIES, TRY_SECONDS = 3, 0.1


def fitting_batch(rate_of: Callable[[int], float], most: int, device: torch.device) -> int:
    """Return the smallest batch size, a power of two up to `most`, that is as fast per image as larger ones.

    `rate_of` takes steps of a batch size and returns images per second. "As fast" means that no larger batch is more
    than a twentieth faster. A batch must fit: on a GPU it is tried; on a CPU twice the peak of the previous step is
    compared with the free memory (on Linux; elsewhere at most 256 images are tried). Raises `BatchTooLarge` if not
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
        # One size without a gain may have been disturbed; two in a row were not.
        if smaller and max(previous, last) < WORTH * max(smaller):
            break
        if 2 * size > most or (device.type == "cpu" and _would_not_fit(free, before)):
            break
        size *= 2
    return min(size for size, rate in rates.items() if WORTH * rate >= max(rates.values()))


def images_per_second(batch_size: int, *, state: TrainState, images: Split, recipe: Recipe) -> float:
    """Return the rate of the fastest of several steps of `batch_size` images, for which `images` are repeated.

    The steps train the net of `state`: do not use it afterwards.
    """
    chosen = torch.arange(batch_size, device=images.index_device) % len(images)
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
    """Return whether twice the growth of the process exceeds the memory that it may take."""
    peak = peak_memory(torch.device("cpu"))
    return None not in (free, before, peak) and 2 * (peak - before) > SHARE * free  # type: ignore[operator]
