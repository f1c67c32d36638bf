"""Affine segments become the cheapest equal form: the algebra of `kernel`, applied to the graph of a net.

A segment is a maximal part of a net that is affine, with one output. Which of the tensors inside it are still computed
is searched for by cost; every other layer vanishes into the kernel of what reads it.
"""

import operator
from dataclasses import replace
from functools import cache

import torch
from torch import Tensor, fx

from branchwork.fusing.forms import MOVE, Form, Matrix, Rows, Tiles
from branchwork.fusing.fourier import BatchedFourier, Fourier
from branchwork.fusing.kernel import StepsDiffer
from branchwork.fusing.merging import Merge, Piece
from branchwork.fusing.pooling import pooled_window
from branchwork.fusing.rules import FREE, has_kernel
from branchwork.fusing.target import Target
from branchwork.graph.affine import find_segments
from branchwork.graph.costs import macs_of, operation, pair
from branchwork.graph.program import elements, image_nodes, parents, shape_of, size_of

FORMS: tuple[type[Form], ...] = (Rows, Fourier, BatchedFourier, Matrix, Tiles)

# A form must be cheaper by this share, since the estimate is not exact.
GAIN = 0.03


def collapse_segments(module: fx.GraphModule, target: Target, *, merges: int) -> fx.GraphModule:
    """`module` with its segments collapsed, where that pays for `target`.

    `merges` is how often the kernels are merged for each batch: 0 where they are constants, and 3 in training, once
    forward and twice back.
    """
    images = image_nodes(module.graph)
    # The old graph is kept as it is: the pieces of it that are merged at each step are read there.
    graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
    graph.output(graph.graph_copy(module.graph, copies))
    collapsed = fx.GraphModule(module, graph)
    members = {node for node in module.graph.nodes if has_kernel(node, images)}
    for number, segment in enumerate(find_segments(module.graph, members)):
        planner = _Planner(segment, images, target, merges)
        for end in planner.best():
            name = f"collapsed{number}_{segment.index(end)}"
            # Not in training, where a gradient goes to the first of equal pixels, as torch's own pooling has it.
            pool = None if merges else _pooling(end)
            _replace(collapsed, copies, planner.piece(end), name, target, pool)
    graph.eliminate_dead_code()
    collapsed.recompile()
    return collapsed


class _Planner:
    """Finds which tensors of a segment are to be computed, so that all of it costs least."""

    def __init__(self, segment: list[fx.Node], images: set[fx.Node], target: Target, merges: int) -> None:
        self.segment = segment
        self.images = images
        self.target = target
        self.merges = merges
        self.cost_of_piece = cache(self._cost_of_piece)

    def best(self) -> list[fx.Node]:
        """The ends of the pieces that replace nodes of the graph, in order."""
        written, whole = frozenset(self.segment), frozenset(self.segment[-1:])
        best = self._descend(min(written, whole, key=self._cost))
        # Where kernels are merged once and for all, even a batch norm after a large convolution is worth folding.
        gain = GAIN if self.merges else min(GAIN, 0.0)
        if self._cost(best) > (1 - gain) * self._cost(written):
            return []
        self.kept = best
        return [node for node in self.segment if node in best and len(self._nodes(node, best)) > 1]

    def piece(self, end: fx.Node) -> Piece:
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

    def _piece(self, nodes: tuple[fx.Node, ...]) -> Piece:
        given = dict.fromkeys(parent for node in nodes for parent in node.all_input_nodes if parent not in nodes)
        entries = tuple(parent for parent in given if parent in self.images)
        others = [parent for parent in given if parent not in self.images]
        sizes = tuple(parent for parent in others if not isinstance(parent.meta.get("val"), Tensor))
        return Piece(nodes, entries, tuple(parent for parent in others if parent not in sizes), sizes)

    def _cost_of_piece(self, nodes: tuple[fx.Node, ...]) -> float:
        if len(nodes) == 1:
            return _cost_as_written(nodes[0], self.images, self.target)
        piece = self._piece(nodes)
        if not piece.weights:
            return float("inf")
        try:
            kernels = piece.kernels(_without_data)
        except StepsDiffer:
            return float("inf")
        places = [piece.place(entry, kernel) for entry, kernel in kernels.items()]
        applying = sum(min(form.cost(place, self.target) for form in FORMS) for place in places)
        # Several images are added up, and a bias that differs from pixel to pixel is added by itself.
        added = (len(places) - 1) * 3 + (0 if piece.has_even_bias() else 2)
        applying += MOVE * added * places[0].out_elements + (len(places) - 1) * self.target.start
        merging = (sum(kernel.macs for kernel in kernels.values()) + piece.bias_macs()) / self.target.batch
        return applying + self.merges * (merging + self.target.start * len(nodes))


