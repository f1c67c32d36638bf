"""Epochs: an iterator that trains a net and yields its progress after some steps and after each epoch."""

import math
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from branchwork.datasets.batches import batches, count_batches, epoch_order
from branchwork.datasets.dataset import Split
from branchwork.errors import Diverged
from branchwork.language import say
from branchwork.observer import Epoch, Step
from branchwork.training.checkpoint import Position
from branchwork.training.infer import predict_logits
from branchwork.training.recipe import Recipe
from branchwork.training.state import TrainState, split_batch
from branchwork.training.step import Moment, train_step

# How often losses are read from a GPU: reading waits for the GPU, which costs more than a short step.
READ_SECONDS = 0.5
MOST_UNREAD = 50
# Points of the loss curve that an epoch leaves in metrics.jsonl.
CURVE_POINTS = 40


def fit(
    state: TrainState,
    train: Split,
    validation: Split,
    *,
    recipe: Recipe,
    seed: int,
    position: Position,
    take_step: Callable[..., Tensor] | None = None,
) -> Iterator[Step | Epoch]:
    """Train from `position` to the end of `recipe`, and yield a `Step` when losses are read and each `Epoch`.

    `position` moves along: with `state` and torch's random state, it is everything that an exact resume needs. An
    `Epoch` has the live weights that were validated: the averaged ones, if the recipe averages. It is the best so far
    if `position.best_epoch` is its number. Raises `Diverged` as soon as a loss or, at the end of an epoch, a weight is
    not finite, and `BatchTooLarge` if a batch does not fit into memory. In several processes, all yield alike.
    `take_step` replaces `train_step`.
    """
    take_step = take_step or train_step
    while position.step or not is_over(recipe, position):
        state.begin_epoch(only_head=position.epoch < recipe.head_epochs)
        yield from _steps(state, train, recipe=recipe, seed=seed, position=position, take_step=take_step)
        yield _close_epoch(state, len(train), validation, recipe=recipe, position=position)


def is_over(recipe: Recipe, position: Position) -> bool:
    """Return whether training is over: by the number of epochs, the time, or `patience`."""
    return (
        position.epoch == recipe.epochs
        or (position.epoch > 0 and recipe.out_of_time(position.seconds))
        or recipe.out_of_patience([epoch["validation_accuracy"] for epoch in position.history])
    )


def ends_epoch(recipe: Recipe, position: Position, step: Step) -> bool:
    """Return whether `step` is the last of its epoch."""
    return step.step == step.steps or recipe.out_of_time(position.seconds)


def check_finite(net: nn.Module, position: Position) -> None:
    """Raise `Diverged` if a weight of `net`, or a statistic of its batch norms, is infinite or NaN."""
    tensors = (tensor for tensor in net.state_dict().values() if tensor.is_floating_point())
    if not all(bool(tensor.isfinite().all()) for tensor in tensors):
        raise _diverged(say("a weight"), position)


