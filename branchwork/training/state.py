"""A net in training: how it is run, and all that a step reads and changes.

It is run as written, collapsed into an equal net that costs less, or compiled.
"""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from branchwork.errors import NetError
from branchwork.fusing.fuse import collapse
from branchwork.training.auxiliary import WithHeads, make_heads
from branchwork.training.infer import TRAINING_DTYPES, evaluation_batch, pick_layout, weight_dtype
from branchwork.training.optimizers import layer_shares, make_optimizer
from branchwork.training.options import Options
from branchwork.training.processes import Processes, distribute, undistributed
from branchwork.training.recipe import Recipe
from branchwork.training.run import Model


@dataclass(frozen=True)
class Execution:
    """The modules that run a net over its own parameters: `step` in training mode, `validate` in eval mode.

    Both return logits N×K, except `step` of a net with auxiliary heads: see `WithHeads`. `validate` is made when it is
    first used, since a training without validation does not need it.
    """

    name: Literal["written", "collapsed"]
    step: nn.Module
    make_validate: Callable[[], nn.Module]
    layout: torch.memory_format

    @cached_property
    def validate(self) -> nn.Module:
        return self.make_validate()


def pick_execution(
    net: nn.Module, model: Model, execute: str, *, batch: int, heads: nn.ModuleDict | None = None
) -> Execution:
    """Return how `net`, which stays on its device, is run in steps of `batch` images.

    `auto` collapses if the estimated cost is lower. With auxiliary `heads`, the step also returns their logits, and the
    net is run as written. Raises `NetError` if the net should be collapsed and cannot be.
    """
    layout = pick_layout(net, model)
    execution = Execution("written", WithHeads(net, heads) if heads else net, lambda: net, layout)
    if not heads and execute != "written":
        try:
            execution = _collapsed(net, model, batch) or execution
        except NetError:
            if execute == "collapsed":
                raise
        if execute == "collapsed" and execution.name == "written":
            raise NetError(
                "{net} has nothing to collapse in batches of {batch}: no affine segment would be cheaper. "
                "Train it with --execute written",
                net=model.net,
                batch=batch,
            )
    return execution


def _collapsed(net: nn.Module, model: Model, batch: int) -> Execution | None:
    shape, device = model.input_shape, next(net.parameters()).device
    step = collapse(net.train(), shape, batch=batch)
    if step is None:
        return None

    def validate() -> nn.Module:
        trains = net.training
        try:
            return collapse(net.eval(), shape, batch=evaluation_batch(model, device)) or net
        except NetError:  # its graph in eval mode differs, and cannot be read
            return net
        finally:
            net.train(trains)

    # A collapsed net calls no `.view`, so the faster layout always works.
    return Execution("collapsed", step, validate, torch.channels_last)


class Compilable(nn.Module):
    """`net` compiled for batches of `sizes` images, and as written for other sizes.

    For a new size torch would compile again with a dynamic shape, and use that slower code for every size
    (docs/experiments/training.md).
    """

    def __init__(self, net: nn.Module, sizes: Collection[int]) -> None:
        super().__init__()
        self.net, self.sizes = net, sizes

    @cached_property  # which keeps it from being a second module with the same parameters
    def _compiled_net(self) -> Any:
        return torch.compile(self.net, dynamic=False)

    def forward(self, images: Tensor) -> Any:
        return self._compiled_net(images) if len(images) in self.sizes else self.net(images)


def is_of_compiler(reason: BaseException) -> bool:
    """Return whether torch.compile failed, by the module of the error: importing its class would take a second."""
    return type(reason).__module__.startswith(("torch._dynamo", "torch._inductor"))


@dataclass
class TrainState:
    """A net in training: everything that a step reads and changes.

    `execution` runs `net` over its own parameters. `precision` is the dtype of convolutions and products. `heads` are
    auxiliary heads, which are trained with the net. `average` is a copy of the net that holds the moving average of its
    weights, None without one. A `frozen` net trains only its head, and keeps the statistics of its batch norms; `body`
    is what a recipe freezes only for some epochs.
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
    body: tuple[nn.Parameter, ...] = ()

    def begin_epoch(self, *, only_head: bool) -> None:
        """Put the net into training mode, with only its head to learn, or all of it."""
        if self.body and only_head != self.frozen:
            self.frozen = only_head
            for parameter in self.body:
                parameter.requires_grad_(not only_head)
            # Of several processes, each waits for the gradients that there were.
            self.execution = replace(self.execution, step=undistributed(self.execution.step))
            shape = self.model.input_shape
            step = distribute(self.execution.step, shape, self.processes)
            self.execution = replace(self.execution, step=step)
        self.net.train()
        if self.frozen:  # the statistics of its batch norms are part of a frozen body
            for module in self.net.modules():
                module.train(not isinstance(module, _BatchNorm))


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

    `precision` is fp32, bf16 or fp64. Raises `NetError` if the net cannot be run as `options.execute` asks, or if
    only its last linear layer is to be trained and it has none.
    """
    processes, dtype = processes or Processes(), TRAINING_DTYPES[precision]
    heads = make_heads(net, model, recipe)
    for module in (net, heads):
        module.to(processes.device(options.device), weight_dtype(dtype))
    execute = options.execute
    if options.freeze:
        freeze_body(net)
        execute = "written"  # a merged kernel would hold batch norms of the batch
    body = _body(net) if recipe.head_epochs and not options.freeze else ()
    if body:
        execute = "written"
    if recipe.batch_norm == "shared" and processes.count > 1:
        net, heads = map(nn.SyncBatchNorm.convert_sync_batchnorm, (net, heads))
        execute = "written"  # a merged kernel would hold the statistics of one process
    sizes = {
        part.stop - part.start for part in split_batch(recipe.images_per_step, recipe.accumulate * processes.count)
    }
    execution = pick_execution(net, model, execute, batch=max(sizes), heads=heads)
    step = Compilable(execution.step, sizes) if options.compile else execution.step
    shares = [*layer_shares(net, recipe.lowest_rate), *(1.0 for _ in heads.parameters())]
    step = distribute(step, model.input_shape, processes)
    return TrainState(
        net,
        model,
        replace(execution, step=step),
        make_optimizer([*net.parameters(), *heads.parameters()], recipe, shares),
        dtype,
        heads,
        copy.deepcopy(net) if recipe.ema else None,
        options.freeze,
        processes,
        body,
    )


def freeze_body(net: nn.Module) -> None:
    """Leave only the last linear layer of `net` trainable. Raises `NetError` if it has none."""
    for parameter in _body(net):
        parameter.requires_grad_(False)


def _body(net: nn.Module) -> tuple[nn.Parameter, ...]:
    """Return what `net` trains below its last linear layer. Raises `NetError` if it has none."""
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise NetError(
            "{name} has no linear layer to train as its head: leave out --freeze, or set --head-epochs 0",
            name=type(net).__name__,
        )
    head = {id(parameter) for parameter in linear[-1].parameters()}
    return tuple(each for each in net.parameters() if each.requires_grad and id(each) not in head)


def split_batch(count: int, pieces: int) -> list[slice]:
    """Split a batch of `count` images into at most `pieces` parts in a row, as equal as can be.

    Each part but the last has an even length, and none has a single image, unless that is the whole batch.
    """
    pairs = max(1, count // 2)
    bounds = [*(2 * (pairs * piece // pieces) for piece in range(pieces)), count]
    return [slice(low, high) for low, high in pairwise(bounds) if low < high]
