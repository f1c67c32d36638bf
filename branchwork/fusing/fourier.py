"""Forms that need few products of rows, thanks to the discrete Fourier transform along the height.

Row by row, an affine map takes a matrix product for each pair of an output row and a row that it reads. If all outputs
have the same window, it is a convolution along the height, and by the convolution theorem it takes one product per
frequency, of transformed rows with transformed slices; a complex product takes three real ones (Gauss). A transform is
circular: its last row is followed by its first. Its error there, and the outputs near the border that read through
other slices, are corrected by one product for each such pair.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor
from torch.nn import functional as F

from branchwork.fusing.forms import Form, MapShape, largest, spread, unflatten
from branchwork.fusing.kernel import Axis, Constant, Kernel
from branchwork.fusing.target import MOVE, Target


class Fourier(Form):
    """Image by image: a row of transformed inputs times the matrix of its frequency.

    The columns of a pooling window lie side by side in a row of outputs, so that one pooling takes them (ONNX Runtime
    has vectors for that).
    """

    def __init__(self, shape: MapShape) -> None:
        super().__init__(shape)
        fewest = fewest_products(shape.rows, shape.size[0])
        assert fewest is not None, "its cost is infinite"
        scheme = make_scheme(shape.rows, shape.size[0], fewest[0])
        self.inputs, self.slices = Constant(scheme.inputs), Constant(scheme.slices)
        self.outputs = Constant(self.arrange_rows(scheme.outputs))

    @staticmethod
    def cost(shape: MapShape, target: Target) -> float:
        return _cost(shape, target, readings=1.0) + 3 * target.start

    def prepare(self, kernel: Kernel) -> Tensor:
        """Return the matrix of each product: R×(W·C)×(Q·O)."""
        slices = self.slices.like(kernel.weight)
        used = kernel.weight[: slices.shape[1]]
        transformed = (slices @ used.flatten(1)).view(len(slices), *used.shape[1:])
        matrices = self.arrange_columns(spread(transformed, self.shape.columns, self.shape.size[1]))
        return self.arrange_inputs(matrices).flatten(1, 2)

    def multiply(self, x: Tensor, prepared: Tensor) -> Tensor:
        """Return N×1×P×(Q·O), as images of one channel."""
        rows = x.permute(0, 2, 3, 1).flatten(2)
        products = (self.inputs.like(x) @ rows)[:, :, None] @ prepared
        return self.outputs.like(x) @ unflatten(products.flatten(1), 1, 1, len(prepared), -1)

    def arrange_bias(self, bias: Tensor) -> Tensor:
        size = self.shape.rows.outputs, self.shape.columns.outputs
        return self.arrange_rows(self.arrange_columns(bias.expand(-1, *size).permute(1, 2, 0)))

    def arrange_inputs(self, matrices: Tensor) -> Tensor:
        """Order the inputs of matrices R×W×C×(Q·O) as the images that are read."""
        return matrices

    def arrange_rows(self, rows: Tensor) -> Tensor:
        """Order rows of outputs P×…"""
        return rows

    def arrange_columns(self, columns: Tensor) -> Tensor:
        """Flatten …×Q×O to rows of outputs."""
        return unflatten(columns, -2, -1, self.shape.pool[1]).transpose(-2, -1).flatten(-3)

    def max_pool(self, y: Tensor) -> Tensor:
        return y if self.shape.pool == (1, 1) else F.max_pool2d(y, self.shape.pool)

    def as_images(self, y: Tensor) -> Tensor:
        if self.shape.to_vector:
            return y.flatten(1)
        return unflatten(y.flatten(1, 2), 2, -1, self.shape.outputs).permute(0, 3, 1, 2)


class BatchedFourier(Fourier):
    """All images at once, with rows before images, so that each matrix is read once.

    What stands first in its pooling window comes before what stands second, so that a pooling compares contiguous
    parts.
    """

    @staticmethod
    def cost(shape: MapShape, target: Target) -> float:
        return _cost(shape, target, readings=1 / target.batch) + 5 * target.start

    def multiply(self, x: Tensor, prepared: Tensor) -> Tensor:
        """Return P×N×(Q·O)."""
        images, products = x.shape[0], prepared.shape[0]  # not len(), which an exporter takes for a constant
        order = (2, 0, 3, 1) if self.shape.channels_last else (2, 0, 1, 3)
        transformed = self.inputs.like(x) @ x.permute(order).flatten(1)
        rows = torch.bmm(transformed.view(products, images, self.shape.row_in), prepared)
        outputs = self.outputs.like(x) @ rows.flatten(1)
        return outputs.view(self.shape.rows.outputs, images, self.shape.row_out)

    def arrange_inputs(self, matrices: Tensor) -> Tensor:
        return matrices if self.shape.channels_last else matrices.transpose(1, 2)

    def arrange_bias(self, bias: Tensor) -> Tensor:
        return super().arrange_bias(bias)[:, None]

    def arrange_rows(self, rows: Tensor) -> Tensor:
        return unflatten(rows, 0, -1, self.shape.pool[0]).transpose(0, 1).flatten(0, 1)

    def arrange_columns(self, columns: Tensor) -> Tensor:
        places = unflatten(columns, -2, -1, self.shape.pool[1]).transpose(-3, -2)
        return (places if self.shape.channels_last else places.transpose(-2, -1)).flatten(-3)

    def max_pool(self, y: Tensor) -> Tensor:
        p, q = self.shape.pool
        return largest(largest(y, p, 0), q, 2)

    def as_images(self, y: Tensor) -> Tensor:
        shape = self.shape
        if shape.to_vector:
            return y.transpose(0, 1).contiguous().flatten(1)
        if shape.channels_last:
            return unflatten(y.transpose(0, 1).contiguous(), 2, -1, shape.outputs).permute(0, 3, 1, 2)
        return unflatten(y, 2, shape.outputs, -1).permute(1, 2, 0, 3)


def _cost(shape: MapShape, target: Target, readings: float) -> float:
    """All but starting the operations, where the matrices are read `readings` times for each image."""
    fewest = fewest_products(shape.rows, shape.size[0])
    # Engines compute the transforms in float32 even in bf16, and convert before and after them.
    if fewest is None or (target.bf16 and target.engine):
        return float("inf")
    _, products = fewest
    matrices = products * shape.row_in * shape.row_out
    transforms = products * (shape.in_elements + shape.out_elements)
    transformed = products * (shape.row_in + shape.row_out)  # is written and read
    moved = shape.in_elements + shape.out_elements + 2 * transformed + readings * matrices
    return target.product * (matrices + transforms) + MOVE * moved


@dataclass(frozen=True, eq=False)
class Scheme:
    """Outputs as `outputs` @ (`inputs` @ x · `slices` @ k), for rows of inputs x and slices of a kernel k.

    The matrices are R×H, R×S and P×R, float64, for R products, H rows of inputs, S slices and P rows of outputs.
    """

    inputs: Tensor
    slices: Tensor
    outputs: Tensor


@lru_cache(maxsize=1024)
def fewest_products(axis: Axis, size: int) -> tuple[int, int] | None:
    """Return the points and the products of the cheapest scheme for outputs along `axis` of `size` inputs.

    None for a window that moves by more than one, and where a product for each pair of rows takes no more.
    """
    least = max(axis.taps, size - 2)
    pairs = sum(number is not None for window in axis.windows for number in window)
    if axis.stride != 1 or _real_products(least) >= pairs:
        return None
    read, usual = _read(axis, size), _usual(axis)
    schemes = [
        (_real_products(points) + int((_circular(axis, size, usual, points=points) != read).sum()), points)
        for points in range(least, size + axis.taps)
    ]
    products, points = min(schemes)
    return (points, products) if products < pairs else None


def make_scheme(axis: Axis, size: int, points: int) -> Scheme:
    """Return the scheme with a transform of `points` points."""
    read, usual = _read(axis, size), _usual(axis)
    circular = _circular(axis, size, usual, points=points)
    scheme = _transform(axis, size, _one_hot(usual, int(read.max())), points=points)
    return _corrected(scheme, read, circular)


# Stands for a slice where nothing is read.
_NOTHING = -1


def _read(axis: Axis, size: int) -> Tensor:
    """Return the slice through which each output reads each input."""
    read = torch.full((axis.outputs, size), _NOTHING)
    for output in range(axis.outputs):
        for position, number in axis.reads(output):
            read[output, position] = number
    return read


def _usual(axis: Axis) -> Tensor:
    """Return the slice that most outputs have at each tap."""
    return torch.tensor([_commonest(tap) for tap in zip(*axis.windows, strict=True)])


def _circular(axis: Axis, size: int, usual: Tensor, *, points: int) -> Tensor:
    """Return the slice through which each output would read each input in a circular convolution of `points` points."""
    taps = torch.arange(size) - torch.arange(axis.outputs)[:, None] - axis.offset
    beyond = usual.new_full((points - axis.taps,), _NOTHING)
    return torch.cat([usual, beyond])[taps % points]


def _commonest(numbers: tuple[int | None, ...]) -> int:
    counts = Counter(number for number in numbers if number is not None)
    return counts.most_common(1)[0][0] if counts else _NOTHING


def _one_hot(numbers: Tensor, most: int) -> Tensor:
    """Return a row for each number that selects its slice among those up to `most`."""
    return F.one_hot(numbers + 1, most + 2)[:, 1:].double()


def _real_products(points: int) -> int:
    """Return the number of real products: one or two frequencies are real, the others conjugate pairs computed once."""
    real = 2 - points % 2
    return real + 3 * (points - real) // 2


def _transform(axis: Axis, size: int, slices: Tensor, *, points: int) -> Scheme:
    """The scheme of a circular convolution; `slices` picks one for each tap of the window."""
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


def _corrected(scheme: Scheme, read: Tensor, circular: Tensor) -> Scheme:
    """`scheme` with a product for each pair of output and input that a circular convolution gets wrong."""
    (outputs, inputs), most = read.shape, scheme.slices.shape[1] - 1
    output, position = (circular != read).nonzero().unbind(1)
    difference = _one_hot(read[output, position], most) - _one_hot(circular[output, position], most)
    return Scheme(
        torch.cat([scheme.inputs, F.one_hot(position, inputs)]),
        torch.cat([scheme.slices, difference]),
        torch.cat([scheme.outputs, F.one_hot(output, outputs).T], 1),
    )
