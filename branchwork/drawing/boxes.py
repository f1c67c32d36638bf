"""The boxes of a net's drawing: operations with those fused to them, what is written on them, and their sizes.

Lengths are in inches; x grows to the right and y downwards.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from typing import Literal

from branchwork.graph.costs import VIEWS
from branchwork.graph.joins import Join
from branchwork.graph.program import Shape
from branchwork.graph.trace import Operation, Trace
from branchwork.graph.words import brief
from branchwork.palette import branch_colours

LETTER = 0.082  # the mean width of a letter, rounded up
LINE = 0.17  # the height of a line of text
BAND = 0.2  # the width of a band
_SEGMENT = 0.2  # the smallest height of a bar's segment

Point = tuple[float, float]
Kind = Literal["input", "box", "bar", "sum"]

# Operations that are drawn as a band on the box before them, and the words on the band.
_BANDS = {op: op for op in ("relu", "relu6", "gelu", "silu", "elu", "sigmoid", "tanh", "softmax", *sorted(VIEWS))}
_BANDS |= {"batch_norm": "bn", "dropout": "drop", "leaky_relu": "leaky", "hardtanh": "clip", "flatten": "flat"}
_BANDS |= {"hardswish": "hswish", "layer_norm": "ln", "group_norm": "gn", "log_softmax": "log sm", "clone": "copy"}


@dataclass(frozen=True)
class Box:
    """An operation with those fused to it: drawn as a box, for a concatenation as a bar, for a sum as a circle.

    `id` is the name of its last operation, and `inputs` are the ids of the boxes that it reads. `path` is the module
    that made it. `shape` labels its outgoing edge, and is empty if the shape is that of its input. `channels` are those
    of a bar's segments, and `branches` the names of what a bar or a sum joins. `x` is its left side and `y` its middle;
    `width` is without bands. `colour` is that of its branch, None outside branches.
    """

    id: str
    kind: Kind
    nodes: tuple[str, ...] = ()
    inputs: tuple[str, ...] = ()
    path: str = ""
    label: str = ""
    name: str = ""
    bands: tuple[str, ...] = ()
    shape: str = ""
    channels: tuple[int, ...] = ()
    branches: tuple[str, ...] = ()
    least_width: float = 0.0
    height: float = 0.0
    x: float = 0.0
    y: float = 0.0
    row: int = 0
    colour: str | None = None

    @property
    def colours(self) -> tuple[str, ...]:
        """Those of the branches that it joins."""
        return branch_colours(self.branches)

    @property
    def width(self) -> float:
        words = 0.16 + LETTER * max(len(self.label), len(self.name))
        return {"bar": 0.44, "sum": max(self.least_width, 0.3)}.get(self.kind, max(self.least_width, words))

    @property
    def right(self) -> float:
        return self.x + self.width + BAND * len(self.bands)

    @property
    def label_end(self) -> float:
        """Where the label of its outgoing edge ends."""
        return self.right + (LETTER * len(self.shape) + 0.08 if self.shape else 0)

    @property
    def middle(self) -> float:
        return self.x + self.width / 2

    @property
    def top(self) -> float:
        return self.y - self.height / 2

    @property
    def bottom(self) -> float:
        """Its lower end, with the words below it and below its outgoing edge."""
        return self.y + max(self.height / 2 + LINE * (self.kind == "bar"), 0.25)

    @property
    def segments(self) -> list[tuple[float, float, int]]:
        """The top, height and channels of each segment of a bar, from top to bottom."""
        # Each is high enough for its number; the rest of the height is shared in proportion to the channels.
        spare = self.height - _SEGMENT * len(self.channels)
        heights = [_SEGMENT + spare * count / max(1, sum(self.channels)) for count in self.channels]
        return list(zip(accumulate(heights, initial=self.top), heights, self.channels, strict=False))

    def side(self, source: str) -> Point:
        """Where an edge from `source` enters from the left."""
        if self.kind != "bar":
            return self.x, self.y
        top, height, _ = self.segments[self.inputs.index(source)]
        return self.x, top + height / 2

    def landing(self, source: str) -> float:
        """The x at which an arc from `source` comes down."""
        if self.kind != "bar":
            return self.middle
        return self.x + self.width * (self.inputs.index(source) + 0.5) / len(self.inputs)


def boxes_of(trace: Trace, *, brief: bool, least: tuple[float, float] = (0.0, 0.0)) -> list[Box]:
    """The boxes in the order in which they run, the input first.

    If `brief`, shapes are labelled by their channels where only these are new. `least` is the smallest width and height
    of a box that is not a bar.
    """
    readers = Counter(name for node in trace.operations for name in node.inputs)
    groups: dict[str, list[Operation]] = {}  # by the last of each
    for node in trace.operations:
        is_band = node.op in _BANDS and len(node.inputs) == 1 and readers[node.inputs[0]] == 1
        groups[node.name] = [*(groups.pop(node.inputs[0], []) if is_band else []), node]
    shapes = {"input": trace.input_shape} | {node.name: node.output_shape for node in trace.operations}
    joins = {join.node: join for join in trace.joins}
    widest = max((_channels(node.output_shape) for node in trace.operations if node.name not in joins), default=1)
    width, floor = least
    first_box = Box("input", "input", label="input", shape=_text(trace.input_shape), height=max(LINE, floor))
    boxes = [replace(first_box, least_width=width)]
    for nodes in groups.values():
        first, *fused = nodes
        join = joins.get(first.name)
        kind, channels = _kind(first, join)
        bands = tuple(_BANDS[node.op] for node in fused)
        height = max([0.44, *(0.12 + LETTER * len(band) for band in bands)])
        if kind == "bar":
            height = max(height, 0.4 + _SEGMENT * len(channels))
        elif kind == "sum":
            height = max(height, floor)
        else:
            height = max(height, floor, 0.42 + 0.24 * min(1, _channels(first.output_shape) / widest) ** 0.5)
        before = shapes[first.inputs[0]] if first.inputs else ()
        boxes.append(
            Box(
                id=nodes[-1].name,
                kind=kind,
                nodes=tuple(node.name for node in nodes),
                inputs=first.inputs,
                path=first.path,
                label=_label(first),
                name=first.name,
                bands=bands,
                shape=_shape(nodes, before, kind=kind, brief=brief),
                channels=channels,
                branches=tuple(branch.name for branch in join.branches) if join and kind != "box" else (),
                least_width=width,
                height=height,
            )
        )
    # The segment of a bar says the shape of what only bars read.
    labelled = {source for box in boxes if box.kind != "bar" for source in box.inputs} | {boxes[-1].id}
    in_bars = {source for box in boxes if box.kind == "bar" for source in box.inputs}
    return [replace(box, shape="") if box.id in in_bars - labelled else box for box in boxes]


def _kind(node: Operation, join: Join | None) -> tuple[Kind, tuple[int, ...]]:
    """How the operation is drawn, and the channels of a bar's segments."""
    if join is not None and node.op == "add":
        return "sum", ()
    if join is not None and sum(branch.channels for branch in join.branches) == _channels(node.output_shape):
        return "bar", tuple(branch.channels for branch in join.branches)
    return "box", ()


def _label(node: Operation) -> str:
    """What the operation does, its kernel, and its stride unless 1: `conv 3×3 /2`. Paddings are in the table."""
    if "=" in node.detail or not node.detail:
        return _BANDS.get(node.op) or brief(node.op, "")
    return brief(node.op, node.detail, padding=False)


def _shape(nodes: Sequence[Operation], before: Shape, *, kind: Kind, brief: bool) -> str:
    """The label of the outgoing edge: `88×4×4 = 1408` after a view."""
    after = nodes[-1].output_shape
    product = next((node.detail for node in nodes if "=" in node.detail), "")
    shape = product or (_text(after) if after != before else "")
    if brief and shape and len(after) > 1 and after[1:] == before[1:]:
        return "" if kind == "bar" else str(after[0])
    return shape


def _channels(shape: Shape) -> int:
    return shape[0] if shape else 1


def _text(shape: Shape) -> str:
    return "×".join(map(str, shape))
