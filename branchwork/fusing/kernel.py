"""The algebra of affine maps between images: which inputs each output reads, exact at the border.

An affine layer reads its input through a window. Two consecutive layers are one map, whose kernel is *composed* of
theirs: the second reads the first and, through it, the inputs of the first. Where the second reads beyond the image
between them, it reads zeros, whatever the first layer would compute there, so some products near the border are left
out.

A window is a product of rows and columns, and so is a border, so kernels are composed along one axis at a time. A slice
of a kernel is the part that multiplies one row (or column) of an image. Outputs with the same window share slices: an
`Axis` says which output reads which position through which slice.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

# The number of the slice for each tap of one output's window; None where it reads nothing: beyond the image, or in the
# holes of a dilated window.
Window = tuple[int | None, ...]


@dataclass(frozen=True)
class Axis:
    """Height or width: output i reads position i·stride + offset + t through slice `windows[i][t]`."""

    windows: tuple[Window, ...]
    offset: int = 0
    stride: int = 1

    @property
    def outputs(self) -> int:
        return len(self.windows)

    @property
    def taps(self) -> int:
        return len(self.windows[0])

    def start(self, output: int) -> int:
        return output * self.stride + self.offset

    def reads(self, output: int) -> Iterator[tuple[int, int]]:
        """Yield each position that an output reads, with the number of the slice."""
        for position, number in enumerate(self.windows[output], self.start(output)):
            if number is not None:
                yield position, number


@lru_cache(maxsize=1024)
def sliding(taps: int, outputs: int, size: int, *, offset: int = 0, stride: int = 1, dilation: int = 1) -> Axis:
    """Return the axis of a window with one slice for each tap, slid over `size` positions; `offset` is -padding."""
    windows = []
    for output in range(outputs):
        window: list[int | None] = [None] * ((taps - 1) * dilation + 1)
        for tap in range(taps):
            if 0 <= output * stride + offset + tap * dilation < size:
                window[tap * dilation] = tap
        windows.append(tuple(window))
    return Axis(tuple(windows), offset, stride)


@dataclass(frozen=True)
class Kernel:
    """What outputs read of one tensor.

    `weight` is Y×X×C×O: slices along rows, slices along columns, channels of the tensor, output channels. `macs` counts
    the multiply-accumulates that made it.
    """

    weight: Tensor
    rows: Axis
    columns: Axis
    macs: int = 0

    @property
    def axes(self) -> tuple[Axis, Axis]:
        return self.rows, self.columns

    def scaled(self, factor: Tensor | float) -> "Kernel":
        """Return the kernel for a tensor that is first multiplied by `factor`, a number or one for each channel."""
        factor = factor[:, None] if isinstance(factor, Tensor) else factor
        return replace(self, weight=self.weight * factor)


@dataclass(frozen=True)
class Diagonal:
    """The map that multiplies each channel by its `scale`, where composition starts."""

    scale: Tensor
    size: tuple[int, int]

    def kernel(self) -> Kernel:
        rows, columns = (sliding(1, count, count) for count in self.size)
        return Kernel(torch.diag(self.scale)[None, None], rows, columns)

    def scaled(self, factor: Tensor | float) -> "Diagonal":
        return replace(self, scale=self.scale * factor)

    def of(self, kernel: Kernel) -> Kernel:
        """Return `kernel` with its outputs scaled."""
        return replace(kernel, weight=kernel.weight * self.scale)


def of_convolution(weight: Tensor, rows: Axis, columns: Axis, *, groups: int) -> Kernel:
    """Return the kernel of a convolution O×C/groups×h×w whose windows slide along these axes."""
    if groups > 1:
        parts = enumerate(weight.chunk(groups))
        share = weight.shape[1]
        weight = torch.cat([F.pad(p, (0, 0, 0, 0, i * share, (groups - 1 - i) * share)) for i, p in parts])
    return Kernel(weight.permute(2, 3, 1, 0), rows, columns)


def of_flattened(kernel: Kernel, shape: tuple[int, int, int]) -> Kernel:
    """Return a kernel for flattened images as one for images C×H×W: its window covers the whole image."""
    rows, columns = (sliding(size, 1, size) for size in shape[1:])
    return Kernel(kernel.weight.reshape(*shape, -1).permute(1, 2, 0, 3), rows, columns, kernel.macs)


class Constant:
    """A float64 matrix, with cached copies of other types and on other devices."""

    def __init__(self, numbers: Tensor) -> None:
        with torch.inference_mode(False):  # training cannot use tensors that a validation made in inference mode
            self.numbers = numbers.clone()
        self._copies: dict[tuple[torch.dtype, torch.device], Tensor] = {}

    def like(self, other: Tensor) -> Tensor:
        """Return the matrix in the type of `other`, on its device."""
        copy = self._copies.get((other.dtype, other.device))
        if copy is None:
            with torch.inference_mode(False):
                copy = self.numbers.to(other.dtype).to(other.device)
            if not copy.is_meta:  # as while a graph is read
                self._copies[other.dtype, other.device] = copy
        return copy


class ComposedAxis:
    """The axis of a composed kernel, and a matrix that gives each of its slices as a sum of products of slices."""

    def __init__(self, axis: Axis, factors: Tensor) -> None:
        self.axis = axis
        self.slices, self.products = factors.shape
        self.matrix = Constant(factors)
        self.is_plain = self.slices == self.products and torch.equal(factors, torch.eye(self.products).double())


# The products through which one output reads each position: their numbers, with a factor each.
_Sums = dict[int, list[tuple[int, float]]]


def _composed(outputs: Sequence[_Sums], products: int, *, start: int, stride: int) -> ComposedAxis:
    """Number the sums of products that occur as slices. Output i reads position i·stride + `start` + t."""
    numbers: dict[tuple[tuple[int, float], ...], int] = {}
    taps: dict[tuple[int, int], int] = {}
    # From the middle outwards, so that the slices away from the border come first and in order.
    for output in sorted(range(len(outputs)), key=lambda i: abs(2 * i + 1 - len(outputs))):
        for position, terms in sorted(outputs[output].items()):
            number = numbers.setdefault(tuple(sorted(terms)), len(numbers))
            taps[output, position - output * stride - start] = number
    used = {tap for _, tap in taps} or {0}
    first, last = min(used), max(used)
    windows = tuple(tuple(taps.get((i, tap)) for tap in range(first, last + 1)) for i in range(len(outputs)))
    factors = torch.zeros(len(numbers), products, dtype=torch.float64)
    for sums, number in numbers.items():
        for product, factor in sums:
            factors[number, product] += factor
    return ComposedAxis(Axis(windows, start + first, stride), factors)


@lru_cache(maxsize=4096)  # the same at every step of a training
def compose_axes(
    reader: Axis, source: Axis, counts: tuple[int, int], *, factors: tuple[float, ...] = ()
) -> ComposedAxis:
    """Return the axis along which `reader` reads through `source`; they have `counts` slices.

    Product s·R + r is that of slice s of the source with slice r of the reader, which has R. With `factors`, one for
    each output of `source`, each of these is a plain sum over its window, multiplied by its factor.
    """
    outputs = []
    for output in range(reader.outputs):
        sums: _Sums = {}
        for between, outer in reader.reads(output):
            for position, inner in source.reads(between):
                product = (outer, factors[between]) if factors else (inner * counts[0] + outer, 1.0)
                sums.setdefault(position, []).append(product)
        outputs.append(sums)
    start = reader.offset * source.stride + source.offset
    return _composed(outputs, counts[0] * counts[1], start=start, stride=reader.stride * source.stride)


@lru_cache(maxsize=4096)
def add_axes(axes: tuple[Axis, ...], counts: tuple[int, ...]) -> tuple[ComposedAxis, ...]:
    """Return, for each of several kernels with `counts` slices that are added up, where its slices go.

    Raises `StridesDiffer` where their strides differ.
    """
    if axes[0].outputs > 1 and len({axis.stride for axis in axes}) > 1:
        raise StridesDiffer
    outputs = []
    for output in range(axes[0].outputs):
        sums: _Sums = {}
        for axis, begin in zip(axes, accumulate(counts, initial=0), strict=False):
            for position, number in axis.reads(output):
                sums.setdefault(position, []).append((begin + number, 1.0))
        outputs.append(sums)
    start = min(axis.offset for axis in axes)
    summed = _composed(outputs, sum(counts), start=start, stride=axes[0].stride)
    return tuple(ComposedAxis(summed.axis, part) for part in torch.split(summed.matrix.numbers, list(counts), 1))


# What rows and columns of an image are multiplied by.
Factors = tuple[tuple[float, ...], tuple[float, ...]]


def compose(reader: Kernel, source: Kernel) -> Kernel:
    """Return the kernel of what `reader` reads through `source`."""
    rows, columns = (
        compose_axes(outer, inner, (outer_count, inner_count))
        for outer, inner, outer_count, inner_count in zip(
            reader.axes, source.axes, reader.weight.shape, source.weight.shape, strict=False
        )
    )
    if reader.weight.is_meta:  # only the cost is wanted
        weight = source.weight.new_empty(rows.slices, columns.slices, source.weight.shape[2], reader.weight.shape[3])
    else:
        weight = _Compose.apply(reader.weight, source.weight, rows, columns)  # type: ignore[no-untyped-call]
    macs = reader.weight.numel() * source.weight.numel() // reader.weight.shape[2]
    macs += _placing(rows, columns, weight)
    return Kernel(weight, rows.axis, columns.axis, reader.macs + source.macs + macs)


def compose_sum(reader: Kernel, source: tuple[Axis, Axis], factors: Factors) -> Kernel:
    """Return the kernel of what `reader` reads through sums over windows, each channel by itself, times `factors`."""
    rows, columns = (
        compose_axes(outer, inner, (count, 1), factors=along)
        for outer, inner, count, along in zip(reader.axes, source, reader.weight.shape, factors, strict=False)
    )
    weight: Tensor = _Place.apply([(rows, columns)], reader.weight)  # type: ignore[no-untyped-call]
    return Kernel(weight, rows.axis, columns.axis, reader.macs + _placing(rows, columns, weight))


class StridesDiffer(Exception):
    """Kernels for one tensor have windows of different strides, so that no kernel is their sum."""


def total(kernels: Sequence[Kernel]) -> Kernel:
    """Return the sum of kernels for one tensor. Raises `StridesDiffer` where their strides differ."""
    if len(kernels) == 1:
        return kernels[0]
    rows, columns = (
        add_axes(tuple(kernel.axes[dim] for kernel in kernels), tuple(kernel.weight.shape[dim] for kernel in kernels))
        for dim in (0, 1)
    )
    places = list(zip(rows, columns, strict=True))
    weight: Tensor = _Place.apply(places, *(kernel.weight for kernel in kernels))  # type: ignore[no-untyped-call]
    macs = sum(kernel.macs for kernel in kernels) + sum(_placing(*place, weight) for place in places)
    return Kernel(weight, rows[0].axis, columns[0].axis, macs)


class _Compose(torch.autograd.Function):
    """`compose` with few operations backward: they are small, and starting them is what takes the time.

    All slices of one kernel are multiplied by all of the other at once, since many small products take torch ten times
    as long as a large one.
    """

    @staticmethod
    def forward(ctx: Any, reader: Tensor, source: Tensor, rows: ComposedAxis, columns: ComposedAxis) -> Tensor:
        ctx.rows, ctx.columns, ctx.shapes = rows, columns, (reader.shape, source.shape)
        left, right = source.flatten(0, 2), reader.permute(2, 0, 1, 3).flatten(1)
        ctx.save_for_backward(left, right)
        products = (left @ right).view(*source.shape[:3], *reader.shape[:2], reader.shape[3])
        return _place(products.permute(0, 3, 1, 4, 2, 5).flatten(2, 3).flatten(0, 1), rows, columns)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor, None, None]:
        left, right = ctx.saved_tensors
        reader, source = ctx.shapes
        products = _take(gradient, ctx.rows, ctx.columns)
        products = products.view(source[0], reader[0], source[1], reader[1], source[2], reader[3])
        products = products.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(0, 2)
        to_reader = (left.mT @ products).view(reader[2], reader[0], reader[1], reader[3]).permute(1, 2, 0, 3)
        return to_reader, (products @ right.mT).view(source), None, None


class _Place(torch.autograd.Function):
    """The sum of kernels, with the slices of each put in place."""

    @staticmethod
    def forward(ctx: Any, places: Sequence[tuple[ComposedAxis, ComposedAxis]], *weights: Tensor) -> Tensor:
        ctx.places = places
        first, *others = (_place(weight, *place) for weight, place in zip(weights, places, strict=True))
        return sum(others, first)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        return None, *(_take(gradient, *place) for place in ctx.places)


def _place(products: Tensor, rows: ComposedAxis, columns: ComposedAxis) -> Tensor:
    """Sum products (rows × columns × C × O) to slices Y×X×C×O."""
    ends = products.shape[2:]
    if not rows.is_plain:
        products = rows.matrix.like(products) @ products.flatten(1)
    if not columns.is_plain:
        products = columns.matrix.like(products) @ products.reshape(rows.slices, columns.products, ends.numel())
    return products.reshape(rows.slices, columns.slices, *ends)


def _take(placed: Tensor, rows: ComposedAxis, columns: ComposedAxis) -> Tensor:
    """Return the gradient of `_place`."""
    ends = placed.shape[2:]
    if not columns.is_plain:
        placed = columns.matrix.like(placed).mT @ placed.flatten(2)
    if not rows.is_plain:
        placed = rows.matrix.like(placed).mT @ placed.reshape(rows.slices, columns.products * ends.numel())
    return placed.reshape(rows.products, columns.products, *ends)


def _placing(rows: ComposedAxis, columns: ComposedAxis, placed: Tensor) -> int:
    """Count the multiply-accumulates of `_place`."""
    ends = placed.shape[2:].numel()
    along_rows = 0 if rows.is_plain else rows.slices * rows.products * columns.products
    along_columns = 0 if columns.is_plain else rows.slices * columns.slices * columns.products
    return (along_rows + along_columns) * ends
