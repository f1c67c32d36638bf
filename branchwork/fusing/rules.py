"""Which affine operations have a kernel, and how a kernel for the output of one becomes a kernel for its input."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from branchwork.blocks import pair
from branchwork.fusing.kernel import Axis, Diagonal, Factors, Kernel, compose_sum, of_convolution, of_flattened, sliding
from branchwork.graph.affine import is_affine
from branchwork.graph.costs import argument, op_name
from branchwork.graph.program import parents, shape_of, size_of

# Returns the tensor of a node that stands for a weight.
Weights = Callable[[fx.Node], Tensor]

_RESHAPING = ("view", "flatten", "squeeze")
_PASSING = ("dropout", "feature_dropout", "alpha_dropout", "identity", "alias", "clone")
# Affine operations that take no time in eval mode.
FREE = _RESHAPING + _PASSING


def has_kernel(node: fx.Node, images: set[fx.Node]) -> bool:
    """Return whether `node` is affine and the rules below know its kernel: the same map for each image of a batch."""
    if not is_affine(node, images) or not _is_per_image(node, images):
        return False
    op, images_read = op_name(node), list(parents(node, images))
    first = node.args[0]
    if op in ("conv2d", "avg_pool2d"):
        return len(shape_of(node)) == 3
    if op == "linear":
        return len(shape_of(node)) == 1
    if op in ("adaptive_avg_pool2d", "mean"):
        return _is_mean_of_all(node)
    if op == "cat":
        return argument(node, 1, 0) in (1, 1 - node.meta["val"].dim()) and len(images_read) == len(node.all_input_nodes)
    if op in ("add", "sub"):
        alike = [parent for parent in node.args[:2] if parent in images and shape_of(parent) == shape_of(node)]  # type: ignore[arg-type]
        return len(alike) == 2 or (images_read == [first] and _is_by_channel(node))
    if op in ("mul", "div"):
        number = isinstance(node.args[1], int | float)
        return images_read == [first] and (number or _is_by_channel(node)) and not node.kwargs
    if op in _RESHAPING:
        unchanged = shape_of(node) == shape_of(images_read[0])
        return unchanged or (len(shape_of(node)) == 1 and len(shape_of(images_read[0])) == 3)
    if op == "pad":
        sides: Any = node.args[1]
        constant = argument(node, 2, "constant") == "constant" and argument(node, 3, None) in (None, 0)
        return constant and len(sides) in (2, 4) and len(shape_of(node)) == 3
    return op in _PASSING or op == "batch_norm"


def _is_by_channel(node: fx.Node) -> bool:
    """Return whether the second argument is a weight with one number, or one for each channel of the images."""
    other: Any = node.args[1]
    weight = other.meta.get("val") if isinstance(other, fx.Node) else None
    if not isinstance(weight, Tensor):
        return False
    size, dims = tuple(weight.shape), node.meta["val"].dim()
    by_channel = (1, shape_of(node)[0], *[1] * (dims - 2))
    return len(size) <= dims and all(n in (1, full) for n, full in zip(size[::-1], by_channel[::-1], strict=False))


def _is_per_image(node: fx.Node, images: set[fx.Node]) -> bool:
    """Return whether each input image becomes one image or vector."""
    values = [other.meta["val"] for other in (node, *parents(node, images))]
    if not all(isinstance(value, Tensor) for value in values):
        return False
    return all(value.dim() in (2, 4) and str(value.shape[0]) == str(values[0].shape[0]) for value in values)


def _is_mean_of_all(node: fx.Node) -> bool:
    (source, *_) = node.all_input_nodes
    if source.meta["val"].dim() != 4:
        return False
    if op_name(node) == "mean":
        dims: Any = argument(node, 1, None)
        return dims is not None and {dim % 4 for dim in dims} == {2, 3} and not node.kwargs
    return size_of(node) == (1, 1)


def pads(node: fx.Node) -> bool:
    """Return whether `node`, which is affine, reads zeros beyond the image."""
    op = op_name(node)
    padding: Any = argument(node, {"conv2d": 4, "avg_pool2d": 3}.get(op, len(node.args)), 0)
    return op == "pad" or padding not in (0, "valid", [0, 0], (0, 0))


def shifts(node: fx.Node) -> bool:
    """Return whether `node`, which is affine, adds a weight to images or subtracts it."""
    return op_name(node) in ("add", "sub") and _node(node, 1).meta["val"].shape != node.meta["val"].shape


# What a tensor is read through.
Reader = Diagonal | Kernel


def kernel_of(layer: fx.Node, weights: Weights) -> Kernel:
    """Return the kernel of a convolution or of a linear layer, which is a convolution of an image of one pixel."""
    weight = weights(_node(layer, 1))
    stride, offset, dilation, groups = (1, 1), (0, 0), (1, 1), 1
    if weight.dim() == 2:
        weight = weight[:, :, None, None]
    else:
        stride, dilation, groups = pair(argument(layer, 3, 1)), pair(argument(layer, 5, 1)), argument(layer, 6, 1)
        offset = _first_tap(argument(layer, 4, 0), dilation, weight.shape[2:])
    source = size_of(layer.all_input_nodes[0])
    rows, columns = (
        sliding(
            weight.shape[2 + i], size_of(layer)[i], source[i], offset=offset[i], stride=stride[i], dilation=dilation[i]
        )
        for i in (0, 1)
    )
    return of_convolution(weight, rows, columns, groups=groups)


def pull(node: fx.Node, reader: Reader, weights: Weights) -> Iterator[tuple[fx.Node, Reader]]:
    """Yield what each input of `node`, affine and not in `LAYERS`, is read through where `reader` reads `node`."""
    op = op_name(node)
    source: Any = node.args[0]
    if op == "batch_norm":
        yield source, reader.scaled(batch_norm(node, weights)[0])
    elif op in ("mul", "div"):
        other: Any = node.args[1]
        factor = weights(other).flatten() if isinstance(other, fx.Node) else float(other)
        yield source, reader.scaled(factor if op == "mul" else 1 / factor)
    elif shifts(node):
        yield source, reader
    elif op in ("add", "sub"):
        yield source, reader
        sign = float(node.kwargs.get("alpha", 1)) * (-1 if op == "sub" else 1)  # type: ignore[arg-type]
        yield _node(node, 1), reader if sign == 1 else reader.scaled(sign)
    elif op in _PASSING or (op in _RESHAPING and shape_of(node) == shape_of(source)):
        yield source, reader
    elif op == "cat":
        start = 0
        for part in source:
            channels = shape_of(part)[0]
            kernel = kernel_from(reader)
            yield part, replace(kernel, weight=kernel.weight.narrow(2, start, channels))
            start += channels
    elif op in _RESHAPING:
        channels, height, width = shape_of(source)
        yield source, of_flattened(kernel_from(reader), (channels, height, width))
    else:
        axes, factors = _padding(node) if op == "pad" else _average(node)
        yield source, compose_sum(kernel_from(reader), axes, factors)


def kernel_from(reader: Reader) -> Kernel:
    return reader.kernel() if isinstance(reader, Diagonal) else reader


def _first_tap(padding: Any, dilation: tuple[int, int], window: Sequence[int]) -> tuple[int, int]:
    if padding == "same":  # torch puts the greater half of odd padding behind
        height, width = (-(d * (k - 1) // 2) for d, k in zip(dilation, window, strict=True))
        return height, width
    height, width = pair(padding)
    return -height, -width


# Sums over windows: where the windows lie, and what each output is multiplied by.
_Sum = tuple[tuple[Axis, Axis], Factors]


def _padding(node: fx.Node) -> _Sum:
    """Sums over one pixel each, for padding or cropping."""
    sides: Any = node.args[1]
    left, top = int(sides[0]), int(sides[2]) if len(sides) == 4 else 0
    (height, width), (rows, columns) = size_of(node), size_of(node.all_input_nodes[0])
    return (sliding(1, height, rows, offset=-top), sliding(1, width, columns, offset=-left)), (
        (1.0,) * height,
        (1.0,) * width,
    )


def _average(node: fx.Node) -> _Sum:
    """Sums divided by the pixels of the window that count, which may be fewer at the border."""
    source: Any = node.args[0]
    if op_name(node) != "avg_pool2d":
        height, width = size_of(source)
        return (sliding(height, 1, height), sliding(width, 1, width)), ((1 / height,), (1 / width,))
    window = pair(node.args[1])
    stride, padding = pair(argument(node, 2, None) or window), pair(argument(node, 3, 0))
    edge, divisor = padding if argument(node, 5, True) else (0, 0), argument(node, 6, None)
    axes, factors = [], []
    for k, step, pad, border, inputs, outputs in zip(
        window, stride, padding, edge, size_of(source), size_of(node), strict=True
    ):
        axes.append(sliding(k, outputs, inputs, offset=-pad, stride=step))
        starts = [i * step - pad for i in range(outputs)]
        counts = [min(start + k, inputs + border) - max(start, -border) for start in starts]
        factors.append(tuple(1 / count for count in counts))
    if divisor is not None:
        height, width = size_of(node)
        factors = [(1 / divisor,) * height, (1.0,) * width]
    return (axes[0], axes[1]), (factors[0], factors[1])


def batch_norm(node: fx.Node, weights: Weights) -> tuple[Tensor, Tensor]:
    """Return the scale and shift of each channel (Ioffe and Szegedy 2015, section 3.1)."""
    scale: Tensor = (weights(_node(node, 4)) + argument(node, 7, 1e-5)).rsqrt()
    if node.args[1] is not None:
        scale = scale * weights(_node(node, 1))
    shift = -weights(_node(node, 3)) * scale
    return scale, shift if node.args[2] is None else shift + weights(_node(node, 2))


def _node(node: fx.Node, index: int) -> fx.Node:
    tensor = node.args[index]
    assert isinstance(tensor, fx.Node), f"argument {index} of {node} is a tensor"
    return tensor


def pooling_window(node: fx.Node) -> tuple[int, int] | None:
    """Return the window of a max pooling whose windows lie side by side; None for all other nodes."""
    if node.op != "call_function" or op_name(node) != "max_pool2d":
        return None
    window = pair(node.args[1])
    strides, padding = pair(argument(node, 2, None) or window), pair(argument(node, 3, 0))
    dilation, rounds_up = pair(argument(node, 4, 1)), argument(node, 5, False)
    plain = (1, 1) != window == strides and padding == (0, 0) and dilation == (1, 1) and not rounds_up
    return window if plain else None
