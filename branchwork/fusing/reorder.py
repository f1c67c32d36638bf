"""Operations that change places, so that they cost less or can be merged with a neighbour; nothing changes but time."""

from typing import Any

import torch
from torch import fx

from branchwork.graph.costs import operation
from branchwork.graph.program import elements


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
