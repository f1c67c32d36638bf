"""The forms in which a collapsed segment runs: matrices row by row, or convolutions tile by tile.

All are exact at the border, because outputs there read through slices of the kernel of their own. `Rows` makes one
matrix product of each row of outputs, over all the channels and columns that its window covers: dense and fast where
images are narrow. `Matrix` makes one of them all, which small batches like; fourier.py has rows by fewer products.
`Tiles` makes one convolution of each rectangle of outputs that share a kernel: the interior, and strips at the border
where the net as written cuts an image between two layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import groupby
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from branchwork.fusing.kernel import Axis, Kernel, Window
from branchwork.fusing.target import Target

# What moving one number through memory costs, of an image or of a weight: as much time as so many multiply-accumulates.
MOVE = 12


@dataclass(frozen=True)
class Place:
    """Where a kernel is applied: C×H×W in, O×P×Q out; what is a vector has one pixel.

    A row of an image lies as W·C numbers, or as C·W without `channels_last`. Of the outputs in windows of `pool`, which
    lie side by side, only the largest are given, or zero instead of negative ones with `relu`: by a pooling with
    `pools`, which needs `channels_last`, and else by comparing all that stand first in their windows with all that
    stand second, which are computed `apart` for that.
    """

    channels: int
    size: tuple[int, int]
    outputs: int
    rows: Axis
    columns: Axis
    to_vector: bool
    channels_last: bool = True
    pool: tuple[int, int] = (1, 1)
    pools: bool = False
    relu: bool = False

    @property
    def apart(self) -> tuple[int, int]:
        """How many parts rows and columns of outputs are computed in."""
        return (1, 1) if self.pools else self.pool

    @property
    def row_in(self) -> int:
        return self.size[1] * self.channels

    @property
    def row_out(self) -> int:
        return self.columns.outputs * self.outputs

    @property
    def in_elements(self) -> int:
        return self.size[0] * self.row_in

    @property
    def out_elements(self) -> int:
        return self.rows.outputs * self.row_out


class Rows(nn.Module):
    """One matrix product for each row of outputs."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        self.patterns, _ = _patterns(place.rows, place.size[0])
        parts, places = _row_parts(place), place.apart[0]
        self.parts = [part for first in range(places) for part in parts[first::places]]

    @staticmethod
    def cost(place: Place, target: Target) -> float:
        parts = _row_parts(place)
        read = sum(end - first for _, first, end, _ in parts)
        patterns, _ = _patterns(place.rows, place.size[0])
        matrices = len(patterns) * place.rows.taps * place.row_in * place.row_out
        copied = 2 * (read + place.out_elements) if target.engine else 0  # what each product reads and gives
        moved = place.in_elements + place.out_elements + copied + matrices / target.batch
        return target.product * read * place.row_out + MOVE * moved + 2 * target.start * place.rows.outputs

    def prepare(self, kernel: Kernel) -> Tensor:
        """The matrix of each pattern of rows: Y×(h·W·C)×(Q·O), with the kernel once for each column of outputs."""
        return _gather(self.spread(kernel.weight), 0, self.patterns).flatten(1, 2)

    def spread(self, slices: Tensor) -> Tensor:
        """Slices of rows Y×X×C×O as matrices Y×(W·C)×(Q·O), with the kernel once for each column of outputs."""
        spread: Tensor = _Spread.apply(self.place, slices)  # type: ignore[no-untyped-call]
        by_column = self.in_a_row(spread)
        return (by_column if self.place.channels_last else by_column.transpose(1, 2)).flatten(1, 2)

    def in_a_row(self, columns: Tensor) -> Tensor:
        """…×Q×O in the order of a row: what is pooled lies side by side, what is compared apart."""
        if self.place.pools:
            return unflatten(columns, -2, -1, self.place.pool[1]).transpose(-2, -1).flatten(-3)
        places = unflatten(columns, -2, -1, self.place.apart[1]).transpose(-3, -2)
        return (places if self.place.channels_last else places.transpose(-2, -1)).flatten(-3)

    def forward(self, x: Tensor, matrices: Tensor, bias: Tensor | None) -> Tensor:
        """N×C×H×W, or N×C, to N×O×P×Q, or N×O. `bias` is O×P×Q, or 1 for P or Q."""
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, matrices = x.to(dtype), matrices.to(dtype)
        y = self.multiply(x if x.dim() == 4 else x[:, :, None, None], matrices)
        if bias is not None:
            y = y + self.spread_bias(bias).to(y.dtype)
        y = self.choose(y)
        return self.as_images(y.relu() if self.place.relu else y)

    def multiply(self, x: Tensor, matrices: Tensor) -> Tensor:
        """N×C×H×W to N×P×(Q·O), or N×1×P×(Q·O) for a pooling."""
        flat = x.permute(0, *self.order).flatten(1)
        if torch.is_grad_enabled() and (flat.requires_grad or matrices.requires_grad):
            y: Tensor = _RowProducts.apply(flat, matrices, self.parts)  # type: ignore[no-untyped-call]
        else:
            y = _row_products(flat, matrices, self.parts)
        return self.in_rows(y, len(self.parts))

    def in_rows(self, y: Tensor, count: int) -> Tensor:
        """N×(P·Q·O) as so many rows, N×P×(Q·O), or N×1×P×(Q·O) for a pooling."""
        return unflatten(y, 1, *([1] if self.place.pools else []), count, -1)

    def spread_bias(self, bias: Tensor) -> Tensor:
        """O×P×Q to P×(Q·O)."""
        place = self.place
        rows = self.in_a_row(bias.expand(-1, place.rows.outputs, place.columns.outputs).permute(1, 2, 0))
        return unflatten(rows, 0, -1, place.apart[0]).transpose(0, 1).flatten(0, 1)

    def choose(self, y: Tensor) -> Tensor:
        """The largest of each window of the pooling."""
        if self.place.pools:
            return F.max_pool2d(y, self.place.pool)
        p, q = self.place.apart
        return largest(largest(y, p, 1), q, 2)

    def as_images(self, y: Tensor) -> Tensor:
        """N×P×(Q·O), or N×1×P×(Q·O), to N×O×P×Q, or N×O."""
        if self.place.to_vector:
            return y.flatten(1)
        y = y.flatten(1, -2)
        if self.place.channels_last:
            return unflatten(y, 2, -1, self.place.outputs).permute(0, 3, 1, 2)
        return unflatten(y, 2, self.place.outputs, -1).transpose(1, 2)

    @property
    def order(self) -> tuple[int, int, int]:
        """Of the dimensions of an image as it is read."""
        return (2, 3, 1) if self.place.channels_last else (2, 1, 3)


