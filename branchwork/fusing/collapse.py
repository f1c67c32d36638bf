"""Affine segments become the cheapest equal form: the algebra of `kernel`, applied to the graph of a net.

A segment is a maximal part of a net that is affine, with one output. Which of the tensors inside it are still computed
is searched for by cost; every other layer vanishes into the kernel of what reads it.
"""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, reduce

import torch
from torch import Tensor, fx, nn

from branchwork.fusing.forms import CONVOLVE, FORMS, MOVE, START, Place, Rows, Tiles
from branchwork.fusing.kernel import Diagonal, Kernels, StepsDiffer, combine, constant, joint_axes, joint_window
from branchwork.fusing.program import elements, image_nodes, parents, shape_of, size_of
from branchwork.fusing.rules import FREE, Reader, Weights, bias_of, is_affine, kernels_of, pull
from branchwork.tracing.costs import macs_of, operation

# A form must be cheaper by this share, since the estimate is not exact.
GAIN = 0.03


def collapse_segments(module: fx.GraphModule, batch: int, *, merges: int) -> fx.GraphModule:
    """`module` with its segments collapsed, where that pays in batches of so many images.

    `merges` is how often the kernels are merged for each batch: 0 where they are constants, and 3 in training, once
    forward and twice back.
    """
    images = image_nodes(module.graph)
    # The old graph is kept as it is: the pieces of it that are merged at each step are read there.
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(module.graph, copies))
    collapsed = fx.GraphModule(module, graph)
    for number, segment in enumerate(find_segments(module.graph, images)):
        planner = _Planner(segment, images, batch, merges)
        for end in planner.best():
            _replace(collapsed, copies, planner.piece(end), f"collapsed{number}_{segment.index(end)}", batch)
    graph.eliminate_dead_code()
    collapsed.recompile()
    return collapsed


def find_segments(graph: fx.Graph, images: set[fx.Node]) -> list[list[fx.Node]]:
    """The affine nodes of a graph in parts that end in one node each, which is the last of its list.

    A node belongs to the part of those that read it where they are all of one part, and else ends its own.
    """
    ends: dict[fx.Node, fx.Node] = {}
    for node in reversed(graph.nodes):
        if is_affine(node, images):
            after = {ends.get(user) for user in node.users}
            (end,) = after if len(after) == 1 else (None,)
            ends[node] = end or node
    parts: dict[fx.Node, list[fx.Node]] = {}
    for node in graph.nodes:
        if node in ends:
            parts.setdefault(ends[node], []).append(node)
    return list(parts.values())


@dataclass(frozen=True)
class _Piece:
    """A part of a segment that is computed at once: `nodes` in order, the last of which is its output."""

    nodes: tuple[fx.Node, ...]
    entries: tuple[fx.Node, ...]
    weights: tuple[fx.Node, ...]

    @property
    def end(self) -> fx.Node:
        return self.nodes[-1]

    def merge(self, weights: Weights) -> tuple[dict[fx.Node, Kernels], Tensor | None]:
        """What the end reads of each entry, and its bias: O×P×Q, or 1 for P or Q where all are alike.

        Raises `StepsDiffer` where no kernel can say it.
        """
        like = weights(self.weights[0])
        one = torch.ones(shape_of(self.end)[0], dtype=like.dtype, device=like.device)
        readers: dict[fx.Node, list[Reader]] = {self.end: [Diagonal(one, size_of(self.end))]}
        biases = []
        for node in reversed(self.nodes):
            reader = _sum(readers.pop(node))
            values = bias_of(node, weights)
            if values is not None:
                biases.append(constant(reader, values, size_of(node)))
            for source, kernels in pull(node, reader, weights):
                readers.setdefault(source, []).append(kernels)
        entering = {entry: kernels_of(_sum(readers[entry])) for entry in self.entries}
        return entering, reduce(torch.add, biases) if biases else None

    def place(self, entry: fx.Node, kernels: Kernels) -> Place:
        (rows, _), (columns, _) = joint_axes(kernels)
        outputs, channels = kernels[0].weight.shape[2], kernels[0].weight.shape[5]
        to_vector = len(shape_of(self.end)) == 1
        return Place(channels, size_of(entry), outputs, joint_window(kernels), rows, columns, to_vector)


def _sum(readers: list[Reader]) -> Reader:
    if len(readers) == 1:
        return readers[0]
    return combine([kernel for reader in readers for kernel in kernels_of(reader)])


