"""The forms in which an affine map runs, exact at the border of the image.

Outputs near the border may have their own slices of the kernel. `Matrix` is one product for all outputs,
`Fourier` and `BatchedFourier` (fourier.py) take few products of whole rows, and `Tiles` (tiles.py) is for wide images.
Each form has a `cost`, by which it is chosen, `prepare`, which computes its factors, and `forward`.
"""

from dataclasses import dataclass
from functools import lru_cache, reduce
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from branchwork.fusing.kernel import Axis, Kernel
from branchwork.fusing.target import MOVE, Target


@dataclass(frozen=True)
class MapShape:
    """The shape of an affine map, C×H×W to O×P×Q; a vector has one pixel.

    A row of an image is stored as W·C numbers, or as C·W without `channels_last`. The map is followed by a max pooling
    with adjacent windows, `pool`, and then by ReLU if `relu` is set.
    """

    channels: int
    size: tuple[int, int]
    outputs: int
    rows: Axis
    columns: Axis
    on_images: bool
    to_vector: bool
    channels_last: bool = True
    pool: tuple[int, int] = (1, 1)
    relu: bool = False

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

    @property
    def pooled_size(self) -> tuple[int, int]:
        return self.rows.outputs // self.pool[0], self.columns.outputs // self.pool[1]


class Form(nn.Module):
    """Runs an affine map: here by matrix products, which the forms arrange in their own ways."""

    def __init__(self, shape: MapShape) -> None:
        super().__init__()
        self.shape = shape

    @staticmethod
    def cost(shape: MapShape, target: Target) -> float:
        """Return the time for one image, in the units of `Target`; infinity where the form does not apply."""
        raise NotImplementedError

    def prepare(self, kernel: Kernel) -> Tensor:
        """Return the factors that `forward` multiplies by."""
        raise NotImplementedError

    def multiply(self, x: Tensor, prepared: Tensor) -> Tensor:
        """Return the outputs of N×C×H×W in the form's own layout."""
        raise NotImplementedError

    def arrange_bias(self, bias: Tensor) -> Tensor:
        """Return a bias O×P×Q, in which P and Q may be 1, in the layout of `multiply`."""
        raise NotImplementedError

    def max_pool(self, y: Tensor) -> Tensor:
        """Keep the largest output of each pooling window."""
        raise NotImplementedError

    def as_images(self, y: Tensor) -> Tensor:
        """Return N×O×P×Q, or N×O for a map to vectors."""
        raise NotImplementedError

    def forward(self, x: Tensor, prepared: Tensor, bias: Tensor | None) -> Tensor:
        """Map N×C×H×W or N×C to N×O×P×Q or N×O. `bias` is O×P×Q, or 1 for P and Q."""
        if torch.is_autocast_enabled(x.device.type):
            dtype = torch.get_autocast_dtype(x.device.type)
            x, prepared = x.to(dtype), prepared.to(dtype)
        y = self.multiply(x if x.dim() == 4 else x[:, :, None, None], prepared)
        if bias is not None:
            y = y + self.arrange_bias(bias).to(y.dtype)
        y = self.max_pool(y)
        return self.as_images(y.relu() if self.shape.relu else y)


