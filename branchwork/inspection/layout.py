"""The geometry of a net's drawing: where each box stands and which way each edge runs.

A net is read as a tree of series and parallel parts. Boxes in series stand from left to right; between the box where
branches part and the box where they meet, each branch is a lane. Edges that fit into no such part become arcs over what
they pass. The outermost series is broken into rows, like text, so that the picture fits a slide.

Lengths are in inches; x grows to the right and y downwards. Nothing here draws: `layout` returns plain values.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from itertools import pairwise

from branchwork.graph.trace import Trace
from branchwork.inspection.boxes import LINE, Box, Point, boxes_of
from branchwork.inspection.series_parallel import Link, Parallel, Series, links_of, series_of

POINTS = 9.5  # the size of all text except the title
SMALLEST = 9.0  # the size to which a slide may reduce it before a net takes another row
SLIDE = (13.33, 7.5)
MARGIN = 0.3
TITLE = 0.4
GAP = 0.25  # the shortest edge
TURN = 0.35  # the length over which an edge changes lanes
LANE = 0.12  # between two lanes
ARC = 0.16  # between an arc and what it passes over
STEM = 0.1  # the part of an arc before it rises
LEAD = 0.4  # the line into a row
ROW = 0.36  # between two rows


@dataclass(frozen=True)
class Line:
    """A line from point to point: straight if two have the same x or y, and otherwise an S from lane to lane."""

    points: tuple[Point, ...]
    colour: int | None

    @property
    def is_falling(self) -> bool:
        return self.points[-2][0] == self.points[-1][0]


@dataclass(frozen=True)
class Edge:
    """An edge between two boxes, in one piece or more. `target` is empty where the net returns what `source` gives."""

    source: str
    target: str
    lines: tuple[Line, ...]
    arrow: bool


@dataclass(frozen=True)
class Caption:
    """The path of a module above what it made; `x` is its left side and `y` its middle."""

    text: str
    x: float
    y: float


@dataclass(frozen=True)
class Picture:
    """A drawing of a net."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]
    captions: tuple[Caption, ...]


def layout(trace: Trace) -> Picture:
    """Place every operation of `trace`. Edges are labelled with whole shapes if a slide has room for them."""
    picture = _layout(trace, brief=False)
    return picture if _reduction(picture.width, picture.height) <= POINTS / SMALLEST else _layout(trace, brief=True)


def _layout(trace: Trace, *, brief: bool) -> Picture:
    boxes = boxes_of(trace, brief=brief)
    tree = series_of(boxes)
    rows = _rows(_side_by_side([_place(item, "", None) for item in tree.items]), tree.arcs)
    return _page(rows, links_of(boxes), set(trace.outputs))


def _reduction(width: float, height: float) -> float:
    """How many times smaller a picture must be shown to fit on a slide."""
    return max(1.0, width / SLIDE[0], height / SLIDE[1])


# From the tree to places


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


def _place(item: Box | Parallel, path: str, colour: int | None, *, starts_lane: bool = False) -> Part:
    """Place an item that stands within the module `path` and within a branch of this colour."""
    if isinstance(item, Parallel):
        return _place_parallel(item, path, colour, starts_lane=starts_lane)
    box = replace(item, name=item.name.removeprefix(f"{path}."), colour=colour)
    return Part((box,), right=box.label_end, top=box.top, bottom=box.bottom)


def _place_series(series: Series, path: str, colour: int | None) -> Part:
    """Place the items of a lane from left to right, with arcs over them."""
    items = enumerate(series.items)
    parts = _side_by_side([_place(item, path, colour, starts_lane=index == 0) for index, item in items])
    return _merged(parts, _arcs(parts, series.arcs, left=0.0, right=parts[-1].right))


