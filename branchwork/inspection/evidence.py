"""What lint looks at: a net's graph and trace, a run forward and backward in each mode, and what it finds."""

import copy
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from branchwork.errors import FAILURES, is_library
from branchwork.graph.mend import Mend
from branchwork.graph.program import Graph, Shape
from branchwork.graph.trace import Operation, Trace
from branchwork.graph.unread import Unread, unread_layers
from branchwork.graph.untouched import alone


@dataclass(frozen=True)
class Finding:
    """One probable mistake: the path of its module, "" for the net itself, and the line in the user's own code.

    `mend` is that line put right, where replacing it is enough.
    """

    rule: str
    module: str
    file: str | None
    line: int | None
    message: str
    mend: Mend | None = None


@dataclass(frozen=True)
class ForwardBackward:
    """One forward and backward: the output, and the names of the parameters that a gradient reached."""

    output: Any
    moved: frozenset[str]


@dataclass(frozen=True)
class Evidence:
    """What the rules look at. A run is None if the net fails in that mode or returns no tensor."""

    graph: Graph
    trace: Trace
    eval: ForwardBackward | None
    train: ForwardBackward | None

    @property
    def net(self) -> nn.Module:
        return self.graph.net

    @property
    def nodes(self) -> dict[str, Operation]:
        return {node.name: node for node in self.trace.operations}

    @property
    def moved(self) -> set[str]:
        """The parameters that a gradient reaches in at least one mode: auxiliary heads run in training only."""
        return set().union(*(run.moved for run in (self.eval, self.train) if run is not None))

    @cached_property
    def unread(self) -> list[Unread]:
        """The layers whose output nobody reads, in training either."""
        found = unread_layers(self.graph) if self.train is not None else ()
        return [one for one in found if not any(within(name, one.layer.partition("@")[0]) for name in self.moved)]

    def finding(self, rule: str, module: str, message: str) -> Finding:
        """Return a finding about a module, at its first operation or at the forward that should have called it."""
        for node in self.trace.operations:
            if node.file is not None and within(node.name.partition("@")[0], module.partition("@")[0]):
                return Finding(rule, module, node.file, node.line, message)
        return Finding(rule, module, *self.forward(module), message)

    def forward(self, module: str) -> tuple[str | None, int | None]:
        """Return file and line of the forward of the nearest enclosing module whose class is the user's own.

        If none is, it is a library's, but not torch's.
        """
        librarys: tuple[str | None, int | None] = (None, None)
        while True:
            module = module.rpartition(".")[0]
            code = getattr(type(self.net.get_submodule(module)).forward, "__code__", None)
            if code is not None and f"{os.sep}torch{os.sep}" not in code.co_filename:
                if not is_library(code.co_filename):
                    return code.co_filename, code.co_firstlineno
                librarys = librarys if librarys[0] else (code.co_filename, code.co_firstlineno)
            if not module:
                return librarys


def run(net: nn.Module, input_shape: Shape, *, train: bool) -> ForwardBackward | None:
    """Run a copy forward and backward. All of its parameters get a gradient, since freezing is not a mistake."""
    with alone(), torch.enable_grad():
        twin = copy.deepcopy(net).train(train)
        parameters = {name: p.requires_grad_() for name, p in twin.named_parameters() if p.is_floating_point()}
        weight = next(iter(parameters.values()), torch.zeros(()))
        try:
            output = twin(torch.rand(2, *input_shape, dtype=weight.dtype, device=weight.device))
            tensors = [leaf for leaf in pytree.tree_leaves(output) if isinstance(leaf, Tensor)]
            ends = [tensor.sum() for tensor in tensors if tensor.requires_grad]
            gradients = torch.autograd.grad(ends, list(parameters.values()), allow_unused=True) if ends else ()
        except FAILURES:  # the net's own code may raise anything; it is enough that it could be read
            return None
    reached = zip(parameters, gradients, strict=True) if ends else ()
    return ForwardBackward(output, frozenset(name for name, g in reached if g is not None)) if tensors else None


def within(name: str, block: str) -> bool:
    return name == block or name.startswith(f"{block}.")
