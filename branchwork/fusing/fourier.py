"""Rows of outputs by fewer matrix products: the discrete Fourier transform along the height.

`Rows` has a matrix product for each pair of a row of outputs and a row that it reads. Where all are read alike that is
a convolution, and products of transformed rows with transformed slices do it by one for each frequency (the convolution
theorem); a product of complex numbers takes three of real ones (Gauss). A transform has no border: its last row is
followed by its first. What it gets wrong there, and what is read through other slices near the border of the image, is
put right by a product for each such pair.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from branchwork.fusing.forms import MOVE, Place, Rows, largest, unflatten
from branchwork.fusing.kernel import Axis, Constant, Kernel
from branchwork.fusing.target import Target


@dataclass(frozen=True, eq=False)
class Scheme:
    """Outputs by products of transformed inputs with transformed slices: `outputs` @ (`inputs` @ x · `slices` @ k).

    R×H, R×S and P×R for R products, H rows of inputs, S slices and P rows of outputs; all float64.
    """

    inputs: Tensor
    slices: Tensor
    outputs: Tensor


@lru_cache(maxsize=1024)
def fewest_products(axis: Axis, size: int) -> tuple[int, int] | None:
    """Of schemes for outputs along `axis` of `size` inputs the one of the fewest products: its points, and how many.

    None for a window that moves by more than one, and where rows by themselves take no more.
    """
    least = max(axis.taps, size - 2)
    pairs = sum(number is not None for window in axis.windows for number in window)
    if axis.stride != 1 or _real_products(least) >= pairs:
        return None
    read, usual = _read(axis, size), _usual(axis)
    found = [
        (_real_products(points) + int((_transformed(axis, size, usual, points) != read).sum()), points)
        for points in range(least, size + axis.taps)
    ]
    products, points = min(found)
    return (points, products) if products < pairs else None


def make_scheme(axis: Axis, size: int, points: int) -> Scheme:
    """That by a transform of so many points."""
    read, usual = _read(axis, size), _usual(axis)
    transformed = _transformed(axis, size, usual, points)
    turning = _transform(points, axis, size, _slices(usual, int(read.max())))
    return _put_right(turning, (transformed != read).nonzero(), read, transformed)


# No slice: what is not read.
_NOTHING = -1


def _read(axis: Axis, size: int) -> Tensor:
    """The slice through which each output reads each input."""
    read = torch.full((axis.outputs, size), _NOTHING)
    for output in range(axis.outputs):
        for position, number in axis.reads(output):
            read[output, position] = number
    return read


def _usual(axis: Axis) -> Tensor:
    """The slice that most outputs have at each tap."""
    return torch.tensor([_commonest(tap) for tap in zip(*axis.windows, strict=True)])


def _transformed(axis: Axis, size: int, usual: Tensor, points: int) -> Tensor:
    """As `_read`, what a transform of so many points takes, which goes round."""
    taps = torch.arange(size) - torch.arange(axis.outputs)[:, None] - axis.offset
    beyond = usual.new_full((points - axis.taps,), _NOTHING)
    return torch.cat([usual, beyond])[taps % points]


def _commonest(numbers: tuple[int | None, ...]) -> int:
    found = Counter(number for number in numbers if number is not None)
    return found.most_common(1)[0][0] if found else _NOTHING


def _slices(numbers: Tensor, most: int) -> Tensor:
    """For each number a row that picks its slice, of those up to `most`."""
    return one_hot(numbers + 1, most + 2)[:, 1:].double()


def _real_products(points: int) -> int:
    """A transform has one or two real frequencies, and pairs of complex ones that are each other's conjugates."""
    real = 2 - points % 2
    return real + 3 * (points - real) // 2


