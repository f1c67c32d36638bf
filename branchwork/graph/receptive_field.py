"""The receptive field of each output: the pixels that it depends on (Araujo et al. 2019, section 3)."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import fx

from branchwork.blocks import pair
from branchwork.graph.costs import argument, sizes_of

# fmt: off
# Operations that treat each position by itself, so that its receptive field does not change.
_POINTWISE = frozenset({
    "relu", "relu6", "leaky_relu", "elu", "selu", "celu", "gelu", "silu", "mish", "hardswish", "hardtanh",
    "hardsigmoid", "sigmoid", "tanh", "softplus", "prelu", "clamp", "batch_norm", "dropout", "feature_dropout",
    "alpha_dropout", "add", "sub", "mul", "div", "cat", "neg", "exp", "abs", "square", "sqrt", "rsqrt", "pow",
    "maximum", "minimum", "where", "clone", "detach", "alias", "identity", "to", "type_as", "channel_shuffle",
})
# fmt: on


@dataclass(frozen=True)
class _Axis:
    """Along one axis, output i of `count` depends on pixels `low + i·jump` to `high + i·jump`, both included."""

    jump: int
    low: int
    high: int
    count: int


@dataclass(frozen=True)
class ReceptiveField:
    """The pixels that each output depends on, along height and width."""

    axes: tuple[_Axis, ...]

    @classmethod
    def of_image(cls, size: Sequence[int]) -> "ReceptiveField":
        """Return the field of the image itself: one pixel each."""
        return cls(tuple(_Axis(1, 0, 0, n) for n in size))

    def size(self, image: Sequence[int]) -> tuple[int, int]:
        """Return height and width in pixels, at most those of the image."""
        height, width = (min(axis.high - axis.low + 1, n) for axis, n in zip(self.axes, image, strict=True))
        return height, width

    def through(
        self, kernel: Any, counts: Sequence[int], *, stride: Any, padding: Any, dilation: Any
    ) -> "ReceptiveField":
        """Return the field after a window of this geometry that gives `counts` outputs."""
        axes = []
        geometry = zip(self.axes, pair(kernel), pair(stride), pair(padding), pair(dilation), counts, strict=True)
        for axis, k, s, p, d, count in geometry:
            low = axis.low - p * axis.jump
            axes.append(_Axis(axis.jump * s, low, low + axis.high - axis.low + (k - 1) * d * axis.jump, count))
        return ReceptiveField(tuple(axes))

    def whole(self) -> "ReceptiveField":
        """Return the field after an operation that mixes all positions."""
        return ReceptiveField(tuple(_Axis(a.jump, a.low, a.high + (a.count - 1) * a.jump, 1) for a in self.axes))

    def joined(self, other: "ReceptiveField") -> "ReceptiveField | None":
        """Return the union of two fields; None if their outputs are not aligned."""
        axes = []
        for a, b in zip(self.axes, other.axes, strict=True):
            if (a.jump, a.count) != (b.jump, b.count):
                return None
            axes.append(_Axis(a.jump, min(a.low, b.low), max(a.high, b.high), a.count))
        return ReceptiveField(tuple(axes))


def field_of(op: str, node: fx.Node, fields: Sequence[ReceptiveField | None]) -> ReceptiveField | None:
    """Return the field after an operation on inputs with these `fields`; None if it is unknown."""
    if not fields or any(field is None for field in fields):
        return None
    first = fields[0]
    assert first is not None, "checked above"
    counts = _size(node)
    if op == "conv2d":
        weight = node.args[1]
        assert isinstance(weight, fx.Node), "a convolution has a weight"
        kernel, dilation = _size(weight), argument(node, 5, 1)
        padding = argument(node, 4, 0)
        if isinstance(padding, str):
            span = [d * (k - 1) for d, k in zip(pair(dilation), kernel, strict=True)]
            padding = [s // 2 for s in span] if padding == "same" else 0
        return first.through(kernel, counts, stride=argument(node, 3, 1), padding=padding, dilation=dilation)
    if op in ("max_pool2d", "avg_pool2d", "max_pool2d_with_indices"):
        kernel = argument(node, 1, 1)
        dilation = argument(node, 4, 1) if op.startswith("max") else 1
        stride = argument(node, 2, None) or kernel
        return first.through(kernel, counts, stride=stride, padding=argument(node, 3, 0), dilation=dilation)
    if op in ("linear", "addmm", "mm", "matmul", "mean", "sum") or (op.startswith("adaptive") and prod(counts) == 1):
        return first.whole()
    if op in ("view", "flatten") or op in _POINTWISE:
        joined: ReceptiveField | None = first
        for field in fields[1:]:
            joined = joined.joined(field) if joined is not None and field is not None else None
        return joined
    return None


def window_of(op: str, node: fx.Node) -> tuple[tuple[int, int], tuple[int, int]] | None:
    """Return the window of the input that one output reads, and the stride; None if it is no window."""
    if op == "conv2d":
        reach = zip(_size(node.args[1]), pair(argument(node, 5, 1)), strict=True)
        height, width = (d * (k - 1) + 1 for k, d in reach)
        return (height, width), pair(argument(node, 3, 1))
    if op in ("max_pool2d", "avg_pool2d"):
        kernel = argument(node, 1, 1)
        return pair(kernel), pair(argument(node, 2, None) or kernel)
    return ((1, 1), (1, 1)) if op in _POINTWISE else None


def _size(node: Any) -> tuple[int, ...]:
    """Return height and width of an output or a kernel; empty for a vector."""
    return sizes_of(node)[2:]
