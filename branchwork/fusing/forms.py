"""The forms in which a collapsed segment runs: matrices row by row, or convolutions tile by tile.

All are exact at the border, because every class of outputs has its own kernel. `Rows` makes one matrix product of
each row of outputs, over all the channels and columns that its window covers: dense and fast where images are narrow.
`Matrix` makes one of them all, which small batches like.
`Tiles` makes one convolution of each rectangle of outputs that share a kernel: the interior, and strips at the border
where the net as written cuts an image between two layers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from branchwork.fusing.kernel import Axis, Kernel

# What costs as much time as so many multiply-accumulates (LOG.md has the timings): moving one number through memory,
# and starting one operation, whatever the size of its batch.
MOVE = 12
START = 1_000_000
# A convolution of few channels does so many times fewer multiply-accumulates in a second than a matrix product; with so
# many channels as fill its vectors, it does as many.
CONVOLVE, FULL = 1.5, 16


@dataclass(frozen=True)
class Place:
    """Where a kernel is applied: C×H×W in, O×P×Q out; what is a vector has one pixel."""

    channels: int
    size: tuple[int, int]
    outputs: int
    window: tuple[int, int]
    rows: Axis
    columns: Axis
    to_vector: bool

    @property
    def out_elements(self) -> int:
        return self.outputs * self.rows.outputs * self.columns.outputs


def slower(channels: int) -> float:
    """How many times as long a multiply-accumulate takes in a convolution that reads so many channels at once."""
    return CONVOLVE if channels < FULL else 1.0


class Rows(nn.Module):
    """One matrix product for each row of outputs."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.parts = _row_parts(place)

    @staticmethod
    def cost(place: Place, batch: int) -> float:
        row = place.columns.outputs * place.outputs
        products = sum((end - first) * row for _, first, end, _ in _row_parts(place))
        moved = MOVE * (place.channels * place.size[0] * place.size[1] + place.out_elements)
        return products + moved + START * place.rows.outputs / batch

    def prepare(self, kernel: Kernel) -> Tensor:
        """The matrix of each row class: Y×(h·W·C)×(Q·O), which holds the kernel once for each column of outputs."""
        spread: Tensor = _Spread.apply(self.place, kernel.weight)  # type: ignore[no-untyped-call]
        return spread.flatten(4, 5).flatten(1, 3)

    def forward(self, x: Tensor, matrices: Tensor, bias: Tensor | None) -> Tensor:
        """N×C×H×W, or N×C, to N×O×P×Q, or N×O. `bias` is O×P×Q, or 1 for P or Q."""
        place = self.place
        rows, columns = place.rows.outputs, place.columns.outputs
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, matrices = x.to(dtype), matrices.to(dtype)
        flat = x.permute(0, 2, 3, 1).flatten(1) if x.dim() == 4 else x
        if torch.is_grad_enabled() and (x.requires_grad or matrices.requires_grad):
            y: Tensor = _RowProducts.apply(flat, matrices, self.parts)  # type: ignore[no-untyped-call]
        else:
            y = _row_products(flat, matrices, self.parts)
        if bias is not None:
            y = y + bias.expand(-1, rows, columns).permute(1, 2, 0).reshape(-1).to(y.dtype)
        return y if place.to_vector else y.view(-1, rows, columns, place.outputs).permute(0, 3, 1, 2)


class Matrix(Rows):
    """One matrix product for all outputs: more multiply-accumulates than `Rows`, in one operation."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self.by_row = self.parts
        self.parts = [(0, 0, place.channels * place.size[0] * place.size[1], 0)]

    @staticmethod
    def cost(place: Place, batch: int) -> float:
        inputs = place.channels * place.size[0] * place.size[1]
        return inputs * place.out_elements + MOVE * (inputs + place.out_elements) + START / batch

    def prepare(self, kernel: Kernel) -> Tensor:
        """1×(H·W·C)×(P·Q·O)."""
        by_class = super().prepare(kernel)
        matrix = by_class.new_zeros(self.parts[0][2], len(self.by_row), by_class.shape[2])
        for row, (number, first, end, at) in enumerate(self.by_row):
            matrix[at : at + end - first, row] = by_class[number, first:end]
        return matrix.flatten(1)[None]


class Tiles(nn.Module):
    """One convolution for each rectangle of outputs that share a kernel."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.rows = [_strip(place.rows, run, place.window[0], place.size[0]) for run in place.rows.runs()]
        self.columns = [_strip(place.columns, run, place.window[1], place.size[1]) for run in place.columns.runs()]

    @property
    def is_convolution(self) -> bool:
        """Whether one convolution with its own padding is all."""
        alone = len(self.rows) == len(self.columns) == 1
        return alone and all(
            strip.even and strip.low == 0 and (size + 2 * strip.before - window) // axis.stride + 1 == axis.outputs
            for strip, axis, window, size in zip(
                (self.rows[0], self.columns[0]),
                (self.place.rows, self.place.columns),
                self.place.window,
                self.place.size,
                strict=True,
            )
        )

    @staticmethod
    def cost(place: Place, batch: int) -> float:
        tiles = len(place.rows.runs()) * len(place.columns.runs())
        products = place.out_elements * place.channels * place.window[0] * place.window[1] * slower(place.channels)
        # Several tiles are put together, which moves each number once more.
        moved = MOVE * (place.channels * place.size[0] * place.size[1] + place.out_elements * (2 if tiles > 1 else 1))
        return products + moved + START * tiles / batch

    def prepare(self, kernel: Kernel) -> Tensor:
        """Y×X×O×C×h×w: the kernel of each class of rows and columns."""
        return kernel.weight.permute(0, 2, 5, 4, 1, 3)

    def forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """N×C×H×W, or N×C, to N×O×P×Q, or N×O. `bias` is O×P×Q, or 1 for P or Q."""
        place = self.place
        x = x if x.dim() == 4 else x[:, :, None, None]
        everywhere = bias.flatten() if bias is not None and bias.shape[1:] == (1, 1) else None
        bands = []
        for row in self.rows:
            tiles = [self._tile(x, row, column, weight, everywhere) for column in self.columns]
            bands.append(tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=3))
        y = bands[0] if len(bands) == 1 else torch.cat(bands, dim=2)
        if bias is not None and everywhere is None:
            y = y + bias.to(y.dtype)
        return y.flatten(1) if place.to_vector else y

    def _tile(self, x: Tensor, row: "_Strip", column: "_Strip", weight: Tensor, bias: Tensor | None) -> Tensor:
        seen = x[:, :, row.low : row.high, column.low : column.high]
        stride = (self.place.rows.stride, self.place.columns.stride)
        padding = (row.before, column.before)
        if not (row.even and column.even):
            seen, padding = F.pad(seen, (column.before, column.after, row.before, row.after)), (0, 0)
        return F.conv2d(seen, weight[row.number, column.number], bias, stride, padding)


