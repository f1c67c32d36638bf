"""The parts of a net's drawing: boxes in series from left to right, branches as lanes, and arcs over what they pass.

Lengths are in inches; x grows to the right and y downwards.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from branchwork.drawing.boxes import LINE, Box, Point
from branchwork.drawing.series_parallel import Link, Parallel, Series
from branchwork.palette import IN_ORDER

GAP = 0.25  # the shortest edge
TURN = 0.35  # the length over which an edge changes lanes
LANE = 0.12  # between two lanes
ARC = 0.16  # between an arc and what it passes over
STEM = 0.1  # the part of an arc before it rises


@dataclass(frozen=True)
class Caption:
    """The path of a module above what it made; `x` is its left side and `y` its middle."""

    text: str
    x: float
    y: float


@dataclass(frozen=True)
class Part:
    """Some boxes in place, with the waypoints of edges that do not lead straight from one box to the next.

    Edges come in at its left and leave at its right, at the height of `line`.
    """

    boxes: tuple[Box, ...] = ()
    captions: tuple[Caption, ...] = ()
    waypoints: Mapping[Link, tuple[Point, ...]] = field(default_factory=dict)
    left: float = 0.0
    right: float = 0.0
    top: float = 0.0
    bottom: float = 0.0
    line: float = 0.0

    def moved(self, x: float, y: float) -> "Part":
        return Part(
            boxes=tuple(replace(box, x=box.x + x, y=box.y + y) for box in self.boxes),
            captions=tuple(replace(caption, x=caption.x + x, y=caption.y + y) for caption in self.captions),
            waypoints={link: tuple((px + x, py + y) for px, py in points) for link, points in self.waypoints.items()},
            left=self.left + x,
            right=self.right + x,
            top=self.top + y,
            bottom=self.bottom + y,
            line=self.line + y,
        )


@dataclass(frozen=True)
class Arc:
    """The edges from one box that pass over others: from `start` to `end` at one height, and down at each of `ends`.

    `rise` are the points before `start`: none if it comes from the left at that height.
    """

    source: str
    rise: tuple[Point, ...]
    start: float
    end: float
    ends: Mapping[str, float]


def place(item: Box | Parallel, path: str, colour: str | None, *, starts_lane: bool = False) -> Part:
    """Place an item that stands within the module `path` and within a branch of this colour."""
    if isinstance(item, Parallel):
        return _place_parallel(item, path, colour, starts_lane=starts_lane)
    return _part_of(replace(item, name=item.name.removeprefix(f"{path}."), colour=colour))


def _part_of(box: Box) -> Part:
    return Part((box,), left=box.x, right=box.label_end, top=box.top, bottom=box.bottom)


def _place_series(series: Series, path: str, colour: str | None) -> Part:
    """Place the items of a lane from left to right, with arcs over them."""
    items = enumerate(series.items)
    parts = side_by_side([place(item, path, colour, starts_lane=index == 0) for index, item in items])
    return merged(parts, series.arcs, right=parts[-1].right)


def _place_parallel(parallel: Parallel, path: str, colour: str | None, *, starts_lane: bool) -> Part:
    """Place branches as lanes, or a single branch under its shortcut, and the join after them."""
    is_stack = sum(bool(series.items) for _, series in parallel.branches) > 1
    is_coloured = parallel.join is None or parallel.join.kind == "bar" or (is_stack and colour is None)
    turn = TURN if is_stack else 0.0
    lanes = []
    for number, series in parallel.branches:
        if series.items:
            its_own = parallel.colours[number] if parallel.colours else IN_ORDER[number % len(IN_ORDER)]
            lane = _place_series(series, parallel.path or path, its_own if is_coloured else colour)
            lanes.append(lane.moved(turn, 0))
        elif is_stack:  # a line in a lane of its own
            lanes.append(Part(waypoints={parallel.link: ((turn, 0.0),)}, top=-0.1, bottom=0.1))
    part = replace(merged(_stacked(lanes) if is_stack else lanes), left=0.0)
    if parallel.join is None:
        return part
    join = replace(place(parallel.join, path, colour).boxes[0], x=part.right + GAP + turn / 2)
    if join.kind == "bar":
        join = replace(join, height=max(join.height, 0.75 * (part.bottom - part.top)))
    parts = [part, _part_of(join)]
    shortcut = [] if is_stack else [parallel.link]
    before = "" if starts_lane else parallel.link[0]
    part = merged(parts, shortcut, right=join.x, before=before)
    caption = parallel.path.removeprefix(f"{path}.") if parallel.path != path else ""
    if not caption:
        return part
    above = part.top - LINE - 0.1
    return replace(part, captions=(*part.captions, Caption(caption, 0.0, above + LINE / 2)), top=above)


def side_by_side(parts: Iterable[Part]) -> list[Part]:
    placed: list[Part] = []
    x = 0.0
    for part in parts:
        placed.append(part.moved(x, 0))
        x = placed[-1].right + GAP
    return placed


def _stacked(lanes: Sequence[Part]) -> list[Part]:
    """Lanes one under another, as far above the line as below it."""
    placed = []
    y = -(sum(lane.bottom - lane.top for lane in lanes) + LANE * (len(lanes) - 1)) / 2
    for lane in lanes:
        placed.append(lane.moved(0, y - lane.top))
        y = placed[-1].bottom + LANE
    return placed


def merged(
    parts: Sequence[Part], links: Iterable[Link] = (), *, left: float = 0.0, right: float = 0.0, before: str = ""
) -> Part:
    """Parts in place as one, and arcs for `links` just over what they pass, the longer over the shorter.

    An arc from a box that is not in `parts` begins at `left`, or, if that is `before`, rises from the line into the
    row; an arc to such a box ends at `right`.
    """
    arcs = _arcs(parts, links, left=left, right=right, before=before)
    waypoints = {link: points for part in parts for link, points in part.waypoints.items()}
    passed = [(part.left, part.right, part.top) for part in parts]
    for arc in sorted(reversed(arcs), key=lambda arc: arc.end - arc.start):
        y = min((top for left, right, top in passed if left < arc.end and arc.start < right), default=0.0) - ARC
        passed.append((arc.start, arc.end, y))
        waypoints |= {(arc.source, target): (*arc.rise, (arc.start, y), (x, y)) for target, x in arc.ends.items()}
    return Part(
        boxes=tuple(box for part in parts for box in part.boxes),
        captions=tuple(caption for part in parts for caption in part.captions),
        waypoints=waypoints,
        left=parts[0].left,
        right=max(part.right for part in parts),
        top=min(top for _, _, top in passed),
        bottom=max(part.bottom for part in parts),
    )


def _arcs(parts: Sequence[Part], links: Iterable[Link], *, left: float, right: float, before: str) -> list[Arc]:
    """An arc for each box that `links` leave, as `merged` says."""
    boxes = {box.id: box for part in parts for box in part.boxes}
    targets: dict[str, list[str]] = {}
    for source, target in links:
        targets.setdefault(source, []).append(target)
    arcs = []
    for source, names in targets.items():
        ends = {name: boxes[name].landing(source) if name in boxes else right for name in names}
        end = max(boxes[name].middle if name in boxes else right for name in names)
        start = left
        rise: tuple[Point, ...] = ()
        if source in boxes:  # it rises from the edge that leaves the box, after its label
            start = boxes[source].label_end + GAP / 2
            rise = (start - STEM, boxes[source].y), (start, boxes[source].y)
        elif source == before:
            start = parts[0].left - GAP / 2
            rise = (start - STEM, 0.0), (start, 0.0)
        arcs.append(Arc(source, rise, start, end, ends))
    return arcs
