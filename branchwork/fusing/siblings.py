"""Convolutions of one geometry that read one tensor become one convolution: it is read once, and by wider products."""

import operator
from typing import Any

import torch
from torch import fx

from branchwork.fusing.forms import MOVE
from branchwork.fusing.target import Target
from branchwork.graph.costs import argument, operation, pair
from branchwork.graph.program import elements


def merge_siblings(module: fx.GraphModule, target: Target) -> bool:
    """Merge them in the graph of `module` where that pays for `target`: `InceptionA` has three 1×1.

    Says whether anything changed.
    """
    graph = module.graph
    families: dict[tuple[Any, ...], list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and operation(node) == "conv2d" and argument(node, 6, 1) == 1:
            families.setdefault(_geometry(node), []).append(node)
    paying = [f for f in families.values() if len(f) > 1 and all(map(_has_own_weights, f)) and _pays(f, target)]
    for family in paying:
        _merge(graph, family)
    module.graph.eliminate_dead_code()
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


def _has_own_weights(node: fx.Node) -> bool:
    return all(part is None or part.op == "get_attr" for part in node.args[1:3])  # type: ignore[union-attr]


def _pays(family: list[fx.Node], target: Target) -> bool:
    """The operations that are not started any more, against the parts that are taken out of the output again.

    That the input is read once is not counted: it lies in the cache. Counting it made GoogLeNet 0.9 times as fast.
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
        if all(len(users) == 1 and operation(users[0]) == "relu" for users in readers):
            merged = graph.call_function(torch.ops.aten.relu.default, (merged,))
            family = [users[0] for users in readers]
        sizes = [int(node.meta["val"].shape[1]) for node in family]
        parts = graph.call_function(torch.ops.aten.split_with_sizes.default, (merged, sizes, 1))
        for index, node in enumerate(family):
            part = graph.call_function(operator.getitem, (parts, index))
            part.meta["val"] = node.meta["val"]
            node.replace_all_uses_with(part)


def _concat(graph: fx.Graph, weights: list[Any]) -> fx.Node:
    copies = [graph.get_attr(str(weight.target)) for weight in weights]
    for copy, weight in zip(copies, weights, strict=True):
        copy.meta = dict(weight.meta)
    return graph.call_function(torch.ops.aten.cat.default, (copies,))
