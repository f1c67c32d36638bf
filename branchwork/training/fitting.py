"""Which batch fits, and which of those is fast: whole steps are tried, each of twice as many images as the last."""

import math
import time

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from branchwork.datasets.dataset import Split
from branchwork.errors import BatchTooLarge
from branchwork.files import available_memory
from branchwork.graph.untouched import holding, untouched
from branchwork.training.infer import TRAINING_DTYPES, autocast, weight_dtype
from branchwork.training.loop import Loop
from branchwork.training.machine import peak_memory, resident_memory

# A larger batch has to be faster by at least this, or the smaller one is taken: it learns more an epoch.
WORTH = 1.05
# The share of a CPU's free memory that a step may take: other programs, and the evaluation, want some too.
SHARE = 0.6
# Where the system does not tell its free memory, no more images than this are tried.
UNTOLD = 256
# What a net may keep for a pixel of its images; most take a hundredth. Where there is so much, nobody needs to look.
MOST_BYTES_A_PIXEL = 40_000
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


def need_memory(loop: Loop) -> None:
    """Raises `BatchTooLarge` where the free memory of a CPU does not hold what a forward keeps for the backward.

    torch is given more memory than there is, and the system then ends the process without a word.
    """
    device, free = next(loop.net.parameters()).device, available_memory()
    height, width = loop.model.image_size
    pieces = loop.recipe.accumulate * loop.processes.count
    images = math.ceil(loop.recipe.images_a_step / pieces)
    if device.type != "cpu" or free is None or images * height * width * MOST_BYTES_A_PIXEL < free:
        return
    few, more = (_kept_bytes(loop, count) for count in (2, 4))
    an_image = (more - few) / 2
    if images * an_image > free:
        fitting = max(1, int(SHARE * free / an_image))
        raise BatchTooLarge(
            f"{images} images at once take {images * an_image / 1e9:.1f} GB in a step of {loop.model.net}, and "
            f"{free / 1e9:.1f} GB of memory are free. Train with --batch-size {fitting * pieces}, or with --accumulate "
            f"{loop.recipe.accumulate * math.ceil(images / fitting)}, which takes the same batch in smaller parts"
        )


def _kept_bytes(loop: Loop, count: int) -> int:
    """What a forward of so many images keeps for the backward; it leaves the net as it is."""
    step = loop.execution.step
    step = step.module if isinstance(step, DistributedDataParallel) else step
    precision = TRAINING_DTYPES[loop.plan.precision]
    images = torch.zeros(count, loop.model.in_channels, *loop.model.image_size, dtype=weight_dtype(precision))
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    clones = {id(buffer): buffer.clone() for buffer in step.buffers()}  # a batch norm counts what it sees
    watched = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
    as_trained = autocast(torch.device("cpu"), precision)
    with torch.random.fork_rng(devices=[]), untouched(step), holding(step, clones), as_trained, watched:
        given = step(images.to(memory_format=loop.execution.layout))
    del given  # until here, nothing that was kept may go
    return sum(kept.values())
