"""How a net is run while it trains: as written, collapsed into an equal net that costs less, or compiled."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import torch
from torch import Tensor, nn

from branchwork.errors import NetError
from branchwork.fusing.fuse import collapse
from branchwork.training.auxiliary import WithHeads
from branchwork.training.infer import evaluation_batch, pick_layout
from branchwork.training.run import Model


@dataclass(frozen=True)
class Execution:
    """The modules that run a net over its own parameters: `step` in training mode, `validate` in eval mode.

    Both give logits N×K, except `step` of a net with auxiliary heads: see `WithHeads`. `validate` is made when it is
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

    `auto` collapses if the estimated cost is lower. With auxiliary `heads`, the step gives their logits too, and the
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
                f"{model.net} has nothing to collapse in batches of {batch}: no affine segment would be cheaper. "
                "Train it with --execute written"
            )
    return execution


def _collapsed(net: nn.Module, model: Model, batch: int) -> Execution | None:
    shape, device = (model.in_channels, *model.image_size), next(net.parameters()).device
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
    """`net` through torch.compile for batches of `sizes` images, and as it is for others.

    For another size torch would compile it once more, for any size, which is slower for all sizes
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
    """Whether torch.compile failed. The error's module tells: importing its class would take a second."""
    return type(reason).__module__.startswith(("torch._dynamo", "torch._inductor"))
