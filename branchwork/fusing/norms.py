"""Batch norm in eval mode, on its way into the layer before it: across a concatenation, and into grouped convolutions.

Into other convolutions and into linear layers it goes with the rest of its affine segment.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from branchwork.fusing.reorder import is_alone
from branchwork.graph.costs import operation
from branchwork.graph.program import image_nodes, shape_of

aten = torch.ops.aten

# What takes in a batch norm behind it.
_TAKES_IN = ("conv2d", "linear", "batch_norm", "cat")


def norm_before_concat(graph: fx.Graph) -> None:
    """Batch norm in eval mode goes into the branches of a concatenation that nothing else reads, and can be folded."""
    images = image_nodes(graph)
    norms = [node for node in graph.nodes if node in images and _is_norm(node)]
    while norms:
        norm = norms.pop()
        concat: Any = norm.args[0]
        if not is_alone(concat, "cat") or concat.args[1:] not in ((1,), (-3,)):
            continue
        if all(any(is_alone(part, op) for op in _TAKES_IN) for part in concat.args[0]):
            norms += _push(graph, norm, concat, concat.args[0])


def norm_into_groups(graph: fx.Graph) -> None:
    """Batch norm in eval mode goes into the weights of the grouped convolution before it."""
    images = image_nodes(graph)
    for norm in list(graph.nodes):
        if norm not in images or not _is_norm(norm):
            continue
        conv: Any = norm.args[0]
        groups = conv.args[6] if is_alone(conv, "conv2d") and len(conv.args) > 6 else 1
        if groups == 1:
            continue
        _, scale, shift, mean, variance, _, _, eps, *_ = norm.args
        kernel, bias = conv.args[1], (conv.args[2] if len(conv.args) > 2 else None)
        with graph.inserting_before(conv):
            factor = _on(graph, aten.rsqrt.default, _on(graph, aten.add.Tensor, variance, eps))
            factor = factor if scale is None else _on(graph, aten.mul.Tensor, factor, scale)
            column = _on(graph, aten.reshape.default, factor, [-1, 1, 1, 1])
            moved = _on(graph, aten.neg.default, mean) if bias is None else _on(graph, aten.sub.Tensor, bias, mean)
            moved = _on(graph, aten.mul.Tensor, moved, factor)
            moved = moved if shift is None else _on(graph, aten.add.Tensor, moved, shift)
            conv.args = (conv.args[0], _on(graph, aten.mul.Tensor, kernel, column), moved, *conv.args[3:])
        norm.replace_all_uses_with(conv)
        graph.erase_node(norm)


def _is_norm(node: fx.Node) -> bool:
    return node.op == "call_function" and operation(node) == "batch_norm" and not node.args[5]


def _on(graph: fx.Graph, target: Any, *arguments: Any) -> fx.Node:
    """A new operation on weights, with the shape that it gives."""
    node = graph.call_function(target, arguments)
    node.meta["val"] = target(*(a.meta["val"] if isinstance(a, fx.Node) else a for a in arguments))
    return node


def _push(graph: fx.Graph, norm: fx.Node, concat: fx.Node, parts: Sequence[fx.Node]) -> list[fx.Node]:
    """The norms in the branches, which take the place of `norm` behind them."""
    normed: list[fx.Node] = []
    start = 0
    with graph.inserting_before(norm):
        for part in parts:
            channels = shape_of(part)[0]
            own = [None if whole is None else _narrow(graph, whole, start, channels) for whole in norm.args[1:5]]
            normed.append(graph.call_function(norm.target, (part, *own, *norm.args[5:])))  # type: ignore[arg-type]
            normed[-1].meta["val"] = part.meta["val"]
            start += channels
        joined = graph.call_function(concat.target, (normed, 1))  # type: ignore[arg-type]
    joined.meta = dict(concat.meta)
    norm.replace_all_uses_with(joined)
    graph.erase_node(norm)
    graph.erase_node(concat)
    return normed


def _narrow(graph: fx.Graph, weight: Any, start: int, count: int) -> fx.Node:
    node = graph.call_function(torch.ops.aten.narrow.default, (weight, 0, start, count))
    node.meta["val"] = weight.meta["val"][start : start + count]
    return node
