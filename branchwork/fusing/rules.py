"""Which operations are affine, and how a kernel that reads the output of each becomes one that reads its input."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch import Tensor, fx

from branchwork.fusing.kernel import (
    Diagonal,
    Kernel,
    Kernels,
    Profile,
    cut,
    of_convolution,
    through_convolution,
    through_flatten,
    through_sum,
)
from branchwork.fusing.program import parents, shape_of, size_of
from branchwork.tracing.costs import argument, operation, pair

# Gives the tensor that a node with a weight stands for.
Weights = Callable[[fx.Node], Tensor]

_RESHAPING = ("view", "flatten", "squeeze")
_PASSING = ("dropout", "feature_dropout", "alpha_dropout", "identity", "alias", "clone")
# Affine operations that take no time, or none in eval mode.
FREE = _RESHAPING + _PASSING


def is_affine(node: fx.Node, images: set[fx.Node]) -> bool:
    """Whether `node` is an affine map of images that the rules below know, the same for each image of a batch."""
    if node.op != "call_function" or node not in images or not _is_per_image(node, images):
        return False
    op, given = operation(node), list(parents(node, images))
    first = node.args[0]
    if op == "conv2d":
        return given == [first] and len(shape_of(node)) == 3
    if op == "linear":
        return given == [first] and len(shape_of(node)) == 1
    if op == "batch_norm":
        return given == [first] and not argument(node, 5, True) and argument(node, 3, None) is not None
    if op == "avg_pool2d":
        return len(shape_of(node)) == 3
    if op in ("adaptive_avg_pool2d", "mean"):
        return _is_mean_of_all(node)
    if op == "cat":
        return argument(node, 1, 0) in (1, 1 - node.meta["val"].dim()) and len(given) == len(node.all_input_nodes)
    if op in ("add", "sub"):
        same = [parent for parent in node.args[:2] if parent in images and shape_of(parent) == shape_of(node)]  # type: ignore[arg-type]
        return len(same) == 2
    if op in ("mul", "div"):
        return given == [first] and isinstance(node.args[1], int | float) and not node.kwargs
    if op in _RESHAPING:
        kept = shape_of(node) == shape_of(given[0])
        return kept or (len(shape_of(node)) == 1 and len(shape_of(given[0])) == 3)
    if op == "pad":
        sides: Any = node.args[1]
        constant = argument(node, 2, "constant") == "constant" and argument(node, 3, None) in (None, 0)
        return constant and len(sides) in (2, 4) and len(shape_of(node)) == 3
    return op in _PASSING and not (op.endswith("dropout") and argument(node, 2, True))


def _is_per_image(node: fx.Node, images: set[fx.Node]) -> bool:
    """Whether the output is one image or vector for each image that comes in."""
    values = [other.meta["val"] for other in (node, *parents(node, images))]
    return all(value.dim() in (2, 4) and str(value.shape[0]) == str(values[0].shape[0]) for value in values)


def _is_mean_of_all(node: fx.Node) -> bool:
    (source, *_) = node.all_input_nodes
    if source.meta["val"].dim() != 4:
        return False
    if operation(node) == "mean":
        dims: Any = argument(node, 1, None)
        return dims is not None and {dim % 4 for dim in dims} == {2, 3} and not node.kwargs
    return size_of(node) == (1, 1)


# What reads a tensor.
Reader = Diagonal | Kernels


def pull(node: fx.Node, reader: Reader, weights: Weights) -> Iterator[tuple[fx.Node, Reader]]:
    """For each input of the affine `node`, what reads it where `reader` reads the output of `node`."""
    op = operation(node)
    source: Any = node.args[0]
    if op == "batch_norm":
        yield source, _scaled(reader, _batch_norm_scale(node, weights))
    elif op in ("mul", "div"):
        number = float(node.args[1])  # type: ignore[arg-type]
        yield source, _scaled(reader, number if op == "mul" else 1 / number)
    elif op in ("conv2d", "linear"):
        yield source, _through_layer(node, reader, weights)
    elif op in _PASSING or (op in _RESHAPING and shape_of(node) == shape_of(source)):
        yield source, reader
    else:
        yield from _pull_kernels(node, kernels_of(reader))


def _pull_kernels(node: fx.Node, kernels: Kernels) -> Iterator[tuple[fx.Node, Kernels]]:
    op = operation(node)
    source: Any = node.args[0]
    if op == "avg_pool2d":
        yield source, _through_average(node, kernels)
    elif op in ("adaptive_avg_pool2d", "mean"):
        size = size_of(source)
        shares = cut(kernels, (1 / size[0],), (1 / size[1],))
        yield source, tuple(through_sum(kernel, size, (1, 1), (0, 0)) for kernel in shares)
    elif op == "cat":
        start = 0
        for part in source:
            channels = shape_of(part)[0]
            yield part, tuple(replace(k, weight=k.weight.narrow(5, start, channels)) for k in kernels)
            start += channels
    elif op in ("add", "sub"):
        yield source, kernels
        factor = float(node.kwargs.get("alpha", 1)) * (-1 if op == "sub" else 1)  # type: ignore[arg-type]
        yield _node(node, 1), tuple(kernel.scaled(factor) for kernel in kernels)
    elif op == "pad":
        sides: Any = node.args[1]
        left, top = int(sides[0]), int(sides[2]) if len(sides) == 4 else 0
        yield source, tuple(_moved(kernel, -top, -left) for kernel in _kept(kernels, node))
    else:
        channels, height, width = shape_of(source)
        yield source, tuple(through_flatten(kernel, (channels, height, width)) for kernel in kernels)


def bias_of(node: fx.Node, weights: Weights) -> Tensor | None:
    """What `node` adds to every position, by channel; None where it adds nothing."""
    op = operation(node)
    if op == "batch_norm":
        shift = -weights(_node(node, 3)) * _batch_norm_scale(node, weights)
        return shift if node.args[2] is None else shift + weights(_node(node, 2))
    if op in ("conv2d", "linear") and argument(node, 2, None) is not None:
        return weights(_node(node, 2))
    return None


def kernels_of(reader: Reader) -> Kernels:
    return (reader.kernel(),) if isinstance(reader, Diagonal) else reader


def _scaled(reader: Reader, factor: Tensor | float) -> Reader:
    if isinstance(reader, Diagonal):
        return reader.scaled(factor)
    return tuple(kernel.scaled(factor) for kernel in reader)


def _through_layer(node: fx.Node, reader: Reader, weights: Weights) -> Kernels:
    """Through a convolution, or a linear layer, which is one on an image of one pixel."""
    weight = weights(_node(node, 1))
    stride, offset, dilation, groups = (1, 1), (0, 0), (1, 1), 1
    if operation(node) == "linear":
        weight = weight[:, :, None, None]
    else:
        stride, dilation, groups = pair(argument(node, 3, 1)), pair(argument(node, 5, 1)), argument(node, 6, 1)
        offset = _first_tap(argument(node, 4, 0), dilation, weight.shape[2:])
    if isinstance(reader, Diagonal):
        return (of_convolution(reader, weight, stride, offset, dilation, groups),)
    # A 1×1 window reads zeros beyond the image anyway.
    inner = reader if tuple(weight.shape[2:]) == (1, 1) and offset == (0, 0) else _kept(reader, node)
    return through_convolution(inner, weight, stride, offset, dilation, groups)


def _first_tap(padding: Any, dilation: tuple[int, int], window: Sequence[int]) -> tuple[int, int]:
    if padding == "same":  # where it cannot be halved, torch puts the greater half behind
        height, width = (-(d * (k - 1) // 2) for d, k in zip(dilation, window, strict=True))
        return height, width
    height, width = (0, 0) if padding == "valid" else pair(padding)
    return -height, -width


def _through_average(node: fx.Node, kernels: Kernels) -> Kernels:
    """Each output divides by how much of its window counts, which may be less at the border."""
    source: Any = node.args[0]
    window = pair(node.args[1])
    stride, padding = pair(argument(node, 2, None) or window), pair(argument(node, 3, 0))
    edge, divisor = padding if argument(node, 5, True) else (0, 0), argument(node, 6, None)
    profiles: list[Profile] = []
    for k, step, pad, border, inputs, outputs in zip(
        window, stride, padding, edge, size_of(source), size_of(node), strict=True
    ):
        starts = [i * step - pad for i in range(outputs)]
        counts = [min(start + k, inputs + border) - max(start, -border) for start in starts]
        profiles.append(tuple(1 / count for count in counts))
    if divisor is not None:
        height, width = size_of(node)
        profiles = [(1 / divisor,) * height, (1.0,) * width]
    shares = cut(kernels, profiles[0], profiles[1])
    return tuple(through_sum(kernel, window, stride, (-padding[0], -padding[1])) for kernel in shares)


def _moved(kernel: Kernel, down: int, right: int) -> Kernel:
    rows = replace(kernel.rows, offset=kernel.rows.offset + down)
    return replace(kernel, rows=rows, columns=replace(kernel.columns, offset=kernel.columns.offset + right))


def _kept(kernels: Kernels, node: fx.Node) -> Kernels:
    """`kernels` without what they read beyond the image that `node` gives."""
    height, width = size_of(node)
    return cut(kernels, (1.0,) * height, (1.0,) * width)


def _batch_norm_scale(node: fx.Node, weights: Weights) -> Tensor:
    """What each channel is multiplied by (Ioffe and Szegedy 2015, section 3.1)."""
    weight, variance = node.args[1], weights(_node(node, 4))
    scale: Tensor = (variance + argument(node, 7, 1e-5)).rsqrt()
    return scale if weight is None else scale * weights(_node(node, 1))


def _node(node: fx.Node, place: int) -> fx.Node:
    found = node.args[place]
    assert isinstance(found, fx.Node), f"argument {place} of {node} is a tensor"
    return found
