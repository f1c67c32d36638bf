"""The algebra of affine maps between images: what one output reads of an earlier tensor, border included.

An affine layer reads its input through a window, with zeros around the image. Of two in a row, the second reads the
first, and so, through it, what the first reads: the kernel of both is *composed* of theirs. Where the second reads
beyond the image between them it reads zeros, whatever the first would have given there; so outputs near the border get
kernels of their own, from which those products are left out. That is all there is to it.

A window is a product of rows and columns, and so is a border: both are joined along one axis at a time.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import groupby
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Axis:
    """Along height or width: output i reads the positions i·stride + offset, + 1, … of the tensor that is read.

    `classes` has a number for each output: those with the same number have the same kernel.
    """

    classes: tuple[int, ...]
    offset: int = 0
    stride: int = 1

    @property
    def outputs(self) -> int:
        return len(self.classes)

    def start(self, output: int) -> int:
        return output * self.stride + self.offset

    def runs(self) -> list[tuple[int, int, int]]:
        """Neighbours of one class: their first output, the one after their last, and the class."""
        runs, begin = [], 0
        for number, members in groupby(self.classes):
            end = begin + len(list(members))
            runs.append((begin, end, number))
            begin = end
        return runs


@dataclass(frozen=True)
class Kernel:
    """What outputs read of one tensor.

    `weight` is Y×h×X×w×C×O: classes of rows, height of the window, classes of columns, its width, channels of the
    tensor, output channels. `macs` are the multiply-accumulates that it took to find it.
    """

    weight: Tensor
    rows: Axis
    columns: Axis
    macs: int = 0

    @property
    def window(self) -> tuple[int, int]:
        return self.weight.shape[1], self.weight.shape[3]

    @property
    def axes(self) -> tuple[Axis, Axis]:
        return self.rows, self.columns

    def scaled(self, factor: Tensor | float) -> "Kernel":
        """For a tensor that is multiplied by one number, or by one for each channel, before it is read."""
        factor = factor[:, None] if isinstance(factor, Tensor) else factor
        return replace(self, weight=self.weight * factor)


@dataclass(frozen=True)
class Diagonal:
    """Each output reads itself, times the `scale` of its channel: where a kernel begins."""

    scale: Tensor
    size: tuple[int, int]

    def kernel(self) -> Kernel:
        rows, columns = (Axis((0,) * count) for count in self.size)
        return Kernel(torch.diag(self.scale)[None, None, None, None], rows, columns)

    def scaled(self, factor: Tensor | float) -> "Diagonal":
        return replace(self, scale=self.scale * factor)

    def of(self, kernel: Kernel) -> Kernel:
        """The outputs of `kernel`, scaled."""
        return replace(kernel, weight=kernel.weight * self.scale)


def of_convolution(
    weight: Tensor,
    outputs: tuple[int, int],
    stride: tuple[int, int],
    offset: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Kernel:
    """The kernel of a convolution O×C/groups×h×w; `offset` is where its window begins: minus its padding."""
    if groups > 1:
        parts = enumerate(weight.chunk(groups))
        share = weight.shape[1]
        weight = torch.cat([F.pad(p, (0, 0, 0, 0, i * share, (groups - 1 - i) * share)) for i, p in parts])
    taps = weight.permute(2, 3, 1, 0)
    if dilation != (1, 1):
        height, width = ((k - 1) * d + 1 for k, d in zip(weight.shape[2:], dilation, strict=True))
        dense = taps.new_zeros(height, width, *taps.shape[2:])
        dense[:: dilation[0], :: dilation[1]] = taps
        taps = dense
    rows, columns = (Axis((0,) * n, begin, step) for n, step, begin in zip(outputs, stride, offset, strict=True))
    return Kernel(taps[None, :, None], rows, columns)


def of_flattened(kernel: Kernel, shape: tuple[int, int, int]) -> Kernel:
    """What reads a flattened image, as what reads the image C×H×W: a matrix is a window that covers all of it."""
    window = kernel.weight.reshape(*shape, -1).permute(1, 2, 0, 3)
    return Kernel(window[None, :, None], Axis((0,)), Axis((0,)), kernel.macs)


@dataclass(eq=False)
class Join:
    """Two windows in a row along one axis, as one.

    `products` are those of a class and tap of the reader (a number for both) with a class of what it reads, and the
    matrix (classes · taps) × (products · taps of what is read) puts them where they belong.
    """

    axis: Axis
    taps: int
    readers: tuple[int, ...]
    sources: tuple[int, ...]
    rows: list[list[float]]
    _matrices: dict[tuple[torch.dtype, torch.device], Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.rows)
        self.is_plain = self.rows == [[float(i == j) for j in range(count)] for i in range(count)]

    def matrix(self, like: Tensor) -> Tensor:
        key = (like.dtype, like.device)
        if key not in self._matrices:
            with torch.inference_mode(False):  # a validation must not leave what a training cannot use
                self._matrices[key] = torch.tensor(self.rows, dtype=like.dtype).to(like.device)
        return self._matrices[key]


@lru_cache(maxsize=4096)  # the same at every step of a training
def join(reader: Axis, taps: int, source: Axis, source_taps: int, size: int, factors: tuple[float, ...] = ()) -> Join:
    """What reads `size` positions through `source`, where that is read through `reader`.

    With `factors`, one for each position of what `source` gives, its window is a sum that is multiplied by them, and
    the matrix has a column for each product.
    """
    kinds: dict[tuple[Any, ...], int] = {}
    classes = []
    for output, number in enumerate(reader.classes):
        start = reader.start(output)
        seen = tuple(_seen(start + tap, source, source_taps, size, factors) for tap in range(taps))
        classes.append(kinds.setdefault((number, seen), len(kinds)))
    products: dict[tuple[int, int], int] = {}
    entries: dict[tuple[int, int, int], float] = {}
    for (number, seen), kind in kinds.items():
        for tap, found in enumerate(seen):
            if found is not None:
                product = products.setdefault((number * taps + tap, found[0]), len(products))
                for inner in range(source_taps):
                    column = product if factors else product * source_taps + inner
                    entries[kind, tap * source.stride + inner, column] = found[1]
    axis = Axis(tuple(classes), reader.offset * source.stride + source.offset, reader.stride * source.stride)
    used = {tap for kind, tap, _ in entries if _is_read(axis, kind, tap, size)} or {0}
    first, count = min(used), max(used) + 1 - min(used)
    width = len(products) * (1 if factors else source_taps)
    rows = [[0.0] * width for _ in range(len(kinds) * count)]
    for (kind, tap, column), factor in entries.items():
        if 0 <= tap - first < count:
            rows[kind * count + tap - first][column] = factor
    readers, sources = zip(*products, strict=True) if products else ((), ())
    return Join(replace(axis, offset=axis.offset + first), count, readers, sources, rows)


def _seen(position: int, source: Axis, taps: int, size: int, factors: tuple[float, ...]) -> tuple[int, float] | None:
    """The class and the factor of what lies at `position`; None where that is beyond the image, and so zero."""
    inside = min(max(position, 0), source.outputs - 1)
    start = source.start(position)
    # Beyond the image, what reads zeros anyway need not be told apart.
    if position != inside and start < size and start + taps > 0:
        return None
    return source.classes[inside], factors[inside] if factors else 1.0


def _is_read(axis: Axis, kind: int, tap: int, size: int) -> bool:
    return any(number == kind and 0 <= axis.start(i) + tap < size for i, number in enumerate(axis.classes))


# What rows and columns of an image are multiplied by.
Factors = tuple[tuple[float, ...], tuple[float, ...]]


def compose(reader: Kernel, source: Kernel, size: tuple[int, int]) -> Kernel:
    """What `reader` reads of an image of `size` through `source`."""
    rows, columns = (
        join(axis, taps, inner, inner_taps, length)
        for axis, taps, inner, inner_taps, length in zip(
            reader.axes, reader.window, source.axes, source.window, size, strict=True
        )
    )
    if not (rows.readers and columns.readers):
        return _nothing(reader, source.weight.shape[4], rows, columns)
    weight: Tensor = _Compose.apply(reader.weight, source.weight, rows, columns)  # type: ignore[no-untyped-call]
    through, outputs = reader.weight.shape[4:]
    height, width = source.window
    pairs = outputs * source.weight.shape[4] * len(columns.readers) * width
    macs = len(rows.readers) * height * pairs * through
    macs += len(rows.rows) * len(rows.readers) * height * pairs
    macs += len(rows.rows) * len(columns.rows) * pairs
    return Kernel(weight, rows.axis, columns.axis, reader.macs + source.macs + macs)


def compose_sum(
    reader: Kernel, source: tuple[Axis, Axis], window: tuple[int, int], size: tuple[int, int], factors: Factors
) -> Kernel:
    """What `reader` reads, channel by channel, through sums over a `window` that are multiplied by `factors`."""
    rows, columns = (
        join(axis, taps, inner, inner_taps, length, by)
        for axis, taps, inner, inner_taps, length, by in zip(
            reader.axes, reader.window, source, window, size, factors, strict=True
        )
    )
    if not (rows.readers and columns.readers):
        return _nothing(reader, reader.weight.shape[4], rows, columns)
    picked = _pick(reader.weight, (rows.readers, columns.readers))
    weight = _place(picked[:, None, :, None], rows, columns)
    return Kernel(weight, rows.axis, columns.axis, reader.macs + weight.numel() * len(columns.readers))


def _nothing(reader: Kernel, channels: int, rows: Join, columns: Join) -> Kernel:
    """All that is read lies beyond the image between."""
    kinds = (max(rows.axis.classes) + 1, rows.taps, max(columns.axis.classes) + 1, columns.taps)
    weight = reader.weight.new_zeros(*kinds, channels, reader.weight.shape[5])
    return Kernel(weight, rows.axis, columns.axis, reader.macs)


class _Compose(torch.autograd.Function):
    """`compose`, with a backward pass of few operations: these are small, and to start them is what takes the time."""

    @staticmethod
    def forward(ctx: Any, reader: Tensor, source: Tensor, rows: Join, columns: Join) -> Tensor:
        ctx.rows, ctx.columns, ctx.shapes = rows, columns, (reader.shape, source.shape)
        right = _pick(reader, (rows.readers, columns.readers))
        left = source.permute(0, 2, 1, 3, 4, 5).flatten(2, 4)
        outer, inner, outputs = right.shape[:2], (source.shape[1], *source.shape[3:5]), right.shape[3]
        if left.shape[:2] != (1, 1):
            for dim, numbers in ((0, rows.sources), (1, columns.sources)):
                left = left.index_select(dim, torch.tensor(numbers, device=left.device))
            products = (left @ right).view(*outer, *inner, outputs).permute(0, 2, 1, 3, 4, 5)
        else:  # one product, since torch does many small ones ten times as slowly
            left, right = left[0, 0], right.permute(2, 0, 1, 3).flatten(1)
            products = (left @ right).view(*inner, *outer, outputs).permute(3, 0, 4, 1, 2, 5)
        ctx.save_for_backward(left, right)
        return _place(products, rows, columns)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        left, right = ctx.saved_tensors
        rows, columns, (reader, source) = ctx.rows, ctx.columns, ctx.shapes
        products = _take(gradient, rows, columns, (source[1], source[3]))
        outer = (products.shape[0], products.shape[2])
        if left.dim() == 2:
            products = products.permute(1, 3, 4, 0, 2, 5).flatten(3).flatten(0, 2)
            to_right = (left.mT @ products).view(-1, *outer, reader[5]).permute(1, 2, 0, 3)
            to_left = products @ right.mT
        else:
            products = products.permute(0, 2, 1, 3, 4, 5).flatten(2, 4)
            to_right, to_left = left.mT @ products, products @ right.mT
            to_left = _add_at(to_left, 0, rows.sources, source[0])
            to_left = _add_at(to_left, 1, columns.sources, source[2])
        to_left = to_left.view(source[0], source[2], source[1], source[3], *source[4:]).permute(0, 2, 1, 3, 4, 5)
        return _unpick(to_right, reader, (rows.readers, columns.readers)), to_left, None, None


# Which classes and taps of a reader products take, along rows and columns.
_Numbers = tuple[tuple[int, ...], tuple[int, ...]]


def _pick(weight: Tensor, numbers: _Numbers) -> Tensor:
    """Of Y×h×X×w×C×O what each product takes: rows × columns × C × O."""
    picked = weight.flatten(0, 1).flatten(1, 2)
    for dim, taken in enumerate(numbers):
        if taken != tuple(range(picked.shape[dim])):
            picked = picked.index_select(dim, torch.tensor(taken, device=picked.device))
    return picked


def _unpick(picked: Tensor, shape: Sequence[int], numbers: _Numbers) -> Tensor:
    """The gradient of `_pick`."""
    for dim, taken in enumerate(numbers):
        count = shape[2 * dim] * shape[2 * dim + 1]
        if taken != tuple(range(count)):
            picked = _add_at(picked, dim, taken, count)
    return picked.reshape(shape)


def _add_at(values: Tensor, dim: int, numbers: Sequence[int], count: int) -> Tensor:
    """`values` added up along `dim` where their `numbers` are the same, of which there are `count`."""
    sums = values.new_zeros(*values.shape[:dim], count, *values.shape[dim + 1 :])
    return sums.index_add_(dim, torch.tensor(numbers, device=values.device), values)


def _place(products: Tensor, rows: Join, columns: Join) -> Tensor:
    """Products (p, h, q, w, C, O), put where they belong: Y×h×X×w×C×O."""
    ends = products.shape[4:]
    if not rows.is_plain:
        products = rows.matrix(products) @ products.reshape(products.shape[0] * products.shape[1], -1)
    if not columns.is_plain:
        products = columns.matrix(products) @ products.reshape(len(rows.rows), -1, ends.numel())
    return products.reshape(-1, rows.taps, len(columns.rows) // columns.taps, columns.taps, *ends)


def _take(placed: Tensor, rows: Join, columns: Join, taps: tuple[int, int]) -> Tensor:
    """The gradient of `_place`."""
    ends = placed.shape[4:]
    if not columns.is_plain:
        placed = columns.matrix(placed).mT @ placed.reshape(len(rows.rows), len(columns.rows), -1)
    if not rows.is_plain:
        placed = rows.matrix(placed).mT @ placed.reshape(len(rows.rows), -1)
    return placed.reshape(-1, taps[0], len(columns.readers), taps[1], *ends)


class StepsDiffer(Exception):
    """Two kernels for one tensor whose windows move by different steps: no one kernel is their sum."""


def total(kernels: Sequence[Kernel]) -> Kernel:
    """One kernel for the sum. Raises `StepsDiffer` where windows move by different steps."""
    if len(kernels) == 1:
        return kernels[0]
    (rows, row_kinds), (columns, column_kinds) = (_joint([kernel.axes[dim] for kernel in kernels]) for dim in (0, 1))
    height, width = (
        max(kernel.axes[dim].offset + kernel.window[dim] for kernel in kernels) - axis.offset
        for dim, axis in enumerate((rows, columns))
    )
    places = []
    for index, kernel in enumerate(kernels):
        top, left = kernel.rows.offset - rows.offset, kernel.columns.offset - columns.offset
        places.append(
            (
                [kind[index] for kind in row_kinds],
                slice(top, top + kernel.window[0]),
                [kind[index] for kind in column_kinds],
                slice(left, left + kernel.window[1]),
            )
        )
    size = (len(row_kinds), height, len(column_kinds), width, *kernels[0].weight.shape[4:])
    weight: Tensor = _Total.apply(size, places, *(kernel.weight for kernel in kernels))  # type: ignore[no-untyped-call]
    return Kernel(weight, rows, columns, sum(kernel.macs for kernel in kernels))


def _joint(axes: Sequence[Axis]) -> tuple[Axis, list[tuple[int, ...]]]:
    """The axis of the sum of kernels, and for each of its classes the class in each of them."""
    if axes[0].outputs > 1 and len({axis.stride for axis in axes}) > 1:
        raise StepsDiffer
    seen = list(zip(*(axis.classes for axis in axes), strict=True))
    kinds = list(dict.fromkeys(seen))
    return Axis(tuple(map(kinds.index, seen)), min(axis.offset for axis in axes), axes[0].stride), kinds


class _Total(torch.autograd.Function):
    """The sum of kernels, each for its classes of rows and columns and its part of the window."""

    @staticmethod
    def forward(ctx: Any, size: Sequence[int], places: list[Any], *weights: Tensor) -> Tensor:
        ctx.places, ctx.shapes = places, [weight.shape for weight in weights]
        summed = weights[0].new_zeros(size)
        for weight, (row_numbers, high, column_numbers, wide) in zip(weights, places, strict=True):
            for dim, numbers in ((0, row_numbers), (2, column_numbers)):
                if weight.shape[dim] > 1:  # one for all is left to broadcasting
                    weight = weight.index_select(dim, torch.tensor(numbers, device=weight.device))
            summed[:, high, :, wide] += weight
        return summed

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        gradients = []
        for shape, (row_numbers, high, column_numbers, wide) in zip(ctx.shapes, ctx.places, strict=True):
            own = gradient[:, high, :, wide]
            for dim, numbers in ((0, row_numbers), (2, column_numbers)):
                alone = shape[dim] == 1
                own = own.sum(dim, keepdim=True) if alone else _add_at(own, dim, numbers, shape[dim])
            gradients.append(own)
        return None, None, *gradients
