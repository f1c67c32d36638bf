"""Affine segments become the cheapest equal form: the algebra of kernel.py, applied to the graph of a net.

A segment is a maximal part of a net that is affine and has one output. Which of the tensors inside it are still
computed is searched for by cost; every other layer becomes part of the kernel that reads it.
"""

import operator
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, fx

from branchwork.blocks import pair
from branchwork.fusing.forms import Form, Matrix
from branchwork.fusing.fourier import BatchedFourier, Fourier
from branchwork.fusing.kernel import StridesDiffer
from branchwork.fusing.pieces import Merge, Piece
from branchwork.fusing.rules import FREE, has_kernel, pooling_window
from branchwork.fusing.target import MOVE, Target
from branchwork.fusing.tiles import Tiles
from branchwork.graph.affine import find_segments
from branchwork.graph.costs import macs_of, op_name
from branchwork.graph.program import elements, image_nodes, parents, size_of

aten = torch.ops.aten

FORMS: tuple[type[Form], ...] = (Fourier, BatchedFourier, Matrix, Tiles)

# A form must be cheaper by this share, since the estimate is not exact.
GAIN = 0.03


def collapse_segments(module: fx.GraphModule, target: Target, *, merges: int) -> fx.GraphModule:
    """Return `module` with its segments collapsed, where that pays for `target`.

    `merges` is how often kernels are merged for each batch: 0 where they are constants, and 3 in training, once forward
    and twice backward.
    """
    images = image_nodes(module.graph)
    # The old graph stays as it is: the pieces that are merged at each step are read from it.
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(module.graph, copies))
    collapsed = fx.GraphModule(module, graph)
    members = {node for node in module.graph.nodes if has_kernel(node, images)}
    for number, segment in enumerate(find_segments(module.graph, members)):
        planner = Planner(segment, images, target, merges=merges)
        for end in planner.best():
            name = f"collapsed{number}_{segment.index(end)}"
            # Not in training, where a gradient goes to the first of equal pixels, as in torch's own pooling.
            tail = [] if merges else _pooling_and_relu(end)
            _replace(collapsed, copies, planner.piece(end), name=name, target=target, tail=tail)
    graph.eliminate_dead_code()
    collapsed.recompile()
    return collapsed


class Planner:
    """Finds which tensors of a segment to compute, so that the whole segment costs least."""

    def __init__(self, segment: list[fx.Node], images: set[fx.Node], target: Target, *, merges: int) -> None:
        self.segment = segment
        self.images = images
        self.target = target
        self.merges = merges
        self.cost_of_piece = cache(self._cost_of_piece)

    def best(self) -> list[fx.Node]:
        """Return the ends of the pieces that replace nodes of the graph, in order."""
        written, whole = frozenset(self.segment), frozenset(self.segment[-1:])
        best = self.descend(min(written, whole, key=self.cost))
        # Where kernels are merged once and for all, even a batch norm after a large convolution is worth folding.
        gain = GAIN if self.merges else min(GAIN, 0.0)
        if self.cost(best) > (1 - gain) * self.cost(written):
            return []
        self.kept = best
        return [node for node in self.segment if node in best and len(self._nodes(node, best)) > 1]

    def piece(self, end: fx.Node) -> Piece:
        return self._piece(self._nodes(end, self.kept))

    def descend(self, kept: frozenset[fx.Node]) -> frozenset[fx.Node]:
        """Compute one tensor more or one less, as long as that is cheaper."""
        while True:
            neighbours = [kept ^ {node} for node in self.segment[:-1]]
            best = min(neighbours, key=self.cost, default=kept)
            if self.cost(best) >= self.cost(kept):
                return kept
            kept = best

    def cost(self, kept: frozenset[fx.Node]) -> float:
        return sum(self.cost_of_piece(self._nodes(node, kept)) for node in kept)

    def _nodes(self, end: fx.Node, kept: frozenset[fx.Node]) -> tuple[fx.Node, ...]:
        """Return the nodes of the piece that gives `end` where the tensors `kept` are computed."""
        nodes = {end}
        for node in reversed(self.segment):
            if node in nodes:
                sources = parents(node, self.images)
                nodes.update(source for source in sources if source in self.segment and source not in kept)
        return tuple(node for node in self.segment if node in nodes)

    def _piece(self, nodes: tuple[fx.Node, ...]) -> Piece:
        sources = dict.fromkeys(parent for node in nodes for parent in node.all_input_nodes if parent not in nodes)
        entries = tuple(parent for parent in sources if parent in self.images)
        others = [parent for parent in sources if parent not in self.images]
        sizes = tuple(parent for parent in others if not isinstance(parent.meta.get("val"), Tensor))
        return Piece(nodes, entries, tuple(parent for parent in others if parent not in sizes), sizes)

    def _cost_of_piece(self, nodes: tuple[fx.Node, ...]) -> float:
        if len(nodes) == 1:
            return _cost_as_written(nodes[0], self.images, self.target)
        piece = self._piece(nodes)
        if not piece.weights:
            return float("inf")
        try:
            kernels = piece.kernels(_on_meta)
        except StridesDiffer:
            return float("inf")
        shapes = [piece.shape(entry, kernel) for entry, kernel in kernels.items()]
        applying = sum(min(form.cost(shape, self.target) for form in FORMS) for shape in shapes)
        # Several images are added up, and a bias that differs from pixel to pixel is added by itself.
        added = (len(shapes) - 1) * 3 + (0 if piece.has_uniform_bias() else 2)
        applying += MOVE * added * shapes[0].out_elements + (len(shapes) - 1) * self.target.start
        merging = (sum(kernel.macs for kernel in kernels.values()) + piece.bias_macs()) / self.target.batch
        return applying + self.merges * (merging + self.target.start * len(nodes))


