"""What one operation costs and sees, from its shapes: multiply-accumulates and receptive field."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._python_dispatch import TorchDispatchMode

from branchwork.graph.untouched import blank, borrowed

# fmt: off
# Operations that give another view of the same memory.
VIEWS = frozenset({
    "view", "flatten", "unflatten", "permute", "transpose", "t", "movedim", "swapaxes", "unsqueeze", "squeeze",
    "expand", "slice", "select", "narrow", "chunk", "split", "split_with_sizes", "unbind", "alias", "detach",
    "identity",
})

# Operations that treat each position by itself, so that what it sees does not change.
_POINTWISE = frozenset({
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardtanh",
    "hardsigmoid", "sigmoid", "tanh", "softplus", "prelu", "clamp", "batch_norm", "dropout", "feature_dropout",
    "alpha_dropout", "add", "sub", "mul", "div", "cat", "neg", "exp", "abs", "square", "sqrt", "rsqrt", "pow",
    "maximum", "minimum", "where", "clone", "detach", "alias", "identity", "to", "type_as", "channel_shuffle",
})
# fmt: on


@dataclass(frozen=True)
class _Axis:
    """Along one axis, output i of `count` sees the input from `low + i·jump` to `high + i·jump`, both included."""

    jump: int
    low: int
    high: int
    count: int


@dataclass(frozen=True)
class Field:
    """What each output sees of the image, along height and width (Araujo et al. 2019, section 3)."""

    axes: tuple[_Axis, ...]

    @classmethod
    def of_image(cls, size: Sequence[int]) -> "Field":
        return cls(tuple(_Axis(1, 0, 0, n) for n in size))

    def size(self, image: Sequence[int]) -> tuple[int, int]:
        """Height and width in pixels, as far as the image goes."""
        height, width = (min(axis.high - axis.low + 1, n) for axis, n in zip(self.axes, image, strict=True))
        return height, width

    def through(self, kernel: Any, stride: Any, padding: Any, dilation: Any, counts: Sequence[int]) -> "Field":
        """After a window of this geometry that gives `counts` outputs."""
        axes = []
        geometry = zip(self.axes, pair(kernel), pair(stride), pair(padding), pair(dilation), counts, strict=True)
        for axis, k, s, p, d, count in geometry:
            low = axis.low - p * axis.jump
            axes.append(_Axis(axis.jump * s, low, low + axis.high - axis.low + (k - 1) * d * axis.jump, count))
        return Field(tuple(axes))

    def whole(self) -> "Field":
        """After an operation that mixes all positions."""
        return Field(tuple(_Axis(a.jump, a.low, a.high + (a.count - 1) * a.jump, 1) for a in self.axes))

    def joined(self, other: "Field") -> "Field | None":
        """After a join of two: each output sees what either sees. None where their outputs do not lie alike."""
        axes = []
        for a, b in zip(self.axes, other.axes, strict=True):
            if (a.jump, a.count) != (b.jump, b.count):
                return None
            axes.append(_Axis(a.jump, min(a.low, b.low), max(a.high, b.high), a.count))
        return Field(tuple(axes))


# Several of torch's operations that are one to whoever reads a table.
_ONE_NAME = {"reshape": "view", "_unsafe_view": "view", "concat": "cat", "concatenate": "cat", "contiguous": "clone"}


def operation(node: fx.Node) -> str:
    """The operation by the name that torch.nn.functional has for it."""
    return _name(node.target)


@cache  # asked for at each step of a collapsed training, and torch makes the words anew each time
def _name(target: object) -> str:
    name = str(target).removeprefix("aten.").split(".")[0]
    return _ONE_NAME.get(name.rstrip("_"), name.rstrip("_").lstrip("_"))


def field_of(op: str, node: fx.Node, fields: Sequence[Field | None]) -> Field | None:
    """The field after an operation on inputs with these `fields`; None where it cannot be told."""
    if not fields or any(field is None for field in fields):
        return None
    first = fields[0]
    assert first is not None, "checked above"
    counts = _shape(node)[2:]
    if op == "conv2d":
        weight = node.args[1]
        assert isinstance(weight, fx.Node), "a convolution has a weight"
        kernel, dilation = _shape(weight)[2:], argument(node, 5, 1)
        padding = argument(node, 4, 0)
        if isinstance(padding, str):
            span = [d * (k - 1) for d, k in zip(pair(dilation), kernel, strict=True)]
            padding = [s // 2 for s in span] if padding == "same" else 0
        return first.through(kernel, argument(node, 3, 1), padding, dilation, counts)
    if op in ("max_pool2d", "avg_pool2d", "max_pool2d_with_indices"):
        kernel = argument(node, 1, 1)
        dilation = argument(node, 4, 1) if op.startswith("max") else 1
        return first.through(kernel, argument(node, 2, None) or kernel, argument(node, 3, 0), dilation, counts)
    if op in ("linear", "addmm", "mm", "matmul", "mean", "sum") or (op.startswith("adaptive") and prod(counts) == 1):
        return first.whole()
    if op in ("view", "flatten") or op in _POINTWISE:
        joined: Field | None = first
        for field in fields[1:]:
            joined = joined.joined(field) if joined is not None and field is not None else None
        return joined
    return None


def window_of(op: str, node: fx.Node) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """What one output sees of the input, and the step to the next, height and width; None where it is no window."""
    if op == "conv2d":
        reach = zip(_shape(node.args[1])[2:], pair(argument(node, 5, 1)), strict=True)
        height, width = (d * (k - 1) + 1 for k, d in reach)
        return (height, width), pair(argument(node, 3, 1))
    if op in ("max_pool2d", "avg_pool2d"):
        kernel = argument(node, 1, 1)
        return pair(kernel), pair(argument(node, 2, None) or kernel)
    return ((1, 1), (1, 1)) if op in _POINTWISE else None


def macs_of(node: fx.Node) -> int:
    """Return the multiply-accumulates of an operation, for as many images as its shapes have."""
    return _macs(operation(node), [_shape(arg) if isinstance(arg, fx.Node) else arg for arg in node.args], _shape(node))


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


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Adds up the multiply-accumulates of all that runs."""

    macs: int = 0

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # nothing is compiled here, and to skip torch's compiler is to import it first, for two seconds

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


def argument(node: fx.Node, place: int, default: Any) -> Any:
    """The argument at `place` of an operation, which the graph leaves out where it is the default."""
    return node.args[place] if place < len(node.args) else default


def pair(value: Any) -> tuple[int, int]:
    """One number for both axes, or one for each, as two."""
    numbers = [value] if isinstance(value, int) else list(value)
    return (int(numbers[0]), int(numbers[-1]))


def _shape(node: Any) -> tuple[int, ...]:
    value = node.meta["val"]
    return tuple(int(n) for n in (value[0] if isinstance(value, list | tuple) else value).shape)


def count_parameters(net: nn.Module) -> int:
    """Count the numbers that `net` learns, each parameter once."""
    return sum(parameter.numel() for parameter in net.parameters())
