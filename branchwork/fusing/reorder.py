"""Operations that change places, so that they cost less or can be merged with a neighbour; nothing changes but time."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from branchwork.fusing.program import elements, image_nodes, shape_of
from branchwork.tracing.costs import operation


def pool_before_relu(graph: fx.Graph) -> bool:
    """max-pool(ReLU(x)) is ReLU(max-pool(x)), since ReLU never changes an order; there it sees fewer numbers.

    Says whether anything changed.
    """
    changed = False
    for pool in list(graph.nodes):
        if pool.op != "call_function" or operation(pool) != "max_pool2d":
            continue
        relu: Any = pool.args[0]
        if operation(relu) != "relu" or len(relu.users) > 1 or elements(pool) >= elements(relu):
            continue
        pool.replace_input_with(relu, relu.args[0])
        with graph.inserting_after(pool):
            after = graph.call_function(torch.ops.aten.relu.default, (pool,))
        after.meta["val"] = pool.meta["val"]
        pool.replace_all_uses_with(after, delete_user_cb=lambda user, after=after: user is not after)
        graph.erase_node(relu)
        changed = True
    return changed


def relu_before_pool(graph: fx.Graph) -> None:
    """ReLU behind a convolution and its pooling comes between them: engines compute it as part of the convolution."""
    for relu in list(graph.nodes):
        if relu.op != "call_function" or operation(relu) != "relu":
            continue
        pool: Any = relu.args[0]
        source: Any = pool.args[0] if is_alone(pool, "max_pool2d") else None
        if source is None or not is_alone(source, "conv2d"):
            continue
        with graph.inserting_after(source):
            before = graph.call_function(torch.ops.aten.relu.default, (source,))
        before.meta["val"] = source.meta["val"]
        pool.replace_input_with(source, before)
        relu.replace_all_uses_with(pool)
        graph.erase_node(relu)


def is_alone(node: fx.Node, op: str) -> bool:
    """Whether `node` is such an operation, and one other node reads it."""
    return node.op == "call_function" and operation(node) == op and len(node.users) == 1


def norm_before_concat(graph: fx.Graph) -> None:
    """Batch norm in eval mode goes into the branches of a concatenation that nothing else reads, and can be folded."""
    images = image_nodes(graph)
    for norm in list(graph.nodes):
        if norm.op != "call_function" or norm not in images or operation(norm) != "batch_norm" or norm.args[5]:
            continue
        concat: Any = norm.args[0]
        if operation(concat) != "cat" or len(concat.users) > 1 or concat.args[1:] not in ((1,), (-3,)):
            continue
        parts = concat.args[0]
        if all(operation(part) == "conv2d" and len(part.users) == 1 for part in parts):
            _push(graph, norm, concat, parts)


def _push(graph: fx.Graph, norm: fx.Node, concat: fx.Node, parts: Sequence[fx.Node]) -> None:
    normed, start = [], 0
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


def _narrow(graph: fx.Graph, weight: Any, start: int, count: int) -> fx.Node:
    node = graph.call_function(torch.ops.aten.narrow.default, (weight, 0, start, count))
    node.meta["val"] = weight.meta["val"][start : start + count]
    return node