def _on_meta(weight: fx.Node) -> Tensor:
    return torch.empty(weight.meta["val"].shape, device="meta")


def _cost_as_written(node: fx.Node, images: set[fx.Node], target: Target) -> float:
    op = op_name(node)
    if op in FREE:
        return 0
    products = macs_of(node) / int(node.meta["val"].shape[0])
    channels = int(node.args[1].meta["val"].shape[1]) if op == "conv2d" else 0  # type: ignore[union-attr]
    products *= target.convolved(channels) if channels else target.product
    moved = sum(map(elements, {node, *parents(node, images)}))
    constants = [parent.meta.get("val") for parent in node.all_input_nodes if parent not in images]
    weight = max((value.numel() for value in constants if isinstance(value, Tensor)), default=0)
    start = target.start_convolution if channels else target.start
    return products + MOVE * (moved + weight / target.batch) + start


def _pooling_and_relu(node: fx.Node) -> list[fx.Node]:
    """Return the only reader of `node`, a pooling with adjacent windows that cover it all, and a ReLU after it.

    The list is empty if there is no such pooling.
    """
    pool = _only_reader(node)
    window = pooling_window(pool) if pool else None
    if pool is None or window is None or any(size % k for size, k in zip(size_of(node), window, strict=True)):
        return []
    relu = _only_reader(pool)
    return [pool, relu] if relu is not None and op_name(relu) == "relu" else [pool]


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _replace(
    module: fx.GraphModule,
    copies: dict[fx.Node, fx.Node],
    piece: Piece,
    *,
    name: str,
    target: Target,
    tail: list[fx.Node],
) -> None:
    """Compute the output of `piece` by its merged kernels, with the pooling and ReLU of `tail` where its form can.

    `copies` has the node of `module` for each node of the piece.
    """
    kernels, end, forms = piece.kernels(_on_meta), piece.end, dict[fx.Node, Form]()
    for entry, kernel in kernels.items():
        shape = replace(piece.shape(entry, kernel), channels_last=target.channels_last)
        cheapest = min(FORMS, key=lambda form, shape=shape: form.cost(shape, target))  # type: ignore[misc]
        if tail and len(kernels) == 1 and cheapest is not Tiles:
            shape, end = replace(shape, pool=pair(tail[0].args[1]), relu=len(tail) == 2), tail[-1]
        forms[entry] = cheapest(shape)
    graph, replaced = module.graph, copies[end]
    with graph.inserting_before(replaced):
        merge = Merge(piece, forms)
        module.add_submodule(f"{name}.merge", merge)
        parts = graph.call_module(f"{name}.merge", tuple(copies[weight] for weight in piece.weights))
        bias = graph.call_function(operator.getitem, (parts, 0)) if merge.bias_size is not None else None
        outputs = []
        for index, (entry, form) in enumerate(forms.items()):
            prepared = graph.call_function(operator.getitem, (parts, index + 1))
            added = None if index else bias
            if isinstance(form, Tiles) and form.padding is not None and merge.bias_size in (None, (1, 1)):
                output = _convolve(graph, form, copies[entry], kernels=prepared, bias=added)
            else:
                module.add_submodule(f"{name}.from_{index}", form)
                output = graph.call_module(f"{name}.from_{index}", (copies[entry], prepared, added))
            output.meta["val"] = end.meta["val"]
            outputs.append(output)
        result = outputs[0]
        for output in outputs[1:]:
            result = graph.call_function(aten.add.Tensor, (result, output))
            result.meta["val"] = end.meta["val"]
    replaced.replace_all_uses_with(result)
    copies[end] = result


def _convolve(graph: fx.Graph, form: Tiles, source: fx.Node, *, kernels: fx.Node, bias: fx.Node | None) -> fx.Node:
    """Write a form that is one convolution as torch's operation, for later passes to read."""
    shape = form.shape
    assert form.padding is not None, "its padding is a convolution's"
    kernel = graph.call_function(operator.getitem, (kernels, (0, 0)))
    window = (shape.rows.taps, shape.columns.taps)
    kernel.meta["val"] = torch.empty(shape.outputs, shape.channels, *window, device="meta")
    by_channel = None if bias is None else graph.call_function(aten.flatten.using_ints, (bias,))
    geometry = [shape.rows.stride, shape.columns.stride], [*form.padding]
    return graph.call_function(aten.conv2d.default, (source, kernel, by_channel, *geometry))
