"""Measurements of branches: their outputs, what is lost without each of them, and how long each takes."""

import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, get_args

import torch
from torch import Tensor, fx

from branchwork.datasets.batches import generator_of, normalise
from branchwork.datasets.dataset import Split
from branchwork.errors import WeightsError
from branchwork.graph.branching import BranchedNet, Replacement, constant_shape
from branchwork.graph.costs import op_name
from branchwork.language import say
from branchwork.observer import Observer
from branchwork.training.evaluate import paired_interval
from branchwork.training.infer import evaluation_batch
from branchwork.training.run import Model

# Bytes of activations that a batch may take, in main memory and on a GPU.
_MEMORY, _MEMORY_GPU = 2**28, 2**30
# Images in the batch that a branch is timed with, and how often it is timed.
TIMED_BATCH, TIMED_RUNS = 32, 15


@dataclass(frozen=True)
class Observed:
    """What a net does on some images.

    `correct`, bool N, tells which images it classifies correctly. By join and branch, `means` are those of each
    channel over images and positions, 1×C×1×1 or 1×F for each tensor of the branch, and `rms` is the root mean square
    of all numbers. `residuals` are by join the mean over images of ‖F(x)‖/‖x‖; joins whose shortcut is 0 in all images
    are left out.
    """

    correct: Tensor
    means: dict[tuple[str, str], tuple[Tensor, ...]]
    rms: dict[tuple[str, str], float]
    residuals: dict[str, float]


def sample_images(split: Split, count: int) -> Split:
    """Return `count` images sampled at random, always the same ones; all of them if there are no more."""
    if count >= len(split):
        return split
    return split.pick(torch.randperm(len(split), generator=generator_of(0, "explain"))[:count])


def observe(branched: BranchedNet, model: Model, split: Split) -> Observed:
    """Run the net on `split`, whose labels are indices of the model's classes.

    Raises `WeightsError` if a logit is not finite.
    """
    correct: list[Tensor] = []
    moments: dict[tuple[str, str], list[Tensor]] = {}
    ratios: dict[str, list[Tensor]] = defaultdict(list)
    with torch.inference_mode():
        for images, labels in _batches(branched, model, split):
            logits, entering = branched.run_to_joins(images)
            if not bool(logits.isfinite().all()):
                raise WeightsError("{net} returns infinite or NaN logits: its weights are damaged", net=model.net)
            correct.append(logits.argmax(1) == labels)
            for join, branches in entering.items():
                for branch, tensors in branches.items():
                    new, before = list(map(_moments, tensors)), moments.get((join, branch))
                    moments[join, branch] = new if before is None else list(map(torch.add, before, new))
                pair = shortcut_of(branched, join)
                if pair is not None:
                    ratios[join].append(_ratio(branches[pair.residual][0], branches[pair.shortcut][0]))
    means, rms = {}, {}
    for (join, branch), totals in moments.items():
        means[join, branch] = tuple(
            (total[0] / len(split)).to(node.meta["val"].dtype).view(1, *constant_shape(node))
            for total, node in zip(totals, branched.entries[join][branch], strict=True)
        )
        rms[join, branch] = float(torch.cat([total[1] for total in totals]).mean() / len(split)) ** 0.5
    residuals = {join: float(torch.cat(parts).mean()) for join, parts in ratios.items() if any(map(len, parts))}
    return Observed(torch.cat(correct), means, rms, residuals)


def _moments(tensor: Tensor) -> Tensor:
    """Return 2×C: for each channel the sum over images of the mean over positions, and of the mean of squares."""
    flat = tensor.double().reshape(*tensor.shape[:2], -1)
    return torch.stack([flat.mean(2).sum(0), flat.square().mean(2).sum(0)])


@dataclass(frozen=True)
class ResidualPair:
    """The names of the two branches of a sum that has a shortcut."""

    residual: str
    shortcut: str


def shortcut_of(branched: BranchedNet, join: str) -> ResidualPair | None:
    """Return the branches of a sum of two if one is called a shortcut or has fewer operations; else None."""
    branches = [branched.branch(join, branch) for branch in branched.entries[join]]
    if op_name(branched.graph.nodes[join]) != "add" or len(branches) != 2:
        return None
    shortcut, residual = sorted(branches, key=lambda branch: (branch.name != "shortcut", len(branch.nodes)))
    if shortcut.name != "shortcut" and len(shortcut.nodes) == len(residual.nodes):
        return None
    return ResidualPair(residual.name, shortcut.name)


