"""Consecutive layers without an activation, which are one affine map: their cost, and the cost of that map."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from math import prod

from torch import fx

from branchwork.graph.affine import LAYERS, connected, is_affine
from branchwork.graph.costs import argument, op_name
from branchwork.graph.program import Graph, Shape, parents
from branchwork.graph.trace import Operation, Trace
from branchwork.language import say


@dataclass(frozen=True)
class AffineChain:
    """Two or more convolutions or linear layers, each read only by others of them, except the last.

    `layers` and `nodes`, which also has the joins, views and so on between them, are names in order. `macs` are those
    as written, `collapsed_macs` those of the cheapest equal map, and `collapsed` is that map in words.
    """

    layers: tuple[str, ...]
    nodes: tuple[str, ...]
    macs: int
    collapsed_macs: int
    collapsed: str


def affine_chains(graph: Graph, trace: Trace) -> Iterator[AffineChain]:
    """Yield the chains of a net that are probably a mistake.

    What `fuse` collapses is more: a depthwise convolution, a sum around an activation and a narrow middle are choices.
    """
    rows = {row.name: row for row in trace.operations}
    members = _members(graph)
    layers = [node for node in graph.names if node in members and op_name(node) in LAYERS]
    readers = {layer: _next_layers(graph, rows, layer, members=members) for layer in layers}
    for linked in connected({layer, *others} for layer, others in readers.items() if others):
        chain = [layer for layer in readers if layer in linked]
        nodes = _with_what_is_between(graph, chain, members)
        within = {name: rows[name] for name in dict.fromkeys(graph.names[node] for node in nodes)}
        maps = [m for layer in chain if not readers[layer] for m in _collapsed(graph, rows, layer, within=within)]
        yield AffineChain(
            layers=tuple(graph.names[layer] for layer in chain),
            nodes=tuple(within),
            macs=sum(rows[graph.names[layer]].macs for layer in chain),
            collapsed_macs=sum(macs for macs, _ in maps),
            collapsed=reduce(_both, dict.fromkeys(text for _, text in maps)),
        )


def _both(one: str, other: str) -> str:
    return say("{one} and {other}", one=one, other=other)


def _members(graph: Graph) -> set[fx.Node]:
    """Return the affine operations that a chain may have.

    A depthwise convolution is half of a separable one, which saves work on purpose. A sum around an activation makes a
    block, whose output is read as it is by design: its operands are affine in different tensors.
    """
    members: set[fx.Node] = set()
    sources: dict[fx.Node, frozenset[fx.Node]] = {}
    for node in graph.module.graph.nodes:
        if node in graph.image_nodes:
            parent_sources = {sources[parent] for parent in parents(node, graph.image_nodes)}
            op = node.op == "call_function" and op_name(node)
            by_choice = _is_depthwise(node) if op == "conv2d" else op in ("add", "sub") and len(parent_sources) > 1
            if is_affine(node, graph.image_nodes) and not by_choice:
                members.add(node)
            sources[node] = frozenset().union(*parent_sources) if node in members else frozenset({node})
    return members


def _is_depthwise(node: fx.Node) -> bool:
    source: fx.Node = node.args[0]  # type: ignore[assignment]
    return int(argument(node, 6, 1)) == int(source.meta["val"].shape[1]) > 1


def _next_layers(
    graph: Graph, rows: Mapping[str, Operation], layer: fx.Node, *, members: Collection[fx.Node]
) -> list[fx.Node]:
    """Return the layers that read this one's output; none if anything else does, or if the rank is a choice."""
    layers: dict[fx.Node, None] = {}
    normed = False
    seen, ahead = {layer}, [layer]
    while ahead:
        for reader in ahead.pop().users:
            if reader not in members:  # an activation, or the net's output
                return []
            normed = normed or op_name(reader) == "batch_norm"
            if op_name(reader) in LAYERS:
                layers[reader] = None
            elif reader not in seen:
                seen.add(reader)
                ahead.append(reader)
    row = rows[graph.names[layer]]
    return [] if any(_is_low_rank(row, rows[graph.names[reader]], normed) for reader in layers) else [*layers]


