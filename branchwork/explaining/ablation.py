"""Taking branches out of a trained net: what a join reads from them is replaced, in the graph of any net with joins."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn

from branchwork.errors import NetError, nearest
from branchwork.graph.joins import Branch
from branchwork.graph.program import SymSize, shape_of
from branchwork.graph.read import read
from branchwork.graph.trace import Trace, trace_graph

By = Literal["mean", "zero"]

# What a branch gives to its join on average, by join and branch: for each tensor of it, 1×C×1×1 or 1×F.
Means = Mapping[tuple[str, str], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Removal:
    """A branch to take out of a join, both by the names that the trace has for them, and what is put in its place.

    `zero` is what Concat and Add would have with a branch of weights 0. `mean` is a constant for each channel, over all
    images and positions: what remains could stand in the next layer's bias, and says nothing of the image. Zeros may be
    far from all that the layers after the join were trained on, so that `mean` is the better measure of what is lost.
    """

    join: str
    branch: str
    by: By


@dataclass(frozen=True)
class Joined:
    """A net's graph over its own parameters, its trace, and its joins.

    `operands` are, by join and branch, the nodes of the graph through which the branch enters: one, but several where
    parts of one split tensor do. `names` has the trace's name of each node, and `images` are those that depend on the
    images.
    """

    program: fx.GraphModule
    trace: Trace
    names: dict[fx.Node, str]
    operands: dict[str, dict[str, tuple[fx.Node, ...]]]
    images: set[fx.Node]

    def node(self, name: str) -> fx.Node:
        return next(node for node, other in self.names.items() if other == name)

    def branch(self, join: str, branch: str) -> Branch:
        (found,) = (b for j in self.trace.joins if j.node == join for b in j.branches if b.name == branch)
        return found

    def nodes(self, join: str, branch: str) -> list[fx.Node]:
        """The operations of a branch, in order; a shortcut has none."""
        own = set(self.branch(join, branch).nodes)
        return [node for node, name in self.names.items() if name in own]


def read_joins(net: nn.Module, input_shape: Sequence[int]) -> Joined:
    """The joins of `net`, in its present mode, for images C×H×W.

    What enters a join and does not depend on the image, such as a learned position, is no branch. Raises `NetError`
    where the graph of `net` cannot be read.
    """
    graph = read(net, input_shape, train=True)
    program = graph.rewritable()
    copies = dict(zip(graph.module.graph.nodes, program.graph.nodes, strict=True))
    traced = trace_graph(graph)
    names = {copies[node]: name for node, name in graph.names.items()}
    images = {copies[node] for node in graph.image_nodes}
    operands = {}
    for join in traced.joins:
        entries = {branch.name: tuple(copies[node] for node in branch.entries) for branch in join.branches}
        of_images = {name: nodes for name, nodes in entries.items() if _is_of_images(nodes, images)}
        if len(of_images) > 1:
            operands[join.node] = of_images
    return Joined(program, traced, names, operands, images)


def _is_of_images(nodes: Sequence[fx.Node], images: Collection[fx.Node]) -> bool:
    """Whether these give something with channels for each image."""
    (image,) = (str(node.meta["val"].shape[0]) for node in images if node.op == "placeholder")
    return all(node in images and shape_of(node) and str(node.meta["val"].shape[0]) == image for node in nodes)


def ablate(
    net: nn.Module, input_shape: Sequence[int], removals: Sequence[Removal], means: Means | None = None
) -> fx.GraphModule:
    """`net` without some of its branches, for images N×C×H×W, over the parameters of `net` themselves.

    It stays in the mode that `net` is in, and computes and holds nothing that only the removed branches need. `means`,
    from `measure.observe`, are needed for removals by `mean`. Raises `NetError` for a join or a branch that `net`
    does not have, and where a join would have no branch left.
    """
    return remove(read_joins(net, input_shape), removals, means)


def remove(joined: Joined, removals: Sequence[Removal], means: Means | None = None) -> fx.GraphModule:
    """`ablate` for joins that are read already, which takes most of the time."""
    graph, copies = copy_graph(joined.program.graph)
    module = fx.GraphModule(joined.program, graph)
    (image,) = (node for node in graph.nodes if node.op == "placeholder")
    for number, (removal, nodes) in enumerate(_check(joined, removals).items()):
        join = copies[joined.node(removal.join)]
        for part, node in enumerate(nodes):
            value = torch.zeros(1, *constant_shape(node))
            if removal.by == "mean":
                if means is None:
                    raise ValueError("a removal by the mean needs the means")
                value = means[removal.join, removal.branch][part]
            name = f"removed_{number}_{part}"
            module.register_buffer(name, value.to(node.meta["val"]))
            with graph.inserting_before(join):
                batch = graph.call_function(SymSize, (image, 0))
                shape: Any = [batch, *shape_of(node)]
                constant = graph.call_function(torch.ops.aten.expand.default, (graph.get_attr(name), shape))
            constant.meta["val"] = node.meta["val"]
            join.replace_input_with(copies[node], constant)
    graph.eliminate_dead_code()
    return fx.GraphModule(module, graph)  # which holds what its graph uses, and no removed weights


def _check(joined: Joined, removals: Sequence[Removal]) -> dict[Removal, tuple[fx.Node, ...]]:
    found = {}
    for removal in removals:
        if removal.join not in joined.operands:
            raise NetError(
                f"there is no join {removal.join!r} with two branches.{nearest(removal.join, joined.operands)}"
            )
        branches = joined.operands[removal.join]
        if removal.branch not in branches:
            hint = nearest(removal.branch, branches)
            raise NetError(f"{removal.join} has no branch {removal.branch!r}.{hint}")
        found[removal] = branches[removal.branch]
    for join, branches in joined.operands.items():
        if {removal.branch for removal in removals if removal.join == join} == branches.keys():
            raise NetError(f"{join} would have no branch left: keep one of {', '.join(branches)}")
    return found


def constant_shape(node: fx.Node) -> tuple[int, ...]:
    """C×1×1 or F: the shape of what has one number for each channel of a node."""
    channels, *positions = shape_of(node)
    return (channels, *[1] * len(positions))


def before_joins(joined: Joined) -> fx.GraphModule:
    """The net with what enters its joins: gives logits N×K, and by join and branch a list of tensors N×C×H×W."""
    graph, copies = copy_graph(joined.program.graph)
    output = graph.output_node()
    entering = {
        join: {branch: [copies[node] for node in nodes] for branch, nodes in branches.items()}
        for join, branches in joined.operands.items()
    }
    output.args = ((output.args[0], entering),)
    return fx.GraphModule(joined.program, graph)


def after_join(joined: Joined, join: str) -> fx.GraphModule:
    """The net from one join on: takes what enters it, in the order of branches, and the images; gives logits N×K.

    The images serve what goes past the join.
    """
    entering = [node for nodes in joined.operands[join].values() for node in nodes]
    graph = fx.Graph()
    places = [graph.placeholder(f"entering_{number}") for number in range(len(entering))]
    copies: dict[fx.Node, fx.Node] = {}
    graph.output(graph.graph_copy(joined.program.graph, copies))
    for node, place in zip(entering, places, strict=True):
        copies[joined.node(join)].replace_input_with(copies[node], place)
    graph.eliminate_dead_code()
    return fx.GraphModule(joined.program, graph)


def branch_alone(joined: Joined, join: str, branch: str) -> tuple[fx.GraphModule, list[fx.Node]]:
    """The operations of one branch, and the nodes of the whole graph whose values it takes."""
    own = joined.nodes(join, branch)
    graph = fx.Graph()
    copies: dict[fx.Node, fx.Node] = {}
    outside = dict.fromkeys(p for node in own for p in node.all_input_nodes if p not in own and p.op != "get_attr")
    for number, node in enumerate(outside):
        copies[node] = graph.placeholder(f"outside_{number}")
    for node in joined.program.graph.nodes:
        if node.op == "get_attr" or node in own:
            copies[node] = graph.node_copy(node, copies.__getitem__)
    graph.output([copies[node] for node in joined.operands[join][branch]])
    graph.eliminate_dead_code()
    return fx.GraphModule(joined.program, graph), list(outside)


def copy_graph(graph: fx.Graph) -> tuple[fx.Graph, dict[fx.Node, fx.Node]]:
    """A copy, and its nodes by those that they are copies of."""
    copied = fx.Graph()
    copies: dict[fx.Node, Any] = {}
    copied.output(copied.graph_copy(graph, copies))
    return copied, copies