Form = Rows | Tiles
FORMS: tuple[type[Form], ...] = (Rows, Matrix, Tiles)


@dataclass(frozen=True)
class _Strip:
    """Neighbouring outputs of one class: what they read of the image, and the zeros around it."""

    number: int
    low: int
    high: int
    before: int
    after: int
    even: bool


def _strip(axis: Axis, run: tuple[int, int, int], window: int, size: int) -> _Strip:
    first, end, number = run
    start, stop = axis.start(first), axis.start(end - 1) + window
    low = min(max(start, 0), size)
    high = max(low, min(stop, size))
    before = max(0, min(stop, 0) - start)
    after = stop - start - before - (high - low)
    if before != after and (size - low + 2 * before - window) // axis.stride == end - first - 1:
        high, after = size, before  # the same outputs, by the padding that a convolution takes
    return _Strip(number, low, high, before, after, before == after)


# For each row of outputs: its class, the part of the matrix whose window lies in the image, and where it reads.
Parts = list[tuple[int, int, int, int]]


def _row_parts(place: Place) -> Parts:
    pixels, parts = place.size[1] * place.channels, []
    for output, number in enumerate(place.rows.classes):
        first, end = _taps_inside(place.rows, output, place.window[0], place.size[0])
        parts.append((number, first * pixels, end * pixels, (place.rows.start(output) + first) * pixels))
    return parts


def _taps_inside(axis: Axis, output: int, window: int, size: int) -> tuple[int, int]:
    """The first tap of an output's window that lies in the image, and the one after the last."""
    start = axis.start(output)
    first = min(max(0, -start), window)
    return first, max(first, min(window, size - start))


def _row_products(flat: Tensor, matrices: Tensor, parts: Parts) -> Tensor:
    rows = [flat[:, at : at + end - first] @ matrices[number, first:end] for number, first, end, at in parts]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)


class _RowProducts(torch.autograd.Function):
    """`_row_products` with its own backward pass: autograd would add a whole image, mostly zeros, for each row."""

    @staticmethod
    def forward(ctx: Any, flat: Tensor, matrices: Tensor, parts: Parts) -> Tensor:
        ctx.save_for_backward(flat, matrices)
        ctx.parts = parts
        return _row_products(flat, matrices, parts)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        flat, matrices = ctx.saved_tensors
        by_row = gradient.view(len(gradient), len(ctx.parts), -1)
        to_flat = torch.zeros_like(flat) if ctx.needs_input_grad[0] else None
        to_matrices = torch.zeros_like(matrices) if ctx.needs_input_grad[1] else None
        for row, (number, first, end, begin) in enumerate(ctx.parts):
            own = by_row[:, row]
            seen = slice(begin, begin + end - first)
            if to_flat is not None:
                to_flat[:, seen].addmm_(own, matrices[number, first:end].t())
            if to_matrices is not None:
                to_matrices[number, first:end].addmm_(flat[:, seen].t(), own)
        return to_flat, to_matrices, None


class _Spread(torch.autograd.Function):
    """A kernel Y×h×X×w×C×O to Y×h×W×C×Q×O: that of each column of outputs, where it lies among the W columns."""

    @staticmethod
    def forward(ctx: Any, place: Place, weight: Tensor) -> Tensor:
        ctx.place, ctx.shape = place, weight.shape
        size = (place.size[1], place.channels, place.columns.outputs, place.outputs)
        spread = weight.new_zeros(*weight.shape[:2], *size)
        for column, number, taps, seen in _column_parts(place):
            spread[:, :, seen, :, column] = weight[:, :, number, taps]
        return spread

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        to_weight = gradient.new_zeros(ctx.shape)
        for column, number, taps, seen in _column_parts(ctx.place):
            to_weight[:, :, number, taps] += gradient[:, :, seen, :, column]
        return None, to_weight


def _column_parts(place: Place) -> Iterator[tuple[int, int, slice, slice]]:
    """Of each column of outputs: its number, its class, the taps that lie in the image, and what they read."""
    for column, number in enumerate(place.columns.classes):
        first, end = _taps_inside(place.columns, column, place.window[1], place.size[1])
        start = place.columns.start(column)
        yield column, number, slice(first, end), slice(start + first, start + end)