class Matrix(Rows):
    """One matrix product for all outputs: more multiply-accumulates than `Rows`, in one operation."""

    @staticmethod
    def cost(place: Place, target: Target) -> float:
        matrix = place.in_elements * place.out_elements
        moved = place.in_elements + place.out_elements + matrix / target.batch
        return target.product * matrix + MOVE * moved + target.start

    def prepare(self, kernel: Kernel) -> Tensor:
        """(H·W·C)×(P·Q·O), or with the channels first (C·H·W)×(O·P·Q), for each place of the pooling in turn."""
        by_pattern, place = super().prepare(kernel), self.place
        matrix = by_pattern.new_zeros(place.in_elements, len(self.parts), place.row_out)
        for row, (number, first, end, at) in enumerate(self.parts):
            matrix[at : at + end - first, row] = by_pattern[number, first:end]
        if not place.channels_last:
            height, width = place.size
            matrix = unflatten(matrix, 0, height, place.channels, width).transpose(0, 1).flatten(0, 2)
        return self.in_one(matrix)

    def in_one(self, rows: Tensor) -> Tensor:
        """…×P×(Q·O) as …×(P·Q·O), for each part in turn."""
        p, q = self.place.apart
        places = unflatten(unflatten(rows, -1, q, -1), -3, p, -1).transpose(-3, -2)
        if self.place.channels_last:
            return places.flatten(-4)
        return unflatten(places, -1, self.place.outputs, -1).transpose(-3, -2).flatten(-5)

    def multiply(self, x: Tensor, matrices: Tensor) -> Tensor:
        """N×C×H×W to N×(P·Q·O)."""
        return (x.permute(0, *self.order) if self.place.channels_last else x).flatten(1) @ matrices

    def spread_bias(self, bias: Tensor) -> Tensor:
        return self.in_one(super().spread_bias(bias))

    def choose(self, y: Tensor) -> Tensor:
        if self.place.pools:
            return super().choose(self.in_rows(y, self.place.rows.outputs)).flatten(1)
        return largest(y, prod(self.place.apart), 1)

    def as_images(self, y: Tensor) -> Tensor:
        place = self.place
        if place.to_vector:
            return y
        (p, q), outputs = place.pool, place.outputs
        size = (place.rows.outputs // p, place.columns.outputs // q)
        if place.channels_last:
            return unflatten(y, 1, *size, outputs).permute(0, 3, 1, 2)
        return unflatten(y, 1, outputs, *size)


class Tiles(nn.Module):
    """One convolution for each rectangle of outputs that share a kernel."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place
        along = list(zip((place.rows, place.columns), place.size, strict=True))
        self.patterns = [_patterns(axis, size)[0] for axis, size in along]
        self.rows, self.columns = ([_strip(axis, run, size) for run in _runs(axis, size)] for axis, size in along)

    @property
    def is_convolution(self) -> bool:
        """Whether one convolution with its own padding is all."""
        alone = len(self.rows) == len(self.columns) == 1
        return alone and all(
            strip.even and strip.low == 0 and (size + 2 * strip.before - axis.taps) // axis.stride + 1 == axis.outputs
            for strip, axis, size in zip(
                (self.rows[0], self.columns[0]), (self.place.rows, self.place.columns), self.place.size, strict=True
            )
        )

    @staticmethod
    def cost(place: Place, target: Target) -> float:
        tiles = len(_runs(place.rows, place.size[0])) * len(_runs(place.columns, place.size[1]))
        kernel = place.rows.taps * place.columns.taps * place.channels
        products = place.out_elements * kernel * target.convolved(place.channels)
        # Several tiles are cut out, padded and put together, which moves each number once more.
        images = place.in_elements + place.out_elements * (2 if tiles > 1 else 1)
        moved = images + tiles * kernel * place.outputs / target.batch
        cut = 4 * target.start if tiles > 1 else 0
        return products + MOVE * moved + tiles * (target.start_convolution + cut)

    def prepare(self, kernel: Kernel) -> Tensor:
        """Y×X×O×C×h×w: the kernel of each pattern of rows and of columns."""
        by_rows = _gather(kernel.weight, 0, self.patterns[0])
        # Contiguous, since torch's convolution of float64 raises an error in its backward pass for some other strides.
        return _gather(by_rows, 2, self.patterns[1]).permute(0, 2, 5, 4, 1, 3).contiguous()

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


# A tap that lies in the image and must not be read.
_NOTHING = -1


@lru_cache(maxsize=1024)
def _patterns(axis: Axis, size: int) -> tuple[list[Window], list[int]]:
    """Windows from which those of all outputs are cut, and for each output the number of its own.

    Outputs share one where their windows agree on what lies in the image for both; None is what does for neither.
    """
    patterns: list[Window] = []
    numbers = []
    for output, slices in enumerate(axis.windows):
        inside = range(-axis.start(output), size - axis.start(output))
        window = [_NOTHING if read is None and tap in inside else read for tap, read in enumerate(slices)]
        for number, pattern in enumerate(patterns):
            pairs = list(zip(pattern, window, strict=True))
            if all(None in pair or pair[0] == pair[1] for pair in pairs):
                patterns[number] = tuple(b if a is None else a for a, b in pairs)
                break
        else:
            number = len(patterns)
            patterns.append(tuple(window))
        numbers.append(number)
    return patterns, numbers


@dataclass(frozen=True)
class _Strip:
    """Neighbouring outputs of one pattern: what they read of the image, and the zeros around it."""

    number: int
    low: int
    high: int
    before: int
    after: int
    even: bool


def _strip(axis: Axis, run: tuple[int, int, int], size: int) -> _Strip:
    first, end, number = run
    start, stop = axis.start(first), axis.start(end - 1) + axis.taps
    low = min(max(start, 0), size)
    high = max(low, min(stop, size))
    before = max(0, min(stop, 0) - start)
    after = stop - start - before - (high - low)
    if before != after and (size - low + 2 * before - axis.taps) // axis.stride == end - first - 1:
        high, after = size, before  # the same outputs, by the padding that a convolution takes
    return _Strip(number, low, high, before, after, before == after)


@lru_cache(maxsize=1024)
def _runs(axis: Axis, size: int) -> list[tuple[int, int, int]]:
    """Neighbours of one pattern: their first output, the one after their last, and its number."""
    runs, begin = [], 0
    for number, members in groupby(_patterns(axis, size)[1]):
        end = begin + len(list(members))
        runs.append((begin, end, number))
        begin = end
    return runs


# For each row of outputs: its pattern, the part of the matrix whose window lies in the image, and where it reads.
Parts = list[tuple[int, int, int, int]]


def _row_parts(place: Place) -> Parts:
    axis, pixels, parts = place.rows, place.row_in, []
    for output, number in enumerate(_patterns(axis, place.size[0])[1]):
        start = axis.start(output)
        first = min(max(0, -start), axis.taps)  # the first tap that lies in the image
        end = max(first, min(axis.taps, place.size[0] - start))
        parts.append((number, first * pixels, end * pixels, (start + first) * pixels))
    return parts


def _gather(slices: Tensor, dim: int, patterns: Sequence[Window]) -> Tensor:
    """Of the slices along `dim` those of each pattern, as two dimensions; zeros where it has none."""
    count, before, after = slices.shape[dim], slices.shape[:dim], slices.shape[dim + 1 :]
    numbers = [count if number in (None, _NOTHING) else number for pattern in patterns for number in pattern]
    if numbers != list(range(count)):
        if count in numbers:
            slices = torch.cat([slices, slices.new_zeros(*before, 1, *after)], dim)
        slices = slices.index_select(dim, torch.tensor(numbers, device=slices.device))
    return slices.reshape(*before, len(patterns), len(patterns[0]), *after)


def _row_products(flat: Tensor, matrices: Tensor, parts: Parts) -> Tensor:
    rows = [flat[:, at : at + end - first] @ matrices[number, first:end] for number, first, end, at in parts]
    return rows[0] if len(rows) == 1 else torch.cat(rows, dim=1)


def unflatten(tensor: Tensor, dim: int, *sizes: int) -> Tensor:
    """With several dimensions of these sizes in place of one."""
    found: Tensor = tensor.unflatten(dim, sizes)  # type: ignore[no-untyped-call]  # torch's hints lack it
    return found


def largest(y: Tensor, count: int, dim: int) -> Tensor:
    """The largest of so many equal parts along `dim`."""
    return reduce(torch.maximum, y.chunk(count, dim)) if count > 1 else y


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
    """Slices Y×X×C×O to Y×W×C×Q×O: those that each of the Q outputs reads, where they lie among the W columns."""

    @staticmethod
    def forward(ctx: Any, place: Place, weight: Tensor) -> Tensor:
        ctx.place, ctx.shape = place, weight.shape
        size = (place.size[1], place.channels, place.columns.outputs, place.outputs)
        found = weight.new_zeros(len(weight), *size)
        for column, seen, numbers in _column_parts(place.columns):
            found[:, seen, :, column] = weight[:, numbers]
        return found

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        to_weight = gradient.new_zeros(ctx.shape)
        for column, seen, numbers in _column_parts(ctx.place.columns):
            to_weight[:, numbers] += gradient[:, seen, :, column]
        return None, to_weight


@lru_cache(maxsize=1024)
def _column_parts(axis: Axis) -> list[tuple[int, slice, slice]]:
    """Of each output in turn the positions that it reads, and their slices, in parts where both are neighbours."""
    parts: list[tuple[int, slice, slice]] = []
    for output in range(axis.outputs):
        for position, number in axis.reads(output):
            last, seen, numbers = parts[-1] if parts else (-1, slice(0), slice(0))
            if (last, seen.stop, numbers.stop) == (output, position, number):
                parts[-1] = (output, slice(seen.start, position + 1), slice(numbers.start, number + 1))
            else:
                parts.append((output, slice(position, position + 1), slice(number, number + 1)))
    return parts
