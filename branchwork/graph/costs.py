"""The operations of a graph by name, and their cost in multiply-accumulates, which are counted only here."""

from collections.abc import Sequence
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from branchwork.graph.uncompiled import DispatchMode
from branchwork.graph.untouched import blank, borrowed

# fmt: off
# Operations that give another view of the same memory.
VIEWS = frozenset({
    "view", "flatten", "unflatten", "permute", "transpose", "t", "movedim", "swapaxes", "unsqueeze", "squeeze",
    "expand", "slice", "select", "narrow", "chunk", "split", "split_with_sizes", "unbind", "alias", "detach",
    "identity",
})
# fmt: on


# Operations of torch that differ only in how they are called.
_ONE_NAME = {"reshape": "view", "_unsafe_view": "view", "concat": "cat", "concatenate": "cat", "contiguous": "clone"}


def op_name(node: fx.Node) -> str:
    """Return the name of an operation, as `torch.nn.functional` has it."""
    return _name(node.target)


@cache  # called in each step of a collapsed training, and torch builds the text anew each time
def _name(target: object) -> str:
    name = str(target).removeprefix("aten.").split(".")[0]
    return _ONE_NAME.get(name.rstrip("_"), name.rstrip("_").lstrip("_"))


def macs_of(node: fx.Node) -> int:
    """Return the multiply-accumulates of an operation, for as many images as its shapes have."""
    return _macs(
        op_name(node), [sizes_of(arg) if isinstance(arg, fx.Node) else arg for arg in node.args], sizes_of(node)
    )


def _macs(op: str, arguments: Sequence[Any], output: Sequence[int]) -> int:
    """Return the products of convolutions, linear layers and matrices, as papers count them.

    `arguments` has shapes in the place of tensors. Biases, norms, activations and poolings are not counted, as in
    torch.utils.flop_counter.
    """
    products: int = 0
    if op.startswith("conv_transpose") or (op == "convolution" and arguments[6]):
        products = prod(arguments[0]) * prod(arguments[1][1:])
    elif op.startswith("conv"):
        products = prod(output) * prod(arguments[1][1:])
    elif op in ("linear", "matmul", "mm", "bmm"):
        products = prod(output) * arguments[0][-1]
    elif op in ("addmm", "baddbmm"):
        products = prod(output) * arguments[1][-1]
    elif op.startswith("scaled_dot_product"):
        query, key, value = arguments[:3]
        products = prod(query) * key[-2] + prod(query[:-1]) * key[-2] * value[-1]
    return products


class _Counter(DispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the multiply-accumulates of all that runs."""

    macs: int = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        first = output[0] if isinstance(output, tuple | list) else output
        if isinstance(first, Tensor):
            shapes = [arg.shape if isinstance(arg, Tensor) else arg for arg in args]
            self.macs += _macs(_name(func), shapes, first.shape)
        return output


def count_macs(net: nn.Module, input_shape: Sequence[int]) -> int:
    """Return the multiply-accumulates of `net`, in eval mode, for one image C×H×W.

    They are counted while it runs, which takes a tenth of the time of reading its graph. `net` is left as it was.
    """
    with borrowed(net), torch.no_grad(), _Counter() as counter:  # type: ignore[no-untyped-call]
        net(blank(net, 1, input_shape))
    return int(counter.macs)


def argument(node: fx.Node, position: int, default: Any) -> Any:
    """Return an argument of an operation by its position; a graph leaves it out if it is the default."""
    return node.args[position] if position < len(node.args) else default


def tensor_of(node: fx.Node) -> Tensor | None:
    """Return the output of a node without its numbers, the first one of several; None if it is no tensor."""
    value = node.meta.get("val")
    first = value[0] if isinstance(value, list | tuple) and value else value
    return first if isinstance(first, Tensor) else None


def sizes_of(node: Any) -> tuple[int, ...]:
    """Return the shape of what `tensor_of` returns, the batch included."""
    tensor = tensor_of(node)
    assert tensor is not None, "asked only where there is a tensor"
    return tuple(map(int, tensor.shape))


def count_parameters(net: nn.Module) -> int:
    """Count the numbers that `net` learns, each parameter once."""
    return sum(parameter.numel() for parameter in net.parameters())
