"""The algebra of affine maps between images: what one output reads of an earlier tensor, border included.

An affine layer reads its input through a window, with zeros around the image. Of two in a row, the second reads the
first, and so, through it, what the first reads: its kernel is *pulled back* through the first one. Where the second
reads beyond the image between them it reads zeros, whatever the first would have given there; so the kernel is *cut*
to that image before it goes on, and outputs near the border get kernels of their own. That is all there is to it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, reduce
from itertools import groupby
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Axis:
    """Along height or width: output i reads the positions i·stride + offset, + 1, … of the tensor that is read.

    `classes` has a number for each output: those with the same number have the same kernel, and -1 reads nothing.
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

    `weight` is Y×X×O×h×w×C: row classes, column classes, output channels, window, channels of the tensor. `macs` are
    the multiply-accumulates that it took to find it.
    """

    weight: Tensor
    rows: Axis
    columns: Axis
    macs: int = 0

    @property
    def window(self) -> tuple[int, int]:
        return self.weight.shape[3], self.weight.shape[4]

    @property
    def axes(self) -> tuple[Axis, Axis]:
        return self.rows, self.columns

    def scaled(self, factor: Tensor | float) -> "Kernel":
        """For a tensor that is multiplied by one number, or by one for each channel, before it is read."""
        return replace(self, weight=self.weight * factor)


@dataclass(frozen=True)
class Diagonal:
    """Each output reads itself, times the `scale` of its channel: where a kernel begins."""

    scale: Tensor
    size: tuple[int, int]

    def kernel(self) -> Kernel:
        rows, columns = (Axis((0,) * count) for count in self.size)
        return Kernel(torch.diag(self.scale)[None, None, :, None, None, :], rows, columns)

    def scaled(self, factor: Tensor | float) -> "Diagonal":
        return replace(self, scale=self.scale * factor)


# A kernel as the sum of several, each for some of the outputs.
Kernels = tuple[Kernel, ...]
# What stands along an axis of an image is scaled by.
Profile = tuple[float, ...]


def cut(kernels: Kernels, rows: Profile, columns: Profile) -> Kernels:
    """`kernels` with what they read at row r and column c scaled by `rows[r]·columns[c]`, and by 0 outside of them.

    What a cut takes away near the border is little: where that is less to compute with than a kernel for each class
    of outputs, it becomes kernels of its own.
    """
    main = total(kernels)
    thin: Kernels = ()
    for dim, profile in ((1, columns), (0, rows)):
        thin = tuple(_cut_whole(kernel, dim, profile) for kernel in thin)
        main, taken = _cut_thin(main, dim, profile) if len(kernels) == 1 else (_cut_whole(main, dim, profile), ())
        thin += taken
    return (main, *thin)


def _cut_whole(kernel: Kernel, dim: int, profile: Profile) -> Kernel:
    """One kernel for each class of outputs that the cut makes along rows (0) or columns (1)."""
    way = _cut_axis(kernel.axes[dim], profile, kernel.window[dim])
    weight = kernel.weight.narrow(3 + dim, way.first, len(way.factors[0]))
    if not way.changes:
        return _with_axis(kernel, dim, weight, kernel.axes[dim].classes, way.first)
    scale = torch.tensor(way.factors, dtype=weight.dtype, device=weight.device)
    shape = [1] * 6
    shape[dim], shape[3 + dim] = scale.shape
    return _with_axis(kernel, dim, _pick(weight, dim, way.numbers) * scale.view(shape), way.classes, way.first)


def _cut_thin(kernel: Kernel, dim: int, profile: Profile) -> tuple[Kernel, Kernels]:
    """The kernel without a cut, and what the cut adds for each class of outputs that it changes."""
    way = _cut_axis(kernel.axes[dim], profile, kernel.window[dim])
    taps, kinds = len(way.factors[0]), len(way.factors)
    spans = [_span(factors) for factors in way.factors]
    thin = taps * kernel.weight.shape[dim] + sum(end - first for first, end in spans)
    if not way.changes or 2 * thin > taps * kinds:
        return _cut_whole(kernel, dim, profile), ()
    weight = kernel.weight.narrow(3 + dim, way.first, taps)
    added = []
    for kind, (first, end) in enumerate(spans):
        if end > first:
            own = weight.narrow(dim, way.numbers[kind], 1).narrow(3 + dim, first, end - first)
            shape = [1] * 6
            shape[3 + dim] = end - first
            change = [factor - 1 for factor in way.factors[kind][first:end]]
            own = own * torch.tensor(change, dtype=weight.dtype, device=weight.device).view(shape)
            classes = tuple(0 if number == kind else -1 for number in way.classes)
            added.append(_with_axis(replace(kernel, macs=0), dim, own, classes, way.first + first))
    return _with_axis(kernel, dim, weight, kernel.axes[dim].classes, way.first), tuple(added)


def _with_axis(kernel: Kernel, dim: int, weight: Tensor, classes: tuple[int, ...], later: int) -> Kernel:
    axes = list(kernel.axes)
    axes[dim] = replace(axes[dim], classes=classes, offset=axes[dim].offset + later)
    return replace(kernel, weight=weight, rows=axes[0], columns=axes[1])


@dataclass(frozen=True)
class _Cut:
    """A cut along one axis: the first tap kept; for each new class its old number and its factors; the new classes."""

    first: int
    numbers: tuple[int, ...]
    factors: tuple[tuple[float, ...], ...]
    classes: tuple[int, ...]

    @property
    def changes(self) -> bool:
        return any(factor != 1 for factors in self.factors for factor in factors)


@lru_cache(maxsize=1024)  # the same at every step of a training
def _cut_axis(axis: Axis, profile: Profile, taps: int) -> _Cut:
    seen = [
        (number, tuple(_at(profile, axis.start(i) + tap) for tap in range(taps)))
        for i, number in enumerate(axis.classes)
    ]
    reading = [kind for kind in seen if kind[0] >= 0]
    used = [tap for tap in range(taps) if any(factors[tap] for _, factors in reading)] or [0]
    kinds = list(dict.fromkeys(reading))
    return _Cut(
        first=used[0],
        numbers=tuple(number for number, _ in kinds),
        factors=tuple(factors[used[0] : used[-1] + 1] for _, factors in kinds),
        classes=tuple(kinds.index(kind) if kind[0] >= 0 else -1 for kind in seen),
    )


def _at(profile: Profile, position: int) -> float:
    return profile[position] if 0 <= position < len(profile) else 0.0


def _span(factors: tuple[float, ...]) -> tuple[int, int]:
    """The first and the last tap, that excluded, between which a cut changes anything."""
    changed = [tap for tap, factor in enumerate(factors) if factor != 1]
    return (changed[0], changed[-1] + 1) if changed else (0, 0)


def through_convolution(
    kernels: Kernels,
    weight: Tensor,
    stride: tuple[int, int],
    offset: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Kernels:
    """What reads a convolution's output through `kernels`, as what reads its input: a transposed convolution of them.

    `weight` is the convolution's own, `offset` where its window begins: minus its padding.
    """
    window = (weight.shape[2], weight.shape[3])
    by_size: dict[tuple[int, int], list[int]] = {}
    for index, kernel in enumerate(kernels):
        by_size.setdefault(kernel.window, []).append(index)
    found: dict[int, Kernel] = {}
    for members in by_size.values():
        # Those of one size go through together: it is not the products that take the time.
        flat = [kernels[index].weight.flatten(0, 2) for index in members]
        pulled = _transposed(flat[0] if len(flat) == 1 else torch.cat(flat), weight, window, stride, dilation, groups)
        for index, part in zip(members, torch.split(pulled, [len(part) for part in flat]), strict=True):
            kernel = kernels[index]
            rows, columns = _axes_through(kernel, stride, offset)
            macs = kernel.macs + kernel.weight.numel() * weight[0].numel()
            found[index] = Kernel(part.view(*kernel.weight.shape[:3], *part.shape[1:]), rows, columns, macs)
    return tuple(found[index] for index in range(len(kernels)))


def _transposed(
    images: Tensor,
    weight: Tensor,
    window: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    groups: int,
) -> Tensor:
    """The transposed convolution of `images` B×h×w×C, for small ones faster than torch's own."""
    count, height, width, channels = images.shape
    if window == (1, 1) and stride == (1, 1) and groups == 1:
        return images @ weight[:, :, 0, 0]
    size = tuple(
        (n - 1) * s + (k - 1) * d + 1 for n, s, k, d in zip((height, width), stride, window, dilation, strict=True)
    )
    if groups > 1 or height * width * prod(window) * prod(size) > MOST_OVERLAP:
        moved = images.permute(0, 3, 1, 2)
        done = F.conv_transpose2d(moved, weight, stride=stride, dilation=dilation, groups=groups)
        return done.permute(0, 2, 3, 1).contiguous()
    by_tap = images.reshape(count, height * width, channels) @ weight.permute(0, 2, 3, 1).flatten(1)
    overlap = _overlap((height, width), window, stride, dilation, images.dtype, images.device)
    return (overlap @ by_tap.view(count, -1, weight.shape[1])).view(count, *size, -1)