def next_unread(unread: int, seconds: float) -> int:
    """Return after how many steps to read losses next, if the last `unread` steps took `seconds`."""
    return min(MOST_UNREAD, 2 * unread) if seconds < READ_SECONDS else max(1, unread // 2)


def _steps(
    state: TrainState, train: Split, *, recipe: Recipe, seed: int, position: Position, take_step: Callable[..., Tensor]
) -> Iterator[Step]:
    """Train the rest of the epoch, or as much of it as time allows."""
    device, processes = train.labels.device, state.processes
    steps = count_batches(len(train), recipe.images_per_step)
    unread: list[Tensor] = []
    read_after = 1
    began, seconds_before, step_seconds_before = time.perf_counter(), position.seconds, position.step_seconds
    order = epoch_order(len(train), seed, position.epoch).to(train.index_device)
    for chosen in batches(order, recipe.images_per_step, position.step):
        done = position.epoch * steps + position.step
        progress = recipe.progress(done / (recipe.epochs * steps), position.seconds)
        loss = take_step(
            state,
            train,
            chosen,
            recipe=recipe.at(progress),
            moment=Moment(seed, position.epoch, position.step),
            learning_rate=recipe.learning_rate_at(progress),
            decay=recipe.ema_at(done),
        )
        unread.append(loss)
        position.step += 1
        if len(unread) < read_after and position.step < steps:
            continue
        losses = torch.stack(unread).tolist()
        seconds = time.perf_counter() - began
        position.step_seconds = step_seconds_before + seconds
        read_before = position.seconds
        *losses, position.seconds = processes.sum([*losses, processes.of_first(seconds_before + seconds)])
        position.losses += losses
        if not all(map(math.isfinite, losses)):
            raise _diverged(say("the loss"), position)
        unread.clear()
        if device.type != "cpu":
            read_after = next_unread(read_after, position.seconds - read_before)
        yield _step(recipe, position, steps=steps, images=len(train))
        if recipe.out_of_time(position.seconds):
            return


def _step(recipe: Recipe, position: Position, *, steps: int, images: int) -> Step:
    share = (position.epoch * steps + position.step) / (recipe.epochs * steps)
    seconds_left = (1 - share) / share * position.step_seconds
    if recipe.minutes:
        seconds_left = min(seconds_left, max(0.0, 60 * recipe.minutes - position.seconds))
    return Step(
        position.epoch + 1,
        recipe.epochs,
        position.step,
        steps,
        loss=position.losses[-1],
        images_per_second=share * recipe.epochs * images / position.step_seconds,
        seconds_left=seconds_left,
    )


def _close_epoch(state: TrainState, images: int, validation: Split, *, recipe: Recipe, position: Position) -> Epoch:
    """Validate, and move `position` to the start of the next epoch. The epoch had `images` images."""
    if position.step < count_batches(images, recipe.images_per_step):  # time ran out first
        images = position.step * recipe.images_per_step
    began = time.perf_counter()
    check_finite(state.net, position)
    kept, processes = state.net if state.average is None else state.average, state.processes
    processes.share_buffers(state.net)
    processes.share_buffers(kept)
    accuracy = _validate(state, validation)
    previous = [epoch["validation_accuracy"] for epoch in position.history]
    if accuracy is None or not previous or accuracy >= max(previous):
        position.best_epoch = position.epoch + 1
    position.seconds += time.perf_counter() - began
    (position.seconds,) = processes.sum([processes.of_first(position.seconds)])

    figures: dict[str, Any] = {
        "epoch": position.epoch + 1,
        "train_loss": sum(position.losses) / len(position.losses),
        "validation_accuracy": accuracy,
        "images": images,
        "learning_rate": float(state.optimizer.param_groups[0]["lr"]),
        "seconds": position.seconds - sum(epoch["seconds"] for epoch in position.history),
        "step_seconds": position.step_seconds - sum(epoch["step_seconds"] for epoch in position.history),
    }
    figures["images_per_second"] = images / figures["step_seconds"]
    figures["loss_curve"] = _thin(position.losses)
    position.history.append(figures)
    position.epoch, position.step, position.losses = position.epoch + 1, 0, []
    return Epoch(
        position.epoch,
        recipe.epochs,
        figures["train_loss"],
        accuracy,
        figures["seconds"],
        figures["images_per_second"],
        kept.state_dict(),
    )


def _validate(state: TrainState, validation: Split) -> float | None:
    """Return the validation accuracy, measured by all processes together; None without validation images."""
    if not len(validation):
        return None
    net = state.execution.validate if state.average is None else state.average
    correct = 0
    for part in state.processes.own(split_batch(len(validation), state.processes.count)):
        share = validation.pick(torch.arange(*part.indices(len(validation))))
        logits = predict_logits(net, share.images, state.model, precision=state.precision)
        correct += int((logits.argmax(1) == share.labels).sum())
    return state.processes.sum([correct])[0] / len(validation)


def _diverged(what: str, position: Position) -> Diverged:
    return Diverged(
        "{what} became infinite or NaN in epoch {epoch}, step {step}: the training has diverged",
        what=what,
        epoch=position.epoch + 1,
        step=position.step,
    )


def _thin(losses: list[float]) -> list[float]:
    """Return the losses as at most CURVE_POINTS means over neighbouring losses, about the same number in each."""
    count = min(CURVE_POINTS, len(losses))
    bounds = [len(losses) * point // count for point in range(count + 1)]
    return [sum(losses[low:high]) / (high - low) for low, high in pairwise(bounds)]