def _without_data(weight: fx.Node) -> Tensor:
    return torch.empty(weight.meta["val"].shape, device="meta")


def _cost_as_written(node: fx.Node, images: set[fx.Node], target: Target) -> float:
    op = operation(node)
    if op in FREE:
        return 0
    products = macs_of(node) / int(node.meta["val"].shape[0])
    channels = int(node.args[1].meta["val"].shape[1]) if op == "conv2d" else 0  # type: ignore[union-attr]
    products *= target.convolved(channels) if channels else target.product
    moved = sum(map(elements, {node, *parents(node, images)}))
    given = [parent.meta.get("val") for parent in node.all_input_nodes if parent not in images]
    weight = max((value.numel() for value in given if isinstance(value, Tensor)), default=0)
    start = target.start_convolution if channels else target.start
    return products + MOVE * (moved + weight / target.batch) + start


def _only_reader(node: fx.Node) -> fx.Node | None:
    return next(iter(node.users)) if len(node.users) == 1 else None


def _pooling(node: fx.Node) -> fx.Node | None:
    """The pooling, of windows that lie side by side and cover all, that alone reads `node`."""
    reader = _only_reader(node)
    window = pooled_window(reader) if reader else None
    covers = window is not None and not any(size % k for size, k in zip(size_of(node), window, strict=True))
    return reader if covers else None


def _replace(
    module: fx.GraphModule,
    copies: dict[fx.Node, fx.Node],
    piece: Piece,
    name: str,
    target: Target,
    pool: fx.Node | None,
) -> None:
    """Compute the output of `piece`, or with `pool` that of it and of a ReLU behind it, by its merged kernels.

    `copies` has the node of `module` for each old one.
    """
    kernels, end, forms = piece.kernels(_without_data), piece.end, dict[fx.Node, Form]()
    for entry, kernel in kernels.items():
        place = replace(piece.place(entry, kernel), channels_last=target.channels_last)
        kind = min(FORMS, key=lambda form, place=place: form.cost(place, target))  # type: ignore[misc]
        if pool is not None and len(kernels) == 1 and kind is not Tiles:
            pools = target.single and kind is not BatchedFourier
            place, end = replace(place, pool=pair(pool.args[1]), pools=pools), pool
            relu = _only_reader(pool)
            if pools and relu is not None and operation(relu) == "relu":
                place, end = replace(place, relu=True), relu
        forms[entry] = kind(place)
    graph, replaced = module.graph, copies[end]
    with graph.inserting_before(replaced):
        merge = Merge(piece, forms)
        module.add_submodule(f"{name}.merge", merge)
        parts = graph.call_module(f"{name}.merge", tuple(copies[weight] for weight in piece.weights))
        outputs = []
        for index, (entry, form) in enumerate(forms.items()):
            weight = graph.call_function(operator.getitem, (parts, index + 1))
            biased = index == 0 and merge.bias_size is not None
            added = graph.call_function(operator.getitem, (parts, 0)) if biased else None
            on_images = len(shape_of(entry)) == len(shape_of(piece.end)) == 3
            by_channel = merge.bias_size in (None, (1, 1))
            if isinstance(form, Tiles) and form.is_convolution and on_images and by_channel:
                outputs.append(_convolution(graph, form, copies[entry], weight, added))
            else:
                module.add_submodule(f"{name}.from_{index}", form)
                outputs.append(graph.call_module(f"{name}.from_{index}", (copies[entry], weight, added)))
        for output in outputs:
            output.meta["val"] = end.meta["val"]
        result = outputs[0]
        for other in outputs[1:]:
            result = graph.call_function(torch.ops.aten.add.Tensor, (result, other))
            result.meta["val"] = end.meta["val"]
    replaced.replace_all_uses_with(result)
    copies[end] = result


def _convolution(graph: fx.Graph, form: Tiles, source: fx.Node, weight: fx.Node, bias: fx.Node | None) -> fx.Node:
    """A form that is nothing but a convolution is written as one, for others to read."""
    place, (row,), (column,) = form.place, form.rows, form.columns
    kernel = graph.call_function(operator.getitem, (weight, (0, 0)))
    window = (place.rows.taps, place.columns.taps)
    kernel.meta["val"] = torch.empty(place.outputs, place.channels, *window, device="meta")
    by_channel = None if bias is None else graph.call_function(torch.ops.aten.flatten.using_ints, (bias,))
    geometry = ([place.rows.stride, place.columns.stride], [row.before, column.before])
    return graph.call_function(torch.ops.aten.conv2d.default, (source, kernel, by_channel, *geometry))
