"""A net in training: all that a step reads and changes, and how it is prepared."""

import copy
from dataclasses import dataclass, field, replace
from itertools import pairwise

import torch
from torch import nn
from torch.optim import Optimizer

from branchwork.errors import NetError
from branchwork.training.auxiliary import make_heads
from branchwork.training.execution import Compilable, Execution, pick_execution
from branchwork.training.infer import TRAINING_DTYPES, weight_dtype
from branchwork.training.optimizers import make_optimizer
from branchwork.training.options import Options
from branchwork.training.processes import Processes, distribute
from branchwork.training.recipe import Recipe
from branchwork.training.run import Model


@dataclass
class TrainState:
    """A net in training: all that a step reads and changes.

    `execution` runs `net` over its own parameters. `precision` is the dtype of convolutions and products. `heads` are
    auxiliary heads, which are trained with the net. `average` is a copy of the net that holds the moving average of its
    weights, None without one. A `frozen` net keeps the statistics of its batch norms.
    """

    net: nn.Module
    model: Model
    execution: Execution
    optimizer: Optimizer
    precision: torch.dtype
    heads: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    average: nn.Module | None = None
    frozen: bool = False
    processes: Processes = field(default_factory=Processes)


def make_state(
    net: nn.Module,
    model: Model,
    *,
    recipe: Recipe,
    options: Options,
    precision: str,
    processes: Processes | None = None,
) -> TrainState:
    """Prepare `net` for its first step: move it, pick how it is run, and make its optimiser.

    `precision` is fp32, bf16 or fp64. Raises `NetError` if the net cannot be run as `options.execute` asks, or if it
    has no linear layer and only that is to be trained.
    """
    processes, dtype = processes or Processes(), TRAINING_DTYPES[precision]
    heads = make_heads(net, model, recipe)
    for module in (net, heads):
        module.to(processes.device(options.device), weight_dtype(dtype))
    execute = options.execute
    if options.freeze:
        freeze_body(net)
        execute = "written"  # a merged kernel would hold batch norms of the batch
    if recipe.batch_norm == "shared" and processes.count > 1:
        net, heads = map(nn.SyncBatchNorm.convert_sync_batchnorm, (net, heads))
        execute = "written"  # a merged kernel would hold the statistics of one process
    sizes = {part.stop - part.start for part in split_batch(recipe.images_a_step, recipe.accumulate * processes.count)}
    execution = pick_execution(net, model, execute, batch=max(sizes), heads=heads)
    step = Compilable(execution.step, sizes) if options.compile else execution.step
    step = distribute(step, (model.in_channels, *model.image_size), processes)
    return TrainState(
        net,
        model,
        replace(execution, step=step),
        make_optimizer([*net.parameters(), *heads.parameters()], recipe),
        dtype,
        heads,
        copy.deepcopy(net) if recipe.ema else None,
        options.freeze,
        processes,
    )


def freeze_body(net: nn.Module) -> None:
    """Leave only the last linear layer of `net` trainable. Raises `NetError` if it has none."""
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise NetError(f"{type(net).__name__} has no linear layer that could be trained alone: leave out --freeze")
    net.requires_grad_(False)
    linear[-1].requires_grad_(True)


def split_batch(count: int, pieces: int) -> list[slice]:
    """Split a batch of `count` images into at most `pieces` parts in a row, as equal as can be.

    Each part but the last has an even length, and none has a single image, unless that is the whole batch.
    """
    pairs = max(1, count // 2)
    bounds = [*(2 * (pairs * piece // pieces) for piece in range(pieces)), count]
    return [slice(low, high) for low, high in pairwise(bounds) if low < high]