def _transform(points: int, axis: Axis, size: int, slices: Tensor) -> Scheme:
    """The transform of so many points; `slices` picks one for each tap of the window."""
    frequencies = torch.arange(points // 2 + 1).double()[:, None] * (2j * torch.pi / points)
    x = torch.exp(-frequencies * torch.arange(size))
    k = torch.exp(frequencies * (torch.arange(axis.taps) + axis.offset)) @ slices.to(frequencies.dtype)
    y = torch.exp(frequencies * torch.arange(axis.outputs)) / points
    real = [0, points // 2] if points % 2 == 0 else [0]
    pairs = slice(1, (points + 1) // 2)
    a, b, c, d = x.real[pairs], x.imag[pairs], k.real[pairs], k.imag[pairs]
    u, v = 2 * y.real[pairs], 2 * y.imag[pairs]
    return Scheme(  # (a + bi)(c + di) = c(a + b) - b(c + d) + (c(a + b) + a(d - c))i, of which the real part is kept
        torch.cat([x.real[real], a + b, a, b]),
        torch.cat([k.real[real], c, d - c, c + d]),
        torch.cat([y.real[real], u - v, -v, -u]).T,
    )


def _put_right(scheme: Scheme, wrong: Tensor, read: Tensor, transformed: Tensor) -> Scheme:
    """With a product for each pair of output and input in `wrong`, which reads another slice than it should."""
    (outputs, inputs), most = read.shape, scheme.slices.shape[1] - 1
    output, position = wrong.unbind(1)
    instead = _slices(read[output, position], most) - _slices(transformed[output, position], most)
    return Scheme(
        torch.cat([scheme.inputs, one_hot(position, inputs)]),
        torch.cat([scheme.slices, instead]),
        torch.cat([scheme.outputs, one_hot(output, outputs).T], 1),
    )


class Fourier(Rows):
    """As `Rows`, with a matrix product for each product of a `Scheme`."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        found = fewest_products(place.rows, place.size[0])
        assert found is not None, "its cost is infinite"
        scheme = make_scheme(place.rows, place.size[0], found[0])
        outputs = unflatten(scheme.outputs, 0, -1, place.apart[0]).transpose(0, 1).flatten(0, 1)
        self.inputs, self.slices, self.outputs = map(Constant, (scheme.inputs, scheme.slices, outputs))

    @staticmethod
    def cost(place: Place, target: Target) -> float:
        return _cost(place, target, readings=1.0) + 3 * target.start

    def prepare(self, kernel: Kernel) -> Tensor:
        """The matrix of each product: R×(W·C)×(Q·O)."""
        slices = self.slices.like(kernel.weight)
        used = kernel.weight[: slices.shape[1]]
        return self.spread((slices @ used.flatten(1)).view(len(slices), *used.shape[1:]))

    def multiply(self, x: Tensor, matrices: Tensor) -> Tensor:
        """N×C×H×W to N×P×(Q·O), or N×1×P×(Q·O) for a pooling."""
        rows = x.permute(0, *self.order).flatten(2)
        products = (self.inputs.like(x) @ rows)[:, :, None] @ matrices
        return self.outputs.like(x) @ self.in_rows(products.flatten(1), len(matrices))


class BatchedFourier(Fourier):
    """As `Fourier`, with rows before images, so that each matrix is read once for all images. It never `pools`."""

    @staticmethod
    def cost(place: Place, target: Target) -> float:
        return _cost(place, target, readings=1 / target.batch) + 5 * target.start

    def multiply(self, x: Tensor, matrices: Tensor) -> Tensor:
        """N×C×H×W to P×N×(Q·O)."""
        images, products = x.shape[0], matrices.shape[0]  # not len(), which an exporter takes for a constant
        rows = x.permute(self.order[0], 0, *self.order[1:]).flatten(1)
        transformed = (self.inputs.like(x) @ rows).view(products, images, self.place.row_in)
        outputs = self.outputs.like(x) @ torch.bmm(transformed, matrices).flatten(1)
        return outputs.view(self.place.rows.outputs, images, self.place.row_out)

    def spread_bias(self, bias: Tensor) -> Tensor:
        return super().spread_bias(bias)[:, None]

    def choose(self, y: Tensor) -> Tensor:
        p, q = self.place.apart
        return largest(largest(y, p, 0), q, 2)

    def as_images(self, y: Tensor) -> Tensor:
        if self.place.to_vector or self.place.channels_last:
            return super().as_images(y.transpose(0, 1).contiguous())
        return unflatten(y, 2, self.place.outputs, -1).permute(1, 2, 0, 3)


def _cost(place: Place, target: Target, readings: float) -> float:
    """All but the operations that are started, where the matrices are read so often for each image."""
    found = fewest_products(place.rows, place.size[0])
    # Engines compute the transforms in float32 in any case, and convert before and behind them (LOG.md).
    if found is None or target.bf16:
        return float("inf")
    _, products = found
    matrices = products * place.row_in * place.row_out
    transforms = products * (place.in_elements + place.out_elements)
    transformed = products * (place.row_in + place.row_out)  # is written and read
    moved = place.in_elements + place.out_elements + 2 * transformed + readings * matrices
    return target.product * (matrices + transforms) + MOVE * moved