class Matrix(Form):
    """One product for all outputs: the most multiply-accumulates, in the fewest operations.

    The outputs that stand first in their pooling windows come first, so that a pooling compares contiguous parts.
    """

    @staticmethod
    def cost(shape: MapShape, target: Target) -> float:
        matrix = shape.in_elements * shape.out_elements
        moved = shape.in_elements + shape.out_elements + matrix / target.batch
        return target.product * matrix + MOVE * moved + target.start

    def prepare(self, kernel: Kernel) -> Tensor:
        """Return (H·W·C)×(P·Q·O), or (C·H·W)×(O·P·Q) without channels_last, for each place of the pooling in turn."""
        shape = self.shape
        by_column = spread(kernel.weight, shape.columns, shape.size[1])  # Y×W×C×Q×O
        by_row = spread(by_column.flatten(1, 2).flatten(2)[None], shape.rows, shape.size[0])[0]  # H×(W·C)×P×(Q·O)
        matrix = unflatten(unflatten(by_row, 3, -1, shape.outputs), 1, -1, shape.channels)  # H×W×C×P×Q×O
        if not shape.channels_last:
            matrix = matrix.permute(2, 0, 1, 3, 4, 5)
        return self._by_window(matrix.flatten(0, 2))

    def _by_window(self, outputs: Tensor) -> Tensor:
        """Flatten …×P×Q×O, the places of the pooling window first."""
        p, q = self.shape.pool
        windows = unflatten(unflatten(outputs, -2, -1, q), -4, -1, p)  # …×P/p×p×Q/q×q×O
        places = windows.movedim((-4, -2), (-5, -4))  # …×p×q×P/p×Q/q×O
        return (places if self.shape.channels_last else places.movedim(-1, -3)).flatten(-5)

    def multiply(self, x: Tensor, prepared: Tensor) -> Tensor:
        return (x.permute(0, 2, 3, 1) if self.shape.channels_last else x).flatten(1) @ prepared

    def arrange_bias(self, bias: Tensor) -> Tensor:
        size = self.shape.rows.outputs, self.shape.columns.outputs
        return self._by_window(bias.expand(-1, *size).permute(1, 2, 0))

    def max_pool(self, y: Tensor) -> Tensor:
        return largest(y, prod(self.shape.pool), 1)

    def as_images(self, y: Tensor) -> Tensor:
        shape = self.shape
        if shape.to_vector:
            return y
        if shape.channels_last:
            return unflatten(y, 1, *shape.pooled_size, shape.outputs).permute(0, 3, 1, 2)
        return unflatten(y, 1, shape.outputs, *shape.pooled_size)


def unflatten(tensor: Tensor, dim: int, *sizes: int) -> Tensor:
    """Split one dimension into several."""
    split: Tensor = tensor.unflatten(dim, sizes)  # type: ignore[no-untyped-call]  # torch's hints lack it
    return split


def largest(y: Tensor, count: int, dim: int) -> Tensor:
    """Return the elementwise maximum of `count` equal parts along `dim`."""
    return reduce(torch.maximum, y.chunk(count, dim)) if count > 1 else y


def spread(slices: Tensor, axis: Axis, size: int) -> Tensor:
    """Return B×size×C×P×O from slices B×S×C×O: those that each of the P outputs of `axis` reads, at their positions."""
    matrices: Tensor = _Spread.apply(axis, size, slices)  # type: ignore[no-untyped-call]
    return matrices


class _Spread(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, axis: Axis, size: int, slices: Tensor) -> Tensor:
        ctx.axis, ctx.shape = axis, slices.shape
        batch, _, channels, outputs = slices.shape
        matrices = slices.new_zeros(batch, size, channels, axis.outputs, outputs)
        for output, positions, numbers in _runs(axis):
            matrices[:, positions, :, output] = slices[:, numbers]
        return matrices

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor]:
        to_slices = gradient.new_zeros(ctx.shape)
        for output, positions, numbers in _runs(ctx.axis):
            to_slices[:, numbers] += gradient[:, positions, :, output]
        return None, None, to_slices


@lru_cache(maxsize=1024)
def _runs(axis: Axis) -> list[tuple[int, slice, slice]]:
    """Each output with the positions that it reads and their slices, in runs where both are consecutive."""
    runs: list[tuple[int, slice, slice]] = []
    for output in range(axis.outputs):
        for position, number in axis.reads(output):
            last, positions, numbers = runs[-1] if runs else (-1, slice(0), slice(0))
            if (last, positions.stop, numbers.stop) == (output, position, number):
                runs[-1] = (output, slice(positions.start, position + 1), slice(numbers.start, number + 1))
            else:
                runs.append((output, slice(position, position + 1), slice(number, number + 1)))
    return runs