def _place_parallel(parallel: Parallel, path: str, colour: int | None, *, starts_lane: bool) -> Part:
    """Place branches as lanes, or a single branch under its shortcut, and the join after them."""
    is_stack = sum(bool(series.items) for _, series in parallel.branches) > 1
    is_coloured = parallel.join is None or parallel.join.kind == "bar" or (is_stack and colour is None)
    turn = TURN if is_stack else 0.0
    lanes = []
    for number, series in parallel.branches:
        if series.items:
            lane = _place_series(series, parallel.path or path, number if is_coloured else colour)
            lanes.append(lane.moved(turn, 0))
        elif is_stack:  # a line in a lane of its own
            lanes.append(Part(waypoints={parallel.link: ((turn, 0.0),)}, top=-0.1, bottom=0.1))
    part = replace(_merged(_stacked(lanes) if is_stack else lanes), left=0.0)
    if parallel.join is None:
        return part
    join = replace(_place(parallel.join, path, colour).boxes[0], x=part.right + GAP + turn / 2)
    if join.kind == "bar":
        join = replace(join, height=max(join.height, 0.75 * (part.bottom - part.top)))
    parts = [part, Part((join,), left=join.x, right=join.label_end, top=join.top, bottom=join.bottom)]
    shortcut = [] if is_stack else [parallel.link]
    before = "" if starts_lane else parallel.link[0]
    part = _merged(parts, _arcs(parts, shortcut, left=0.0, right=join.x, before=before))
    caption = parallel.path.removeprefix(f"{path}.") if parallel.path != path else ""
    if not caption:
        return part
    above = part.top - LINE - 0.1
    return replace(part, captions=(*part.captions, Caption(caption, 0.0, above + LINE / 2)), top=above)


def _side_by_side(parts: Iterable[Part]) -> list[Part]:
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


def _merged(parts: Sequence[Part], arcs: Sequence[Arc] = ()) -> Part:
    """Parts in place as one, and arcs just over what they pass, the longer over the shorter."""
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


def _arcs(parts: Sequence[Part], links: Iterable[Link], *, left: float, right: float, before: str = "") -> list[Arc]:
    """An arc for each box that `links` leave.

    From a box that is not in `parts` it begins at `left`, or, if that is `before`, rises from the line into the row; to
    other boxes it ends at `right`.
    """
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


# Rows


def _rows(parts: Sequence[Part], arcs: Sequence[Link]) -> list[Part]:
    """The line of `parts` in the fewest rows that a slide holds; for a larger net, in those that are reduced least."""
    number = {box.id: index for index, part in enumerate(parts) for box in part.boxes}
    torn: set[int] = set()  # an arc would be torn if a row began with one of these parts
    for source, target in arcs:
        # What the last box of a row gives goes to the next row on the line, and rises there.
        first = number[source] + (source == parts[number[source]].boxes[-1].id)
        torn.update(range(first + 1, number[target] + 1))
    width = LEAD + parts[-1].right + GAP
    widest = LEAD + max(part.right - part.left for part in parts) + GAP
    candidates: dict[tuple[int, ...], tuple[float, int, float, list[Part]]] = {}
    while width >= 0.95 * widest:
        breaks = _breaks(parts, width, torn)
        if breaks not in candidates:
            rows = [_row(parts, range(first, end), arcs, number=number) for first, end in pairwise(breaks)]
            needed = max(row.right - row.left for row in rows) + 2 * MARGIN
            height = sum(row.bottom - row.top for row in rows) + ROW * (len(rows) - 1) + TITLE + 2 * MARGIN
            candidates[breaks] = (max(POINTS / SMALLEST, _reduction(needed, height)), len(rows), needed, rows)
        width *= 0.97
    return min(candidates.values(), key=lambda candidate: candidate[:3])[3]


def _breaks(parts: Sequence[Part], width: float, torn: Set[int]) -> tuple[int, ...]:
    """Where rows of `width` begin, and the end: full rows, unless a break in their second half tears no arc."""
    breaks = [0]
    for index in range(1, len(parts)):
        left = parts[breaks[-1]].left
        if LEAD + parts[index].right + GAP - left > width:
            whole = [n for n in range(breaks[-1] + 1, index + 1) if n not in torn and parts[n].left - left > width / 2]
            breaks.append(whole[-1] if whole else index)
    return (*breaks, len(parts))


