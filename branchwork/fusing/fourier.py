"""Rows of outputs by fewer matrix products: the discrete Fourier transform along the height.

To make each row of outputs of each row that it reads takes a matrix product for every such pair. Where all are read
alike that is a convolution, and products of transformed rows with transformed slices do it by one for each frequency
(the convolution theorem); a product of complex numbers takes three of real ones (Gauss). A transform has no border: its
last row is followed by its first. What it gets wrong there, and what is read through other slices near the border of
the image, is put right by a product for each such pair.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from branchwork.fusing.forms import MOVE, START, Place, Rows, spread
from branchwork.fusing.kernel import Axis, Constant, Kernel


@dataclass(frozen=True, eq=False)
class Scheme:
    """Outputs by products of transformed inputs with transformed slices: `outputs` @ (`inputs` @ x · `slices` @ k).

    R×H, R×S and P×R for R products, H rows of inputs, S slices and P rows of outputs; all float64.
    """

    inputs: Tensor
    slices: Tensor
    outputs: Tensor

    @property
    def products(self) -> int:
        return len(self.inputs)


@lru_cache(maxsize=1024)
def find_scheme(axis: Axis, size: int) -> Scheme | None:
    """That of the fewest products for outputs along `axis` of `size` inputs. None for a window that moves by more."""
    if axis.stride != 1:
        return None
    read = torch.full((axis.outputs, size), _NOTHING)
    for output in range(axis.outputs):
        for position, number in axis.reads(output):
            read[output, position] = number
    usual = torch.tensor([_commonest(tap) for tap in zip(*axis.windows, strict=True)])
    taps = torch.arange(size) - torch.arange(axis.outputs)[:, None] - axis.offset
    best: Scheme | None = None
    for points in range(max(axis.taps, size - 2), size + axis.taps):
        beyond = usual.new_full((points - axis.taps,), _NOTHING)
        transformed = torch.cat([usual, beyond])[taps % points]
        wrong = (transformed != read).nonzero()
        if best is None or _real_products(points) + len(wrong) < best.products:
            turning = _transform(points, axis, size, _slices(usual, int(read.max())))
            best = _put_right(turning, wrong, read, transformed)
    return best


_NOTHING = -1


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
        scheme = find_scheme(place.rows, place.size[0])
        assert scheme is not None, "its cost is infinite"
        self.slices = Constant(scheme.slices)
        self.inputs, self.outputs = (nn.Buffer(part, persistent=False) for part in (scheme.inputs, scheme.outputs))

    @staticmethod
    def cost(place: Place, batch: int) -> float:
        scheme = find_scheme(place.rows, place.size[0])
        if scheme is None:
            return float("inf")
        matrices = scheme.products * place.row_in * place.row_out
        transforms = scheme.products * (place.in_elements + place.out_elements)
        transformed = scheme.products * (place.row_in + place.row_out)  # is written and read
        moved = place.in_elements + place.out_elements + 2 * transformed + matrices / batch
        return matrices + transforms + MOVE * moved + START * 5 / batch

    def prepare(self, kernel: Kernel) -> Tensor:
        """The matrix of each product: R×(W·C)×(Q·O)."""
        slices = self.slices.like(kernel.weight)
        used = kernel.weight[: slices.shape[1]]
        return spread(self.place, (slices @ used.flatten(1)).view(-1, *used.shape[1:]))

    def multiply(self, flat: Tensor, matrices: Tensor) -> Tensor:
        images, products = flat.shape[0], matrices.shape[0]
        rows = flat.view(images, self.place.size[0], -1).transpose(0, 1).flatten(1)
        transformed = (self.inputs @ rows).view(products, images, -1)
        outputs = self.outputs @ torch.bmm(transformed, matrices).flatten(1)
        return outputs.view(self.place.rows.outputs, images, -1).transpose(0, 1).flatten(1)
