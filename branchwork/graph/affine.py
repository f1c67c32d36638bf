"""Segments: the parts of a net that are one affine map, since no activation stands between their layers."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod

from branchwork.graph.costs import VIEWS
from branchwork.graph.program import Shape
from branchwork.graph.trace import Node, Trace

# Affine operations without weights of their own, in eval mode.
_PASSING = VIEWS | {
    "avg_pool2d", "adaptive_avg_pool2d", "mean", "batch_norm", "cat", "add", "sub", "pad", "clone",
    "dropout", "feature_dropout", "alpha_dropout",
}  # fmt: skip


@dataclass(frozen=True)
class Segment:
    """Two convolutions or linear layers or more, each of which is read by others of them alone, but for the last.

    `layers` and `nodes`, which has the joins, views and so on between them too, are names in order. `macs` are those
    as written, `collapsed_macs` those of the cheapest equal map, and `collapsed` is that map in words.
    """

    layers: tuple[str, ...]
    nodes: tuple[str, ...]
    macs: int
    collapsed_macs: int
    collapsed: str


def segments(trace: Trace) -> Iterable[Segment]:
    """Every segment of a net. Where one reader of a layer is an activation, its output is needed, and it stays."""
    graph = _Graph(trace)
    groups: list[set[str]] = []
    last: dict[str, bool] = {}
    for node in trace.nodes:
        readers = graph.next_layers(node) if graph.is_layer(node) else []
        last[node.name] = not readers
        if readers:
            group = {node.name, *(reader.name for reader in readers)}
            touched = [other for other in groups if other & group]
            groups = [other for other in groups if other not in touched] + [group.union(*touched)]
    for group in groups:
        nodes = graph.body(group)
        layers = tuple(name for name in nodes if name in group)
        maps = [m for name in layers if last[name] for m in graph.collapsed(graph.by_name[name], nodes)]
        yield Segment(
            layers=layers,
            nodes=nodes,
            macs=sum(graph.by_name[name].macs for name in layers),
            collapsed_macs=sum(macs for macs, _ in maps),
            collapsed=" and ".join(dict.fromkeys(words for _, words in maps)),
        )


class _Graph:
    """A trace with what each node is affine in."""

    def __init__(self, trace: Trace) -> None:
        self.trace = trace
        self.by_name = {node.name: node for node in trace.nodes}
        self.readers: dict[str, list[Node]] = {}
        # The tensors in which each node is affine: itself where it is not. Constants have none.
        self.sources: dict[str, frozenset[str]] = {"input": frozenset({"input"})}
        for node in trace.nodes:
            for name in node.inputs:
                self.readers.setdefault(name, []).append(node)
            given = [self.sources[name] for name in node.inputs if self.sources[name]]
            affine = not given or self._is_affine(node, given)
            self.sources[node.name] = frozenset().union(*given) if affine else frozenset({node.name})

    @staticmethod
    def _is_affine(node: Node, given: Sequence[frozenset[str]]) -> bool:
        if node.op in ("add", "sub"):
            # A shortcut around an activation makes a block of its own, whose sum is read as it is by design.
            return len(set(given)) == 1
        if node.op == "conv2d":
            # A depthwise convolution is one half of a separable one, which saves work on purpose.
            return len(given) == 1 and not node.groups == node.channels > 1
        return node.op in _PASSING or (node.op == "linear" and len(given) == 1)

    def affine(self, node: Node) -> bool:
        return node.name not in self.sources[node.name]

    def is_layer(self, node: Node) -> bool:
        return node.op in ("conv2d", "linear") and self.affine(node)

    def next_layers(self, layer: Node) -> list[Node]:
        """The layers that read this one's output; none where anything else does, and where the rank is a choice."""
        found: dict[str, Node] = {}
        normed = False
        seen, ahead = {layer.name}, [layer]
        while ahead:
            node = ahead.pop()
            if node.name in self.trace.outputs:
                return []
            for reader in self.readers.get(node.name, []):
                if not self.affine(reader):
                    return []
                normed = normed or reader.op == "batch_norm"
                if self.is_layer(reader):
                    found[reader.name] = reader
                elif reader.name not in seen:
                    seen.add(reader.name)
                    ahead.append(reader)
        if any(_is_low_rank(layer, reader, normed) for reader in found.values()):
            return []
        return list(found.values())

    def body(self, layers: Collection[str]) -> tuple[str, ...]:
        """These layers and what is affine between and before them, in order."""
        found, ahead = set(layers), list(layers)
        while ahead:
            for name in self.by_name[ahead.pop()].inputs:
                node = self.by_name.get(name)
                if node is not None and name not in found and node.op in _PASSING and self.affine(node):
                    found.add(name)
                    ahead.append(name)
        return tuple(name for name in self.by_name if name in found)

    def collapsed(self, end: Node, nodes: Sequence[str]) -> Iterable[tuple[int, str]]:
        """The MACs and the words of the cheapest map into `end`, from each tensor that enters these nodes."""
        inside = {node.name: node for node in map(self.by_name.__getitem__, nodes)}
        ways = _upstream(end, inside)
        entries = dict.fromkeys(name for node in ways for name in node.inputs if name not in inside)
        for entry in entries:
            if self.sources[entry]:
                shape = self.by_name[entry].output_shape if entry != "input" else self.trace.input_shape
                yield min(_maps(entry, shape, end, ways))


