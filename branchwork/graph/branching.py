"""The joins of a net whose branches can be removed, and its graph run up to those joins and on from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, fx, nn

from branchwork.graph.joins import Branch
from branchwork.graph.program import Graph, shape_of
from branchwork.graph.read import read
from branchwork.graph.trace import Trace, trace_graph

# What takes the place of a branch. `zero` is what it would give with weights of 0. `mean` is a constant per channel,
# over all images and positions: it could stand in the bias of the next layer, and says nothing of the image. Zeros may
# be far from all that the layers after the join were trained on, so the mean is the better measure of what is lost.
Replacement = Literal["mean", "zero"]

# By join and branch, the tensors through which a branch enters its join: one, or several parts of a split tensor.
Entering = dict[str, dict[str, list[Tensor]]]


@dataclass(frozen=True, eq=False)
class BranchedNet:
    """A net's graph and trace, and its joins of two branches or more.

    `entries` has by join and branch, under the trace's names, the nodes of the graph through which the branch enters:
    one, or several parts of one split tensor.
    """

    graph: Graph
    trace: Trace
    entries: dict[str, dict[str, tuple[fx.Node, ...]]]

    def branch(self, join: str, branch: str) -> Branch:
        """Return the branch that the trace has under these names."""
        branches = next(j.branches for j in self.trace.joins if j.node == join)
        return next(b for b in branches if b.name == branch)

    def operations(self, join: str, branch: str) -> list[fx.Node]:
        """Return the operations of a branch in order; a shortcut has none."""
        names = set(self.branch(join, branch).nodes)
        return [node for node, name in self.graph.names.items() if name in names]

    def logits(self, images: Tensor) -> Tensor:
        """Return the net's logits N×K for `images` N×C×H×W."""
        (logits,) = self.graph.run(images)
        assert isinstance(logits, Tensor)
        return logits

    def run_to_joins(self, images: Tensor) -> tuple[Tensor, Entering]:
        """Return the logits N×K, and what enters every join."""
        nodes = dict.fromkeys(node for join in self.entries.values() for nodes in join.values() for node in nodes)
        logits, *tensors = self.graph.run(images, wanted=[*self.graph.outputs, *nodes])
        values = dict(zip(nodes, tensors, strict=True))
        return logits, {
            join: {branch: [values[node] for node in nodes] for branch, nodes in branches.items()}
            for join, branches in self.entries.items()
        }

    def run_from_join(self, join: str, entering: dict[str, list[Tensor]], images: Tensor) -> Tensor:
        """Return the logits N×K if `entering`, by branch, is what `join` reads.

        Only the join reads these tensors: a block that its shortcut bypasses still reads its own input. The images
        serve what bypasses the join.
        """
        node = self.graph.nodes[join]
        given = {
            entry: tensor
            for branch, tensors in entering.items()
            for entry, tensor in zip(self.entries[join][branch], tensors, strict=True)
        }
        (joined,) = self.graph.run(images, given=given, wanted=[node])
        (logits,) = self.graph.run(images, given={node: joined})
        assert isinstance(logits, Tensor)
        return logits


def read_branches(net: nn.Module, input_shape: Sequence[int]) -> BranchedNet:
    """Return the joins of `net`, in its present mode, for images C×H×W.

    Raises `NetError` if the graph of `net` cannot be read.
    """
    graph = read(net, input_shape, train=True)
    return branches_of(graph, trace_graph(graph))


def branches_of(graph: Graph, trace: Trace) -> BranchedNet:
    """Return the joins of a net that has been read, and its trace.

    A tensor that enters a join and does not depend on the image, such as a learned position, is no branch. Raises
    `NetError` if the graph cannot stand for the net.
    """
    graph.check_runnable()
    entries = {}
    for join in trace.joins:
        branches = {b.name: b.entries for b in join.branches if all(_is_per_image(graph, node) for node in b.entries)}
        if len(branches) > 1:
            entries[join.node] = branches
    return BranchedNet(graph, trace, entries)


def _is_per_image(graph: Graph, node: fx.Node) -> bool:
    """Return whether a node gives something with channels for each image."""
    return node in graph.image_nodes and bool(shape_of(node)) and int(node.meta["val"].shape[0]) == graph.images


def constant_shape(node: fx.Node) -> tuple[int, ...]:
    """Return C×1×1 or F, the shape of one number per channel of a node."""
    channels, *positions = shape_of(node)
    return (channels, *[1] * len(positions))