def _row(parts: Sequence[Part], members: range, arcs: Iterable[Link], *, number: Mapping[str, int]) -> Part:
    """The row of `members`, with the arcs that begin in it, end in it, or pass through it."""
    row = parts[members.start : members.stop]
    before = parts[members.start - 1].boxes[-1].id if members.start else ""
    goes_on = row[-1].boxes[-1].id
    here = [
        (source, target)
        for source, target in arcs
        if (number[source] < members.stop and source != goes_on) and number[target] >= members.start
    ]
    left, right = row[0].left - LEAD, row[-1].right + GAP
    return replace(_merged(row, _arcs(row, here, left=left + STEM, right=right, before=before)), left=left, right=right)


def _page(rows: Sequence[Part], links: Sequence[Link], outputs: Set[str]) -> Picture:
    """Rows one under another, with all edges."""
    placed: list[Part] = []
    y = MARGIN + TITLE
    for row in rows:
        placed.append(row.moved(MARGIN - row.left, y - row.top))
        y = placed[-1].bottom + ROW
    boxes = {box.id: replace(box, row=number) for number, row in enumerate(placed) for box in row.boxes}
    edges = []
    for source, target in links:
        waypoints = [row.waypoints[source, target] for row in placed if (source, target) in row.waypoints]
        edges.append(_edge(boxes[source], boxes[target], waypoints or [()], rows=placed))
    read = {source for source, _ in links}
    for box in boxes.values():
        if box.id not in read and (not outputs.isdisjoint(box.nodes) or len(boxes) == 1):
            line = Line(((box.right, box.y), (box.label_end + GAP, box.y)), None)
            edges.append(Edge(box.id, "", (line,), arrow=True))
    return Picture(
        width=max(row.right for row in placed) + MARGIN,
        height=y - ROW + MARGIN,
        boxes=tuple(_with_feeds(boxes)),
        edges=tuple(edges),
        captions=tuple(caption for row in placed for caption in row.captions),
    )


def _with_feeds(boxes: Mapping[str, Box]) -> Iterable[Box]:
    """The boxes, those outside branches in the colour of the segment that they feed."""
    feeds: dict[str, int] = {}
    for box in boxes.values():
        if box.kind == "bar" and all(boxes[source].colour is None for source in box.inputs):
            feeds |= {source: number for number, source in enumerate(box.inputs) if boxes[source].kind != "bar"}
    for box in boxes.values():
        yield replace(box, colour=feeds.get(box.id, box.colour))


# Edges


def _edge(source: Box, target: Box, waypoints: Sequence[Sequence[Point]], *, rows: Sequence[Part]) -> Edge:
    """The edge through waypoints, which are given for each row that it crosses."""
    colour = target.colour
    if target.kind == "bar":
        colour = target.inputs.index(source.id)
    elif len(target.inputs) > 1 and source.colour is not None:
        colour = source.colour
    stem: list[Point] = [(source.right, source.y)]
    if len(waypoints) <= target.row - source.row:  # it goes on in the next row, as the eye does
        row, following = rows[source.row : source.row + 2]
        end, between, start = source.label_end + GAP + STEM, row.bottom + ROW / 2, MARGIN - STEM
        stem += [(end, source.y), (end, between), (start, between), (start, following.line), (MARGIN, following.line)]
    last = waypoints[-1][-1] if waypoints[-1] else stem[-1]
    entry = (last[0], target.top) if last[0] > target.x else target.side(source.id)
    pieces = [*waypoints[:-1], (*waypoints[-1], entry)]
    first, *others = _with_turns([stem[-1], *pieces[0]])
    if colour == source.colour:
        lines = [Line((*stem, *others), colour)]
    else:
        # Until it turns, it has the colour of the branch that it comes from.
        if len(others) == 1:
            others.insert(0, (max(first[0], target.x - TURN), first[1]))
        lines = [Line((*stem, others[0]), source.colour), Line(tuple(others), colour)]
    lines += [Line(tuple(_with_turns(piece)), colour) for piece in pieces[1:]]
    return Edge(source.id, target.id, tuple(lines), target.kind != "bar" or lines[-1].is_falling)


def _with_turns(points: Sequence[Point]) -> list[Point]:
    """The points, with one more where each change of lanes begins."""
    turned = [points[0]]
    for (x, y), (next_x, next_y) in pairwise(points):
        if abs(x - next_x) > 1e-6 and abs(y - next_y) > 1e-6:
            turned.append((max(x, next_x - TURN), y))
        turned.append((next_x, next_y))
    return turned
