"""The form for wide images: one convolution for each rectangle of outputs that share a kernel.

Those are the interior, and strips at the border where the net as written cuts the image between two layers. Where all
outputs share a kernel, that is a plain convolution.
"""

from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby

import torch
from torch import Tensor
from torch.nn import functional as F

from branchwork.fusing.forms import Form, MapShape, unflatten
from branchwork.fusing.kernel import Axis, Kernel, Window
from branchwork.fusing.target import MOVE, Target


class Tiles(Form):
    """Convolutions of parts of the image, put together. For maps from images to images, and without a pooling."""

    def __init__(self, shape: MapShape) -> None:
        super().__init__(shape)
        axes = list(zip((shape.rows, shape.columns), shape.size, strict=True))
        self.windows = [_shared_windows(axis, size)[0] for axis, size in axes]
        self.rows, self.columns = ([_strip(axis, run, size) for run in _runs(axis, size)] for axis, size in axes)

    @staticmethod
    def cost(shape: MapShape, target: Target) -> float:
        if not shape.on_images:
            return float("inf")
        tiles = len(_runs(shape.rows, shape.size[0])) * len(_runs(shape.columns, shape.size[1]))
        kernel = shape.rows.taps * shape.columns.taps * shape.channels
        products = shape.out_elements * kernel * target.convolved(shape.channels)
        # Several tiles are cut out, padded and put together, which moves each number once more.
        images = shape.in_elements + shape.out_elements * (2 if tiles > 1 else 1)
        moved = images + tiles * kernel * shape.outputs / target.batch
        cut = 4 * target.start if tiles > 1 else 0
        return products + MOVE * moved + tiles * (target.start_convolution + cut)

    @property
    def padding(self) -> tuple[int, int] | None:
        """The padding of the one convolution that this is; None where several tiles or uneven padding are needed."""
        if len(self.rows) > 1 or len(self.columns) > 1:
            return None
        shape, strips = self.shape, (self.rows[0], self.columns[0])
        is_convolution = all(
            strip.is_even
            and strip.low == 0
            and (size + 2 * strip.before - axis.taps) // axis.stride + 1 == axis.outputs
            for strip, axis, size in zip(strips, (shape.rows, shape.columns), shape.size, strict=True)
        )
        return (strips[0].before, strips[1].before) if is_convolution else None

    def prepare(self, kernel: Kernel) -> Tensor:
        """Return Y×X×O×C×h×w: the kernel of each shared window of rows and of columns."""
        by_rows = _gather(kernel.weight, 0, self.windows[0])
        # Contiguous, since torch's convolution of float64 raises an error in its backward pass for some other strides.
        return _gather(by_rows, 2, self.windows[1]).permute(0, 2, 5, 4, 1, 3).contiguous()

    def forward(self, x: Tensor, prepared: Tensor, bias: Tensor | None) -> Tensor:
        by_channel = bias.flatten() if bias is not None and bias.shape[1:] == (1, 1) else None
        bands = []
        for row in self.rows:
            tiles = [self._tile(x, row, column, kernels=prepared, bias=by_channel) for column in self.columns]
            bands.append(tiles[0] if len(tiles) == 1 else torch.cat(tiles, dim=3))
        y = bands[0] if len(bands) == 1 else torch.cat(bands, dim=2)
        return y if bias is None or by_channel is not None else y + bias.to(y.dtype)

    def _tile(self, x: Tensor, row: "_Strip", column: "_Strip", *, kernels: Tensor, bias: Tensor | None) -> Tensor:
        part = x[:, :, row.low : row.high, column.low : column.high]
        stride, padding = (self.shape.rows.stride, self.shape.columns.stride), (row.before, column.before)
        if not (row.is_even and column.is_even):
            part, padding = F.pad(part, (column.before, column.after, row.before, row.after)), (0, 0)
        return F.conv2d(part, kernels[row.number, column.number], bias, stride, padding)


# A tap in the image that must not be read; None stands for one beyond it, where any slice reads zero.
_UNREAD = -1


@lru_cache(maxsize=1024)
def _shared_windows(axis: Axis, size: int) -> tuple[list[Window], list[int]]:
    """Return windows that serve all outputs, and for each output the number of its window.

    Outputs share a window if their own windows agree on the part that is inside the image for both.
    """
    shared: list[Window] = []
    numbers = []
    for output, slices in enumerate(axis.windows):
        inside = range(-axis.start(output), size - axis.start(output))
        window = [_UNREAD if read is None and tap in inside else read for tap, read in enumerate(slices)]
        for number, candidate in enumerate(shared):
            pairs = list(zip(candidate, window, strict=True))
            if all(None in pair or pair[0] == pair[1] for pair in pairs):
                shared[number] = tuple(b if a is None else a for a, b in pairs)
                break
        else:
            number = len(shared)
            shared.append(tuple(window))
        numbers.append(number)
    return shared, numbers


@lru_cache(maxsize=1024)
def _runs(axis: Axis, size: int) -> list[tuple[int, int, int]]:
    """Group neighbouring outputs of one window: the first output, the one after the last, and the window's number."""
    runs, begin = [], 0
    for number, members in groupby(_shared_windows(axis, size)[1]):
        end = begin + len(list(members))
        runs.append((begin, end, number))
        begin = end
    return runs


@dataclass(frozen=True)
class _Strip:
    """A run of outputs: its window, the part of the image that it reads, and the zeros before and after that."""

    number: int
    low: int
    high: int
    before: int
    after: int

    @property
    def is_even(self) -> bool:
        return self.before == self.after


def _strip(axis: Axis, run: tuple[int, int, int], size: int) -> _Strip:
    first, end, number = run
    start, stop = axis.start(first), axis.start(end - 1) + axis.taps
    low = min(max(start, 0), size)
    high = max(low, min(stop, size))
    before = max(0, min(stop, 0) - start)
    after = stop - start - before - (high - low)
    if before != after and (size - low + 2 * before - axis.taps) // axis.stride == end - first - 1:
        high, after = size, before  # the same outputs, by the padding that a convolution takes
    return _Strip(number, low, high, before, after)


def _gather(slices: Tensor, dim: int, windows: list[Window]) -> Tensor:
    """Pick the slices along `dim` of each window, as two dimensions; zeros where a window reads nothing.

    Not by a tensor of their numbers: in each step of a training, a GPU would wait for it.
    """
    each = slices.unbind(dim)
    nothing = slices.new_zeros(slices.shape[:dim] + slices.shape[dim + 1 :])
    numbers = [number for window in windows for number in window]
    if numbers != list(range(len(each))):
        slices = torch.stack([nothing if number in (None, _UNREAD) else each[number] for number in numbers], dim)
    return unflatten(slices, dim, len(windows), len(windows[0]))
