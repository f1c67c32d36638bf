"""One optimiser step: what happens to a batch, from its uint8 images to new weights."""

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from branchwork.datasets.augment import Augmentation, augment, mix, mixup_weights
from branchwork.datasets.batches import normalise, send
from branchwork.datasets.dataset import Split
from branchwork.errors import BatchTooLarge, RecipeError, first_line
from branchwork.training.infer import autocast, weight_dtype
from branchwork.training.machine import is_out_of_memory
from branchwork.training.optimizers import set_rate
from branchwork.training.recipe import AUGMENTATIONS, Recipe
from branchwork.training.state import TrainState, is_of_compiler, split_batch


class Moment(NamedTuple):
    """When a step is taken; `step` counts within the epoch. The step's random numbers are a function of it."""

    seed: int
    epoch: int
    step: int


def train_step(
    state: TrainState,
    data: Split,
    chosen: Tensor,
    *,
    recipe: Recipe,
    moment: Moment,
    learning_rate: float,
    decay: float = 0.0,
) -> Tensor:
    """Take one optimiser step on the images `chosen` of `data`; return this process's share of their mean loss.

    `chosen` are their numbers, on `data.index_device`. Every image weighs the same, whatever part of the batch and
    process it is in. The loss, a scalar that stays on the device, leaves out auxiliary heads; the gradient includes
    them. `decay` is that of `state.average`. Reads nothing back from the device. Raises `BatchTooLarge` if the step
    does not fit into memory, and `RecipeError` if torch.compile fails.
    """
    batch = batch_of(state, data, chosen, recipe=recipe, moment=moment)
    return update(state, batch, len(chosen), recipe=recipe, learning_rate=learning_rate, decay=decay)


def batch_of(
    state: TrainState, data: Split, chosen: Tensor, *, recipe: Recipe, moment: Moment
) -> Callable[[slice], tuple[Tensor, Tensor]]:
    """Return what gives any part of the batch `chosen` as the net is trained on it: uint8 images and their targets.

    Targets are the labels, or with mixup N×K, the share of each class.
    """
    strength = Augmentation(**{name: getattr(recipe, name) for name in AUGMENTATIONS if name != "mixup"})

    def part_of(part: slice) -> tuple[Tensor, Tensor]:
        rows = chosen[part]
        images, labels = data.images[rows], data.labels[send(rows, data.labels.device)]
        images = augment(images, strength, moment, rows=part, whole=len(chosen))
        if not recipe.mixup:
            return images, labels
        shares = mixup_weights(len(chosen), recipe.mixup, moment)[part]
        targets = mix(F.one_hot(labels, len(state.model.classes)), shares)
        return mix(images, shares).round_().to(torch.uint8), targets

    return part_of


def update(
    state: TrainState,
    batch: Callable[[slice], tuple[Tensor, Tensor]],
    count: int,
    *,
    recipe: Recipe,
    learning_rate: float | Tensor,
    decay: float | Tensor,
) -> Tensor:
    """Take the step of `train_step` on `count` images: `batch` gives uint8 images and targets, part by part.

    If `learning_rate` and `decay` are tensors on the device, numbers without a dimension, the step is a function of
    tensors alone, which can be recorded and replayed (see `CapturedStep`). The rate is float32, as the optimisers'
    kernels need it on a GPU, and the decay has the dtype of the weights.
    """
    device, dtype = next(state.net.parameters()).device, weight_dtype(state.precision)
    processes, loss_sum = state.processes, torch.zeros((), dtype=dtype, device=device)
    set_rate(state.optimizer, learning_rate)
    state.optimizer.zero_grad(set_to_none=True)

    # The same number of parts for each process, since batch norms that share statistics wait for one another.
    pieces = processes.count * min(recipe.accumulate, max(1, count // 2 // processes.count))
    parts = processes.own(split_batch(count, pieces))
    # If the last batch has too few images for all processes, this one takes part with two of weight 0.
    weight, parts = (1 / count, parts) if parts else (0.0, [slice(0, 2)])
    with _advice(state, recipe, count):
        for part in parts:
            images, targets = batch(part)
            targets = targets.to(dtype) if targets.is_floating_point() else targets
            inputs = normalise(images, state.model.mean, state.model.std).to(
                dtype, memory_format=state.execution.layout
            )
            with _exchange_gradients(state.execution.step, part is parts[-1]):
                with autocast(device, state.precision):
                    logits = state.execution.step(inputs)
                loss, *head_losses = (
                    weight * F.cross_entropy(
                        each.to(dtype), targets, reduction="sum", label_smoothing=recipe.label_smoothing
                    )
                    for each in (logits if state.heads else [logits])
                )  # fmt: skip
                total = loss + recipe.auxiliary * sum(head_losses)
                (processes.count * total).backward()  # type: ignore[no-untyped-call]  # DDP averages over the processes
            loss_sum += loss.detach()

        if recipe.clip:
            nn.utils.clip_grad_norm_([*state.net.parameters(), *state.heads.parameters()], recipe.clip)
        state.optimizer.step()
    if state.average is not None:
        update_average(state.average, state.net, decay)
    return loss_sum


def update_average(average: nn.Module, net: nn.Module, decay: float | Tensor) -> None:
    """Move the weights of `average`, and the statistics of its batch norms, towards those of `net` by 1 − `decay`.

    Integers, such as a batch norm's count of batches, are copied.
    """
    with torch.no_grad():
        pairs = list(zip(average.state_dict().values(), net.state_dict().values(), strict=True))
        averages, currents = zip(*((a, b) for a, b in pairs if a.is_floating_point()), strict=True)
        if isinstance(decay, Tensor):
            torch._foreach_lerp_(averages, currents, [1 - decay] * len(averages))
        else:
            torch._foreach_lerp_(averages, currents, 1 - decay)
        for count, current in pairs:
            if not count.is_floating_point():
                count.copy_(current)


@contextmanager
def _advice(state: TrainState, recipe: Recipe, batch_size: int) -> Iterator[None]:
    """Turn a known failure of a step of `batch_size` images into an error that says what to change."""
    try:
        yield
    except (RuntimeError, MemoryError) as reason:
        name, text = state.model.net, first_line(reason)
        if is_of_compiler(reason):
            raise RecipeError(
                "torch.compile cannot compile steps of {name} ({text}): leave out --compile", name=name, text=text
            ) from reason
        if not is_out_of_memory(reason):
            raise
        pieces = recipe.accumulate * state.processes.count
        part = math.ceil(batch_size / pieces)
        smaller = pieces * 2 ** (max(2, part - 1).bit_length() - 1)
        device = next(state.net.parameters()).device.type
        raise BatchTooLarge(
            "{part} images at once do not fit into the memory of {device} in a step of {name} ({text}). "
            "Train with --batch-size {smaller}, or with --accumulate {accumulate}, which takes the same "
            "batch in smaller parts",
            part=part,
            device=device,
            name=name,
            text=text,
            smaller=smaller,
            accumulate=2 * recipe.accumulate,
        ) from reason


def _exchange_gradients(step: nn.Module, is_last: bool) -> AbstractContextManager[None]:
    """Let processes exchange gradients once a step, after its last part."""
    return step.no_sync() if isinstance(step, DistributedDataParallel) and not is_last else nullcontext()
