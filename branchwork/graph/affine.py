"""The affine operations of a net, and its segments: parts that are one affine map of their input."""

import operator
from collections.abc import Collection, Iterable

from torch import fx

from branchwork.graph.costs import VIEWS, argument, op_name
from branchwork.graph.program import parents

# Layers with a kernel or a matrix of their own.
LAYERS = ("conv2d", "linear")

# Affine whatever their arguments are.
_ALWAYS = VIEWS | {"add", "sub", "neg", "cat", "pad", "clone", "mean", "sum", "avg_pool2d", "adaptive_avg_pool2d"}
DROPOUTS = ("dropout", "feature_dropout", "alpha_dropout")


def is_affine(node: fx.Node, images: Collection[fx.Node]) -> bool:
    """Return whether an operation is an affine map of what it reads among `images`, the nodes that depend on them."""
    if node.op != "call_function" or node not in images:
        return False
    if node.target is operator.getitem:
        return True
    op, images_read = op_name(node), list(parents(node, images))
    if op in LAYERS or op == "div":
        return images_read == [*node.args[:1]]
    if op == "mul":
        return sum(isinstance(factor, fx.Node) and factor in images for factor in node.args[:2]) == 1
    if op == "batch_norm":
        return images_read == [*node.args[:1]] and not argument(node, 5, True) and argument(node, 3, None) is not None
    return op in _ALWAYS or (op in DROPOUTS and not argument(node, 2, True))


def connected(groups: Iterable[set[fx.Node]]) -> list[set[fx.Node]]:
    """Return the unions of the groups that share a node, directly or by way of others."""
    unions: list[set[fx.Node]] = []
    for group in groups:
        touched = [union for union in unions if union & group]
        unions = [union for union in unions if union not in touched] + [group.union(*touched)]
    return unions


def find_segments(graph: fx.Graph, members: Collection[fx.Node]) -> list[list[fx.Node]]:
    """Return the affine parts of a graph that end in one node each, which is the last of its list.

    `members` are the affine nodes that count. A member belongs to the segment of those that read it if they are all of
    one segment; otherwise it ends its own.
    """
    ends: dict[fx.Node, fx.Node] = {}
    for node in reversed(graph.nodes):
        if node in members:
            after = {ends.get(user) for user in node.users}
            (end,) = after if len(after) == 1 else (None,)
            ends[node] = end or node
    segments: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        if node in ends:
            segments.setdefault(ends[node], []).append(node)
    return list(segments.values())
