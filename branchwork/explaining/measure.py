"""Branches measured: what they give to their joins, what is lost without each of them, and the time that each takes."""

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import get_args

import torch
from torch import Tensor, fx

from branchwork.datasets.batches import normalise
from branchwork.datasets.dataset import Split
from branchwork.errors import WeightsError
from branchwork.explaining.ablation import By, Joined, Means, after_join, before_joins, branch_alone, constant_shape
from branchwork.graph.costs import operation
from branchwork.observer import Observer
from branchwork.training.infer import evaluation_batch
from branchwork.training.run import Model

# Bytes of activations that a batch may take.
_MEMORY = 2**28
# Images in the batch that a branch is timed with, and how often.
TIMED_BATCH, TIMED_RUNS = 32, 15


@dataclass(frozen=True)
class Observed:
    """What a net does on some images: which it reads rightly, bool N, and by join and branch, what enters the join.

    `means` are those of each channel over images and positions, `rms` the root of the mean square of all numbers.
    `residuals` are by join the mean over images of ‖F(x)‖/‖x‖; a join is missing whose shortcut is 0 in all of them.
    """

    right: Tensor
    means: Means
    rms: dict[tuple[str, str], float]
    residuals: dict[str, float]


def observe(joined: Joined, model: Model, split: Split) -> Observed:
    """Run the net on `split`, whose labels are numbers of the model's classes.

    Raises `WeightsError` where the net answers with numbers that are not finite.
    """
    run = before_joins(joined)
    right: list[Tensor] = []
    moments: dict[tuple[str, str], list[Tensor]] = {}
    ratios: dict[str, list[Tensor]] = defaultdict(list)
    with torch.inference_mode():
        for images, labels in _batches(joined, model, split):
            logits, entering = run(images)
            if not bool(logits.isfinite().all()):
                raise WeightsError(
                    f"{model.net} answers with numbers that are infinite or none: its weights are damaged"
                )
            right.append(logits.argmax(1) == labels)
            for join, branches in entering.items():
                for branch, tensors in branches.items():
                    new, before = list(map(_moments, tensors)), moments.get((join, branch))
                    moments[join, branch] = new if before is None else list(map(torch.add, before, new))
                pair = shortcut_of(joined, join)
                if pair is not None:
                    ratios[join].append(_ratio(branches[pair.residual][0], branches[pair.shortcut][0]))
    means, rms = {}, {}
    for (join, branch), totals in moments.items():
        nodes = joined.operands[join][branch]
        means[join, branch] = tuple(
            (total[0] / len(split)).to(node.meta["val"].dtype).view(1, *constant_shape(node))
            for total, node in zip(totals, nodes, strict=True)
        )
        rms[join, branch] = float(torch.cat([total[1] for total in totals]).mean() / len(split)) ** 0.5
    residuals = {join: float(torch.cat(found).mean()) for join, found in ratios.items() if any(map(len, found))}
    return Observed(torch.cat(right), means, rms, residuals)


def _moments(tensor: Tensor) -> Tensor:
    """2×C: for each channel the sum over images of the mean over positions, and of the mean of the squares."""
    flat = tensor.double().reshape(*tensor.shape[:2], -1)
    return torch.stack([flat.mean(2).sum(0), flat.square().mean(2).sum(0)])


@dataclass(frozen=True)
class Pair:
    """The two branches of a sum, of which one is the shortcut."""

    residual: str
    shortcut: str


def shortcut_of(joined: Joined, join: str) -> Pair | None:
    """The branches of a sum of two, of which one is called a shortcut or has fewer operations; None elsewhere."""
    branches = [joined.branch(join, branch) for branch in joined.operands[join]]
    if operation(joined.node(join)) != "add" or len(branches) != 2:
        return None
    shortcut, residual = sorted(branches, key=lambda branch: (branch.name != "shortcut", len(branch.nodes)))
    if shortcut.name != "shortcut" and len(shortcut.nodes) == len(residual.nodes):
        return None
    return Pair(residual.name, shortcut.name)


def _ratio(residual: Tensor, shortcut: Tensor) -> Tensor:
    """‖F(x)‖/‖x‖ of each image that has something on the shortcut."""
    sizes = [tensor.double().flatten(1).norm(dim=1) for tensor in (residual, shortcut)]
    ratios: Tensor = sizes[0] / sizes[1]
    return ratios[sizes[1] > 0]


def remove_each(
    joined: Joined, model: Model, split: Split, means: Means, observer: Observer
) -> dict[tuple[str, str, By], Tensor]:
    """Which images, bool N, the net reads rightly without each branch, by join, branch and what is put in its place."""
    before = before_joins(joined)
    after = {join: after_join(joined, join) for join in joined.operands}
    right: dict[tuple[str, str, By], list[Tensor]] = defaultdict(list)
    done = 0
    try:
        with torch.inference_mode():
            for images, labels in _batches(joined, model, split):
                _, entering = before(images)
                for join, branches in entering.items():
                    for branch in branches:
                        for by in get_args(By):
                            changed = branches | {branch: _replaced(branches[branch], means[join, branch], by)}
                            tensors = [tensor for parts in changed.values() for tensor in parts]
                            right[join, branch, by].append(after[join](*tensors, images).argmax(1) == labels)
                done += len(labels)
                observer.count("images without each branch", done, len(split))
    finally:
        observer.count_end()
    return {key: torch.cat(parts) for key, parts in right.items()}


def _replaced(tensors: list[Tensor], means: tuple[Tensor, ...], by: By) -> list[Tensor]:
    if by == "zero":
        return list(map(torch.zeros_like, tensors))
    return [mean.expand_as(tensor) for mean, tensor in zip(means, tensors, strict=True)]


def _batches(joined: Joined, model: Model, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """Images, normalised, and labels, in batches whose activations fit into memory."""
    bytes_an_image = sum(node.activation_bytes for node in joined.trace.operations)
    size = min(evaluation_batch(model, split.images.device), max(1, _MEMORY // max(1, bytes_an_image)))
    for start in range(0, len(split), size):
        chosen = slice(start, start + size)
        yield normalise(split.images[chosen], model.mean, model.std), split.labels[chosen]


def time_branches(joined: Joined, model: Model) -> dict[tuple[str, str], float]:
    """Milliseconds that the operations of each branch take for a batch of `TIMED_BATCH` images of noise: the median.

    As written, one operation after the other. Branches take turns, so that a machine whose speed drifts treats all
    alike. A shortcut without operations takes none.
    """
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(TIMED_BATCH, model.in_channels, *model.image_size, generator=generator)
    times: dict[tuple[str, str], list[float]] = {}
    runs: dict[tuple[str, str], Callable[[], object]] = {}
    with torch.inference_mode():
        values = fx.Interpreter(joined.program, garbage_collect_values=False)
        values.run(images)
        for join, branches in joined.operands.items():
            for branch in branches:
                times[join, branch] = []
                if joined.nodes(join, branch):
                    module, outside = branch_alone(joined, join, branch)
                    runs[join, branch] = partial(module, *(values.env[node] for node in outside))
        for turn in range(TIMED_RUNS + 1):
            for key, run in runs.items():
                begun = time.perf_counter()
                run()
                if turn:  # the first run of each finds nothing in the caches
                    times[key].append(1000 * (time.perf_counter() - begun))
    return {key: statistics.median(found) if found else 0.0 for key, found in times.items()}
