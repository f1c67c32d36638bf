"""Passes that move, merge or fill operations of a graph, so that an equal net costs less."""

import operator
from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from branchwork.blocks import pair
from branchwork.fusing.target import MOVE, Target
from branchwork.graph.costs import argument, op_name
from branchwork.graph.program import elements, shape_of

aten = torch.ops.aten


def pool_before_relu(graph: fx.Graph) -> bool:
    """Move a ReLU behind the max pooling that is its only reader, where it has fewer numbers to read.

    max-pool(ReLU(x)) is ReLU(max-pool(x)), since ReLU keeps the order of numbers. Returns whether anything changed.
    """
    changed = False
    for pool in list(graph.nodes):
        if not is_operation(pool, "max_pool2d"):
            continue
        relu: Any = pool.args[0]
        if op_name(relu) != "relu" or len(relu.users) > 1 or elements(pool) >= elements(relu):
            continue
        pool.replace_input_with(relu, relu.args[0])
        with graph.inserting_after(pool):
            moved = graph.call_function(aten.relu.default, (pool,))
        moved.meta["val"] = pool.meta["val"]
        pool.replace_all_uses_with(moved, delete_user_cb=lambda user, moved=moved: user is not moved)
        graph.erase_node(relu)
        changed = True
    return changed


def relu_before_pool(graph: fx.Graph) -> None:
    """Move ReLU from behind a convolution's pooling in front of it: engines compute it as part of the convolution."""
    for relu in list(graph.nodes):
        if not is_operation(relu, "relu"):
            continue
        pool: Any = relu.args[0]
        source: Any = pool.args[0] if is_single_use(pool, "max_pool2d") else None
        if source is None or not is_single_use(source, "conv2d"):
            continue
        with graph.inserting_after(source):
            moved = graph.call_function(aten.relu.default, (source,))
        moved.meta["val"] = source.meta["val"]
        pool.replace_input_with(source, moved)
        relu.replace_all_uses_with(pool)
        graph.erase_node(relu)


def is_operation(node: fx.Node, op: str) -> bool:
    return node.op == "call_function" and op_name(node) == op


def is_single_use(node: fx.Node, op: str) -> bool:
    """Return whether `node` is such an operation that one other node reads."""
    return is_operation(node, op) and len(node.users) == 1


def merge_siblings(module: fx.GraphModule, target: Target) -> bool:
    """Merge convolutions of one geometry that read one tensor, as the three 1×1 of `InceptionA` do, where that pays.

    Returns whether anything changed.
    """
    graph = module.graph
    families: dict[tuple[Any, ...], list[fx.Node]] = {}
    for node in graph.nodes:
        if is_operation(node, "conv2d") and argument(node, 6, 1) == 1:
            families.setdefault(_geometry(node), []).append(node)
    paying = [f for f in families.values() if len(f) > 1 and all(map(_has_parameters, f)) and _pays(f, target)]
    for family in paying:
        _merge(graph, family)
    graph.eliminate_dead_code()
    module.recompile()
    return bool(paying)


def _geometry(node: fx.Node) -> tuple[Any, ...]:
    weight: Any = node.args[1]
    padding = argument(node, 4, 0)
    return (
        node.args[0],
        tuple(weight.meta["val"].shape[2:]),
        pair(argument(node, 3, 1)),
        padding if isinstance(padding, str) else pair(padding),
        pair(argument(node, 5, 1)),
        argument(node, 2, None) is None,
    )


def _has_parameters(node: fx.Node) -> bool:
    return all(part is None or part.op == "get_attr" for part in node.args[1:3])  # type: ignore[union-attr]


def _pays(family: list[fx.Node], target: Target) -> bool:
    """Compare the operations that need no start any more with the parts to be split off the output.

    That the input is read once does not count: it is in the cache. Counting it made GoogLeNet 0.9 times as fast.
    """
    move = MOVE / 2 if target.bf16 else MOVE  # a number is half as long
    return (len(family) - 1) * target.start > move * sum(map(elements, family))


def _merge(graph: fx.Graph, family: list[fx.Node]) -> None:
    first = family[0]
    with graph.inserting_before(first):
        weight = _concat(graph, [node.args[1] for node in family])
        biased = argument(first, 2, None) is not None
        bias = _concat(graph, [node.args[2] for node in family]) if biased else None
        merged = graph.call_function(first.target, (first.args[0], weight, bias, *first.args[3:]))  # type: ignore[arg-type]
        readers = [list(node.users) for node in family]
        if all(len(users) == 1 and op_name(users[0]) == "relu" for users in readers):
            merged = graph.call_function(aten.relu.default, (merged,))
            family = [users[0] for users in readers]
        sizes = [int(node.meta["val"].shape[1]) for node in family]
        parts = graph.call_function(aten.split_with_sizes.default, (merged, sizes, 1))
        for index, node in enumerate(family):
            part = graph.call_function(operator.getitem, (parts, index))
            part.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(part)


def _concat(graph: fx.Graph, weights: list[Any]) -> fx.Node:
    copies = [graph.get_attr(str(weight.target)) for weight in weights]
    for copy, weight in zip(copies, weights, strict=True):
        copy.meta = dict(weight.meta)
    return graph.call_function(aten.cat.default, (copies,))


# Float32 numbers in the longest vectors of an x86 processor, by which ONNX Runtime blocks channels.
BLOCK = 16


def fill_blocks(graph: fx.Graph) -> None:
    """Give convolutions with a max pooling behind them whole blocks of channels, for ONNX Runtime.

    It computes whole blocks in any case, but a pooling of channels that leave a block unfilled makes it convert the
    larger image before the pooling to plain order. So the convolution gets channels of zeros, which are cut off behind
    the pooling (docs/experiments/inference.md has what that gains).
    """
    for pool in list(graph.nodes):
        if not is_operation(pool, "max_pool2d"):
            continue
        before: Any = pool.args[0]
        chain = [before.args[0], before, pool] if is_single_use(before, "relu") else [before, pool]
        if is_single_use(chain[0], "conv2d") and argument(chain[0], 6, 1) == 1 and shape_of(pool)[0] % BLOCK:
            _fill(graph, chain)


def _fill(graph: fx.Graph, chain: list[fx.Node]) -> None:
    convolution, pool = chain[0], chain[-1]
    channels = shape_of(pool)[0]
    missing = -channels % BLOCK
    for index in (1, 2):
        weight: Any = argument(convolution, index, None)
        if weight is not None:
            sides = [0, 0] * (weight.meta["val"].dim() - 1) + [0, missing]
            with graph.inserting_before(convolution):
                filled = graph.call_function(aten.constant_pad_nd.default, (weight, sides))
            filled.meta["val"] = F.pad(weight.meta["val"], sides)
            convolution.update_arg(index, filled)
    for node in chain:
        count, _, *size = node.meta["val"].shape
        node.meta["val"] = node.meta["val"].new_empty(count, channels + missing, *size)
    users, kept = list(pool.users), pool
    # Cut where the channels lie last: blocks convert to that order at no cost, and it is often the one that is read.
    for op, arguments in (
        (aten.permute.default, ([0, 2, 3, 1],)),
        (aten.narrow.default, (3, 0, channels)),
        (aten.permute.default, ([0, 3, 1, 2],)),
    ):
        with graph.inserting_after(kept):
            following = graph.call_function(op, (kept, *arguments))
        following.meta["val"] = op(kept.meta["val"], *arguments)
        kept = following
    for user in users:
        user.replace_input_with(pool, kept)