class _Planner:
    """Finds which tensors of a segment are to be computed, so that all of it costs least."""

    def __init__(self, segment: list[fx.Node], images: set[fx.Node], batch: int, merges: int) -> None:
        self.segment = segment
        self.images = images
        self.batch = batch
        self.merges = merges
        self.cost_of_piece = cache(self._cost_of_piece)

    def best(self) -> list[fx.Node]:
        """The ends of the pieces that replace nodes of the graph, in order."""
        written, whole = frozenset(self.segment), frozenset(self.segment[-1:])
        best = self._descend(min(written, whole, key=self._cost))
        if self._cost(best) > (1 - GAIN) * self._cost(written):
            return []
        self.kept = best
        return [node for node in self.segment if node in best and len(self._nodes(node, best)) > 1]

    def piece(self, end: fx.Node) -> _Piece:
        return self._piece(self._nodes(end, self.kept))

    def _descend(self, kept: frozenset[fx.Node]) -> frozenset[fx.Node]:
        """Compute one tensor more, or one less, as long as that is cheaper."""
        while True:
            nearest = [kept ^ {node} for node in self.segment[:-1]]
            best = min(nearest, key=self._cost, default=kept)
            if self._cost(best) >= self._cost(kept):
                return kept
            kept = best

    def _cost(self, kept: frozenset[fx.Node]) -> float:
        return sum(self.cost_of_piece(self._nodes(node, kept)) for node in kept)

    def _nodes(self, end: fx.Node, kept: frozenset[fx.Node]) -> tuple[fx.Node, ...]:
        """What is computed at once with `end` where these tensors are computed."""
        found = {end}
        for node in reversed(self.segment):
            if node in found:
                own = parents(node, self.images)
                found.update(parent for parent in own if parent in self.segment and parent not in kept)
        return tuple(node for node in self.segment if node in found)

    def _piece(self, nodes: tuple[fx.Node, ...]) -> _Piece:
        given = dict.fromkeys(parent for node in nodes for parent in node.all_input_nodes if parent not in nodes)
        entries = tuple(parent for parent in given if parent in self.images)
        weights = tuple(parent for parent in given if isinstance(parent.meta.get("val"), Tensor))
        return _Piece(nodes, entries, tuple(parent for parent in weights if parent not in self.images))

    def _cost_of_piece(self, nodes: tuple[fx.Node, ...]) -> float:
        if len(nodes) == 1:
            return _cost_as_written(nodes[0], self.images, self.batch)
        piece = self._piece(nodes)
        if not piece.weights:
            return float("inf")
        try:
            merged, _ = piece.merge(lambda node: torch.empty(node.meta["val"].shape, device="meta"))
        except StepsDiffer:
            return float("inf")
        places = [piece.place(entry, kernels) for entry, kernels in merged.items()]
        applying = sum(min(form.cost(place, self.batch) for form in FORMS) for place in places)
        applying += (len(places) - 1) * (3 * MOVE * places[0].out_elements + START / self.batch)
        merging = sum(kernel.macs for kernels in merged.values() for kernel in kernels) + START * len(nodes)
        return applying + self.merges * merging / self.batch


def _cost_as_written(node: fx.Node, images: set[fx.Node], batch: int) -> float:
    op = operation(node)
    if op in FREE:
        return 0
    macs = macs_of(op, node) / int(node.meta["val"].shape[0]) * (CONVOLVE if op == "conv2d" else 1)
    return macs + MOVE * sum(map(elements, {node, *parents(node, images)})) + START / batch


class Merge(nn.Module):
    """From the parameters of a piece to its bias, O×P×Q or less, and what its forms multiply by."""

    def __init__(self, piece: _Piece, forms: Mapping[fx.Node, Rows | Tiles]) -> None:
        super().__init__()
        self._piece, self._forms = piece, dict(forms)

    def forward(self, *weights: Tensor) -> tuple[Tensor | None, ...]:
        given = dict(zip(self._piece.weights, weights, strict=True))
        with torch.autocast(weights[0].device.type, enabled=False):
            kernels, bias = self._piece.merge(given.__getitem__)
            return (bias, *(form.prepare(kernels[entry]) for entry, form in self._forms.items()))


def _replace(module: fx.GraphModule, copies: dict[fx.Node, fx.Node], piece: _Piece, name: str, batch: int) -> None:
    """Compute the output of `piece` by its merged kernels. `copies` has the node of `module` for each old one."""
    merged, bias = piece.merge(lambda node: torch.empty(node.meta["val"].shape, device="meta"))
    forms: dict[fx.Node, Rows | Tiles] = {}
    for entry, kernels in merged.items():
        place = piece.place(entry, kernels)
        forms[entry] = min(FORMS, key=lambda form, place=place: form.cost(place, batch))(place)  # type: ignore[misc]
    graph, end = module.graph, copies[piece.end]
    with graph.inserting_before(end):
        module.add_submodule(f"{name}.merge", Merge(piece, forms))
        parts = graph.call_module(f"{name}.merge", tuple(copies[weight] for weight in piece.weights))
        outputs = []
        for index, (entry, form) in enumerate(forms.items()):
            weight = graph.call_function(operator.getitem, (parts, index + 1))
            added = graph.call_function(operator.getitem, (parts, 0)) if index == 0 and bias is not None else None
            on_images = len(shape_of(entry)) == len(shape_of(piece.end)) == 3
            if (
                isinstance(form, Tiles)
                and form.is_convolution
                and on_images
                and (bias is None or bias.numel() == len(bias))
            ):
                outputs.append(_convolution(graph, form, copies[entry], weight, added))
            else:
                module.add_submodule(f"{name}.from_{index}", form)
                outputs.append(graph.call_module(f"{name}.from_{index}", (copies[entry], weight, added)))
        result = outputs[0]
        for other in outputs[1:]:
            result = graph.call_function(torch.ops.aten.add.Tensor, (result, other))
    result.meta["val"] = end.meta["val"]
    end.replace_all_uses_with(result)
    copies[piece.end] = result


def _convolution(graph: fx.Graph, form: Tiles, source: fx.Node, weight: fx.Node, bias: fx.Node | None) -> fx.Node:
    """A form that is nothing but a convolution is written as one, for others to read."""
    place, (row,), (column,) = form.place, form.rows, form.columns
    kernel = graph.call_function(operator.getitem, (weight, (0, 0)))
    kernel.meta["val"] = torch.empty(place.outputs, place.channels, *place.window, device="meta")
    by_channel = None if bias is None else graph.call_function(torch.ops.aten.flatten.using_ints, (bias,))
    geometry = ([place.rows.stride, place.columns.stride], [row.before, column.before])
    return graph.call_function(torch.ops.aten.conv2d.default, (source, kernel, by_channel, *geometry))