def through_sum(kernel: Kernel, window: tuple[int, int], stride: tuple[int, int], offset: tuple[int, int]) -> Kernel:
    """`through_convolution` of the sum over a window, channel by channel."""
    images = kernel.weight.movedim(5, 3).flatten(0, 3).unsqueeze(3)
    ones = images.new_ones(1, 1, *window)
    pulled = _transposed(images, ones, window, stride, (1, 1), 1).squeeze(3)
    classes = (*kernel.weight.shape[:3], kernel.weight.shape[5])
    rows, columns = _axes_through(kernel, stride, offset)
    return Kernel(pulled.view(*classes, *pulled.shape[1:]).movedim(3, 5), rows, columns, kernel.macs)


# Up to so many numbers, a matrix that lays windows over one another is faster than torch's transposed convolution.
MOST_OVERLAP = 5_000


@lru_cache(maxsize=256)
def _overlap(
    count: tuple[int, int],
    window: tuple[int, int],
    stride: tuple[int, int],
    dilation: tuple[int, int],
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Positions × (windows · taps): 1 where a tap of a window lies on a position."""
    along = []
    for n, k, s, d in zip(count, window, stride, dilation, strict=True):
        places = torch.arange(n)[:, None] * s + torch.arange(k) * d
        along.append(F.one_hot(places, (n - 1) * s + (k - 1) * d + 1))
    both = torch.einsum("hkp,wlq->pqhwkl", *along)
    return both.flatten(0, 1).flatten(1).to(dtype=dtype, device=device)


def _axes_through(kernel: Kernel, stride: tuple[int, int], offset: tuple[int, int]) -> tuple[Axis, Axis]:
    rows, columns = (
        Axis(axis.classes, axis.offset * step + begin, axis.stride * step)
        for axis, step, begin in zip(kernel.axes, stride, offset, strict=True)
    )
    return rows, columns


def of_convolution(
    diagonal: Diagonal,
    weight: Tensor,
    stride: tuple[int, int],
    offset: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
    groups: int = 1,
) -> Kernel:
    """`through_convolution` of a diagonal, without its products with zeros."""
    if dilation != (1, 1) or groups > 1:
        return through_convolution((diagonal.kernel(),), weight, stride, offset, dilation, groups)[0]
    rows, columns = (Axis((0,) * n, begin, step) for n, step, begin in zip(diagonal.size, stride, offset, strict=True))
    scaled = weight * diagonal.scale[:, None, None, None]
    return Kernel(scaled.permute(0, 2, 3, 1)[None, None], rows, columns)


def through_flatten(kernel: Kernel, shape: tuple[int, int, int]) -> Kernel:
    """From a flattened image to the image C×H×W: a matrix is a window that covers all of it."""
    outputs = kernel.weight.shape[2]
    window = kernel.weight.reshape(1, 1, outputs, *shape).permute(0, 1, 2, 4, 5, 3)
    return Kernel(window, Axis((0,)), Axis((0,)), kernel.macs)


def combine(kernels: Sequence[Kernel]) -> Kernels:
    """The same sum with fewer terms: those for the same outputs become one.

    Raises `StepsDiffer` where windows move by different steps.
    """
    alike: dict[tuple[tuple[int, ...], ...], list[Kernel]] = {}
    for kernel in kernels:
        alike.setdefault((kernel.rows.classes, kernel.columns.classes), []).append(kernel)
    return tuple(total(group) for group in alike.values())


def total(kernels: Sequence[Kernel]) -> Kernel:
    """One kernel for the sum. Raises `StepsDiffer` where windows move by different steps."""
    if len(kernels) == 1:
        return kernels[0]
    (rows, row_kinds), (columns, column_kinds) = joint_axes(kernels)
    height, width = joint_window(kernels)
    weights = []
    for index, kernel in enumerate(kernels):
        weight = _pick(kernel.weight, 0, [kind[index] for kind in row_kinds])
        weight = _pick(weight, 1, [kind[index] for kind in column_kinds])
        top, left = kernel.rows.offset - rows.offset, kernel.columns.offset - columns.offset
        bottom, right = height - kernel.window[0] - top, width - kernel.window[1] - left
        sides = (0, 0, left, right, top, bottom)
        weights.append(F.pad(weight, sides) if any(sides) else weight)
    return Kernel(reduce(torch.add, weights), rows, columns, sum(kernel.macs for kernel in kernels))


def constant(reader: Diagonal | Kernels, values: Tensor, size: tuple[int, int]) -> Tensor:
    """What an image of `size` gives that is everywhere `values` (C): O×P×Q, or 1 for P or Q if alike."""
    if isinstance(reader, Diagonal):
        return (values * reader.scale)[:, None, None]
    maps = []
    for kernel in reader:
        by_tap = (kernel.weight @ values).permute(0, 3, 1, 4, 2)
        down, across = (
            _seen(axis, taps, count, values.dtype, values.device)
            for axis, taps, count in zip(kernel.axes, kernel.window, size, strict=True)
        )
        rows = (down @ by_tap.flatten(0, 1).flatten(1)).view(len(down), across.shape[1], -1)
        maps.append((across @ rows).permute(2, 0, 1))
    return reduce(torch.add, maps)


@lru_cache(maxsize=1024)
def _seen(axis: Axis, taps: int, count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Outputs × (classes · taps): 1 for a class of an output and a tap in the image; one row if all alike."""
    classes = max(axis.classes) + 1
    rows = [
        tuple(
            float(number == axis.classes[i] and 0 <= axis.start(i) + tap < count)
            for number in range(classes)
            for tap in range(taps)
        )
        for i in range(axis.outputs)
    ]
    return torch.tensor(rows if len(set(rows)) > 1 else rows[:1], dtype=dtype, device=device)


class StepsDiffer(Exception):
    """Two kernels for one tensor whose windows move by different steps: no one kernel is their sum."""


Kinds = list[tuple[int, ...]]


def joint_axes(kernels: Sequence[Kernel]) -> list[tuple[Axis, Kinds]]:
    """The axes of the sum of kernels, and for each of its classes the class in each of them."""
    joined = []
    for axes in zip(*(kernel.axes for kernel in kernels), strict=True):
        if axes[0].outputs > 1 and len({axis.stride for axis in axes}) > 1:
            raise StepsDiffer
        seen = list(zip(*(axis.classes for axis in axes), strict=True))
        kinds = list(dict.fromkeys(seen))
        offset = min(axis.offset for axis in axes)
        joined.append((Axis(tuple(map(kinds.index, seen)), offset, axes[0].stride), kinds))
    return joined


def joint_window(kernels: Sequence[Kernel]) -> tuple[int, int]:
    sizes = []
    for dim in (0, 1):
        ends = [kernel.axes[dim].offset + kernel.window[dim] for kernel in kernels]
        sizes.append(max(ends) - min(kernel.axes[dim].offset for kernel in kernels))
    return sizes[0], sizes[1]


def _pick(weight: Tensor, dim: int, numbers: Sequence[int]) -> Tensor:
    """`weight` with the classes of these numbers along `dim`; zeros for -1."""
    if set(numbers) == {0} and weight.shape[dim] == 1:
        return weight  # one for all is left to broadcasting
    if list(numbers) == list(range(weight.shape[dim])):
        return weight
    if -1 in numbers:
        weight = torch.cat([weight, torch.zeros_like(weight.narrow(dim, 0, 1))], dim)
        numbers = [number % weight.shape[dim] for number in numbers]
    return weight.index_select(dim, torch.tensor(numbers, device=weight.device))