def _ratio(residual: Tensor, shortcut: Tensor) -> Tensor:
    """Return ‖F(x)‖/‖x‖ of each image whose shortcut is not 0."""
    sizes = [tensor.double().flatten(1).norm(dim=1) for tensor in (residual, shortcut)]
    ratios: Tensor = sizes[0] / sizes[1]
    return ratios[sizes[1] > 0]


def remove_each(
    branched: BranchedNet,
    model: Model,
    split: Split,
    *,
    observed: Observed,
    observer: Observer,
    by: Sequence[Replacement] = get_args(Replacement),
) -> dict[tuple[str, str, Replacement], Tensor]:
    """Return which images, bool N, the net classifies correctly without each branch, by join, branch, replacement."""
    correct: dict[tuple[str, str, Replacement], list[Tensor]] = defaultdict(list)
    done = 0
    try:
        with torch.inference_mode():
            for images, labels in _batches(branched, model, split):
                _, entering = branched.run_to_joins(images)
                for join, branches in entering.items():
                    for branch, tensors in branches.items():
                        for replacement in by:
                            changed = _replaced(tensors, observed.means[join, branch], replacement)
                            logits = branched.run_from_join(join, branches | {branch: changed}, images)
                            correct[join, branch, replacement].append(logits.argmax(1) == labels)
                done += len(labels)
                observer.count(say("images without each branch"), done, len(split))
    finally:
        observer.count_end()
    return {key: torch.cat(parts) for key, parts in correct.items()}


def lost_accuracy(before: Tensor, after: Tensor) -> tuple[float, tuple[float, float]]:
    """Return by how much the accuracy falls from one bool N of correct images to another, and its paired interval."""
    lost, gained, total = int((before & ~after).sum()), int((~before & after).sum()), len(before)
    return (lost - gained) / total, paired_interval(lost, gained, total)


def _replaced(tensors: list[Tensor], means: tuple[Tensor, ...], replacement: Replacement) -> list[Tensor]:
    if replacement == "zero":
        return list(map(torch.zeros_like, tensors))
    return [mean.expand_as(tensor) for mean, tensor in zip(means, tensors, strict=True)]


def _batches(branched: BranchedNet, model: Model, split: Split) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield normalised images and labels on the net's device, in batches whose activations fit into memory."""
    device = _device(branched)
    bytes_per_image = sum(node.activation_bytes for node in branched.trace.operations)
    memory = _MEMORY if device.type == "cpu" else _MEMORY_GPU
    size = min(evaluation_batch(model, device), max(1, memory // max(1, bytes_per_image)))
    for start in range(0, len(split), size):
        rows = slice(start, start + size)
        yield normalise(split.images[rows].to(device), model.mean, model.std), split.labels[rows].to(device)


def _device(branched: BranchedNet) -> torch.device:
    return next(branched.graph.net.parameters()).device


def time_branches(branched: BranchedNet, model: Model) -> dict[tuple[str, str], float]:
    """Return the median milliseconds of each branch's operations, for a batch of `TIMED_BATCH` images of noise.

    As written, one operation after the other. Branches take turns, so that a machine whose speed drifts treats all
    alike. A shortcut without operations takes none.
    """
    generator = torch.Generator().manual_seed(0)
    graph, device = branched.graph, _device(branched)
    images = torch.randn(TIMED_BATCH, *model.input_shape, generator=generator).to(device)
    times: dict[tuple[str, str], list[float]] = {}
    inputs: dict[tuple[str, str], dict[fx.Node, Any]] = {}
    with torch.inference_mode():
        for join, branches in branched.entries.items():
            for branch in branches:
                operations = branched.operations(join, branch)
                times[join, branch] = []
                if operations:
                    reads = dict.fromkeys(node for each in operations for node in each.all_input_nodes)
                    outside = [node for node in reads if node not in operations and node.op != "get_attr"]
                    values = graph.run(images, wanted=outside)
                    inputs[join, branch] = dict(zip(outside, values, strict=True))
        for turn in range(TIMED_RUNS + 1):
            for key, given in inputs.items():
                _finish(device)
                start = time.perf_counter()
                graph.run(given=given, wanted=branched.entries[key[0]][key[1]])
                _finish(device)
                if turn:  # the first run of each finds nothing in the caches
                    times[key].append(1000 * (time.perf_counter() - start))
    return {key: statistics.median(milliseconds) if milliseconds else 0.0 for key, milliseconds in times.items()}


def _finish(device: torch.device) -> None:
    """Wait until a GPU has finished what was started on it, so that its time can be taken."""
    if device.type == "cuda":
        torch.cuda.synchronize()
