"""Steps by torch.compile: a module that can be switched to it, and a trial of whether that pays within a training."""

import math
import statistics
from collections.abc import Collection
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from branchwork.training.distributed import Processes

# What compiling takes for a layer, in seconds, or less (LOG.md). It is tried where the rest of a training is so many
# times as long, so that a trial in vain costs a twentieth of it.
SECONDS_A_LAYER, REST = 0.5, 20
# How many times the clock is read for each way; what comes first, to warm up or to compile, is not counted.
READINGS = 3


class Compilable(nn.Module):
    """`net` over its own parameters, as it is or, where `compiled` is set, through torch.compile.

    That takes batches of `sizes` images. Others go through `net` as it is: torch would compile it once more, for any
    size, and that is slower for all (LOG.md).
    """

    def __init__(self, net: nn.Module, sizes: Collection[int]) -> None:
        super().__init__()
        self.net, self.sizes = net, sizes
        self.compiled = False

    @cached_property  # which keeps it from being a second module with the same parameters
    def _compiled_net(self) -> Any:
        return torch.compile(self.net, dynamic=False)

    def forward(self, images: Tensor) -> Any:
        return self._compiled_net(images) if self.compiled and len(images) in self.sizes else self.net(images)


class Trial:
    """Whether the steps of a training are faster compiled: found out by steps that count, the same in all processes."""

    def __init__(self, step: Compilable, processes: Processes) -> None:
        self._step, self._processes = step, processes
        self._layers = sum(1 for module in step.modules() if not list(module.children()))
        self._written: list[float] = []
        self._compiled: list[float] = []
        self._failed = False
        self.running = True

    def read(self, seconds: float, left: float) -> str | None:
        """Go on, given what a step took since the last reading and what the training still takes, both in seconds.

        Gives what there is to tell the user.
        """
        trying = len(self._written) > READINGS
        given = self._processes.sum([math.inf if self._failed else seconds, left])
        seconds, left = (number / self._processes.count for number in given)
        (self._compiled if trying else self._written).append(seconds)
        if not trying and len(self._written) > READINGS:
            self._step.compiled = self.running = left > REST * SECONDS_A_LAYER * self._layers
        if len(self._compiled) <= READINGS:
            return None
        written, compiled = (statistics.median(times[1:]) for times in (self._written, self._compiled))
        self._step.compiled, self.running = compiled < written, False
        if math.isinf(compiled):
            return "torch.compile could not compile the steps: they stay as they are"
        kept = "and are kept" if self._step.compiled else "and are left"
        return f"compiled steps take {1e3 * compiled:.3g} ms in place of {1e3 * written:.3g}, {kept}"

    def give_up(self) -> bool:
        """Back from a compiled step that failed; whether there was one, so that the step is to be taken again."""
        was_compiled = self.running and self._step.compiled
        if was_compiled:
            self._step.compiled, self._failed = False, True
        return was_compiled


def is_of_compiler(reason: BaseException) -> bool:
    """Whether torch.compile could not compile; told by the module of the error, which takes a second to import."""
    return type(reason).__module__.startswith(("torch._dynamo", "torch._inductor"))