def _is_low_rank(layer: Node, reader: Node, normed: bool) -> bool:
    """A middle narrower than both ends is chosen where nothing else is: an autoencoder's, or a linear bottleneck's.

    The latter, with a batch norm after it, stays without an activation on purpose (Sandler et al. 2018, section 3.2).
    """
    if layer.op != reader.op:
        return False
    before, middle, after = _channels(layer), _width(layer), _width(reader)
    at_one_place = {layer.kernel, reader.kernel} <= {None, (1, 1)}
    return middle < min(before, after) and (at_one_place or (normed and layer.kernel == (1, 1)))


def _width(layer: Node) -> int:
    return layer.output_shape[0] if layer.op == "conv2d" else layer.output_shape[-1]


def _channels(layer: Node) -> int:
    """What comes in: a linear layer's MACs are outputs times inputs."""
    return layer.channels if layer.op == "conv2d" else layer.macs // prod(layer.output_shape)


def _upstream(end: Node, inside: Mapping[str, Node]) -> list[Node]:
    """`end` and those of these nodes that lead to it, in order."""
    wanted = {end.name}
    for node in reversed(list(inside.values())):
        if node.name in wanted:
            wanted.update(node.inputs)
    return [node for node in inside.values() if node.name in wanted]


def _maps(entry: str, shape: Shape, end: Node, ways: Sequence[Node]) -> Iterable[tuple[int, str]]:
    """Each way to write the map from a tensor of `shape` into `end` at once: MACs and words."""
    features, outputs = prod(shape), prod(end.output_shape)
    yield features * outputs, f"one {features}→{outputs} matrix"
    if all(node.op == "linear" or node.window == (1, 1) for node in ways) and end.op == "linear":
        yield shape[-1] * outputs, f"one {shape[-1]}→{_width(end)} matrix"
    if end.op == "conv2d" and len(shape) == 3 and all(node.window is not None for node in ways):
        height, width = _joint_window(entry, ways)
        words = f"one {height}×{width} convolution {shape[0]}→{_width(end)} (with care at the border)"
        yield height * width * shape[0] * outputs, words


def _joint_window(entry: str, ways: Sequence[Node]) -> tuple[int, int]:
    """What one output at the end sees of `entry`: windows grow by the steps of what lies before them."""
    seen = {entry: ((1, 1), (1, 1))}
    for node in ways:
        before = [seen[name] for name in node.inputs if name in seen]
        if before:
            assert node.window is not None and node.stride is not None, "asked before"
            size = max(size[0] for size, _ in before), max(size[1] for size, _ in before)
            jump = before[0][1]  # all alike, or what meets here would differ in size
            grown = tuple(s + (w - 1) * j for s, w, j in zip(size, node.window, jump, strict=True))
            steps = tuple(j * s for j, s in zip(jump, node.stride, strict=True))
            seen[node.name] = ((grown[0], grown[1]), (steps[0], steps[1]))
    return seen[ways[-1].name][0]