def _with_what_is_between(graph: Graph, layers: Sequence[fx.Node], members: Collection[fx.Node]) -> list[fx.Node]:
    """Return these layers and the affine operations between and before them, in order."""
    nodes, ahead = set(layers), list(layers)
    while ahead:
        for parent in ahead.pop().all_input_nodes:
            if parent in members and parent not in nodes and op_name(parent) not in LAYERS:
                nodes.add(parent)
                ahead.append(parent)
    return [node for node in graph.names if node in nodes]


def _collapsed(
    graph: Graph, rows: Mapping[str, Operation], end: fx.Node, *, within: Mapping[str, Operation]
) -> Iterator[tuple[int, str]]:
    """Yield the MACs and the words of the cheapest map into `end`, from each tensor that enters the rows `within`."""
    last = rows[graph.names[end]]
    upstream = _upstream(last, within)
    images = {graph.name(node) for node in graph.image_nodes}
    for entry in dict.fromkeys(name for row in upstream for name in row.inputs if name not in within):
        if entry in images:
            shape = rows[entry].output_shape if entry != "input" else graph.input_shape
            yield min(_maps(entry, shape, last, rows=upstream))


def _is_low_rank(layer: Operation, reader: Operation, normed: bool) -> bool:
    """Return whether a middle narrower than both ends is a choice: an autoencoder's, or a linear bottleneck's.

    The latter is a 1×1 without an activation on purpose (Sandler et al. 2018, section 3.2), and may be as wide as what
    it reads if a batch norm follows. Without one it must halve the channels at least: a 1×1 before a larger convolution
    often lacks its activation by mistake.
    """
    if layer.op != reader.op:
        return False
    before, middle, after = _channels(layer), _width(layer), _width(reader)
    if {layer.kernel, reader.kernel} <= {None, (1, 1)} and middle < min(before, after):
        return True
    narrow = middle <= before and middle < after if normed else 2 * middle <= min(before, after)
    return layer.kernel == (1, 1) and narrow


def _width(layer: Operation) -> int:
    return layer.output_shape[0] if layer.op == "conv2d" else layer.output_shape[-1]


def _channels(layer: Operation) -> int:
    """Return the number of inputs: a linear layer's MACs are outputs times inputs."""
    return layer.channels if layer.op == "conv2d" else layer.macs // prod(layer.output_shape)


def _upstream(end: Operation, within: Mapping[str, Operation]) -> list[Operation]:
    """Return the rows within that lead to `end`, and `end`, in order."""
    wanted = {end.name}
    for row in reversed(list(within.values())):
        if row.name in wanted:
            wanted.update(row.inputs)
    return [row for row in within.values() if row.name in wanted]


def _maps(entry: str, shape: Shape, end: Operation, *, rows: Sequence[Operation]) -> Iterable[tuple[int, str]]:
    """Yield the MACs and the words of each way to write the map from a tensor of `shape` through `rows` as one."""
    features, outputs = prod(shape), prod(end.output_shape)
    yield features * outputs, _matrix(features, outputs)
    if all(row.op == "linear" or row.window == (1, 1) for row in rows) and end.op == "linear":
        yield shape[-1] * outputs, _matrix(shape[-1], _width(end))
    if end.op == "conv2d" and len(shape) == 3 and all(row.window is not None for row in rows):
        height, width = _joint_window(entry, rows)
        text = say(
            "one {height}×{width} convolution {channels}→{out} (with care at the border)",
            height=height,
            width=width,
            channels=shape[0],
            out=_width(end),
        )
        yield height * width * shape[0] * outputs, text


def _matrix(features: int, outputs: int) -> str:
    return say("one {features}→{outputs} matrix", features=features, outputs=outputs)


def _joint_window(entry: str, rows: Sequence[Operation]) -> tuple[int, int]:
    """Return the window of `entry` that one output at the end reads: windows grow by the strides before them."""
    windows = {entry: ((1, 1), (1, 1))}
    for row in rows:
        before = [windows[name] for name in row.inputs if name in windows]
        if before:
            assert row.window is not None and row.stride is not None, "checked by _maps"
            size = max(size[0] for size, _ in before), max(size[1] for size, _ in before)
            jump = before[0][1]  # the same for all, or what meets here would differ in size
            grown = tuple(s + (w - 1) * j for s, w, j in zip(size, row.window, jump, strict=True))
            steps = tuple(j * s for j, s in zip(jump, row.stride, strict=True))
            windows[row.name] = ((grown[0], grown[1]), (steps[0], steps[1]))
    return windows[rows[-1].name][0]
