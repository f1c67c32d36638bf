"""How a net is run while it trains: as it is written, or collapsed into an equal one that costs less."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import torch
from torch import nn

from branchwork.errors import NetError
from branchwork.fusing.fuse import collapse
from branchwork.training.auxiliary import WithHeads
from branchwork.training.infer import evaluation_batch, pick_layout
from branchwork.training.run import Model


@dataclass(frozen=True)
class Execution:
    """The modules that run a net, over its own parameters: `step` in training mode, `validate` in eval mode.

    `validate` gives logits N×K, and so does `step` but for a net with auxiliary heads: see `WithHeads`. It is made when
    it is first asked for: a training without validation has no use for it.
    """

    name: Literal["written", "collapsed"]
    step: nn.Module
    make_validate: Callable[[], nn.Module]
    layout: torch.memory_format

    @cached_property
    def validate(self) -> nn.Module:
        return self.make_validate()


def pick_execution(
    net: nn.Module, model: Model, execute: str, batch: int, heads: nn.ModuleDict | None = None
) -> Execution:
    """How `net`, which stays on its device, is run in steps of `batch` images.

    `auto` collapses where the estimate says that it pays. With auxiliary `heads`, the step gives their logits too, and
    the net is run as written. Raises `NetError` where a net is to be collapsed that cannot be.
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
                f"{model.net} has nothing to collapse in batches of {batch}: there is no affine segment that would be "
                "cheaper. Train it with --execute written"
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
        except NetError:  # its graph in eval mode is another one, and cannot be read
            return net
        finally:
            net.train(trains)

    # A collapsed net asks no view of what lies in memory otherwise, so that the faster layout always goes.
    return Execution("collapsed", step, validate, torch.channels_last)
