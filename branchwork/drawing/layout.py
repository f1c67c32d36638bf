"""The geometry of a net's drawing: where each box stands and which way each edge runs.

A net is read as a tree of series and parallel parts. Boxes in series stand from left to right; between the box where
branches part and the box where they meet, each branch is a lane. Edges that fit into no such part become arcs over what
they pass. The outermost series is broken into rows, like text, so that the picture fits a slide.

Lengths are in inches; x grows to the right and y downwards. Nothing here draws: `layout` returns plain values.
"""

from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from itertools import pairwise

from branchwork.drawing.boxes import Box, Point, boxes_of
from branchwork.drawing.parts import GAP, STEM, TURN, Caption, Part, merged, place, side_by_side
from branchwork.drawing.series_parallel import Link, links_of, series_of
from branchwork.graph.trace import Trace
from branchwork.palette import SHORTCUT

POINTS = 9.5  # the size of all text except the title
SMALLEST = 9.0  # the size to which a slide may reduce it before a net takes another row
SLIDE = (13.33, 7.5)
MARGIN = 0.3
TITLE = 0.4
LEAD = 0.4  # the line into a row
ROW = 0.36  # between two rows


@dataclass(frozen=True)
class Line:
    """A line from point to point: straight if two have the same x or y, and otherwise an S from lane to lane."""

    points: tuple[Point, ...]
    colour: str | None

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
class Picture:
    """A drawing of a net."""

    width: float
    height: float
    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]
    captions: tuple[Caption, ...]


def layout(trace: Trace) -> Picture:
    """Place every operation of `trace`. Edges are labelled with whole shapes if a slide has room for them."""
    picture = layout_boxes(boxes_of(trace, brief=False), outputs=trace.outputs)
    fits = _reduction(picture.width, picture.height) <= POINTS / SMALLEST
    return picture if fits else layout_boxes(boxes_of(trace, brief=True), outputs=trace.outputs)


def layout_boxes(boxes: Sequence[Box], *, outputs: Iterable[str]) -> Picture:
    """Place `boxes`, which are in the order in which they run. `outputs` are operations that nothing need read."""
    tree = series_of(boxes)
    rows = _rows(side_by_side([place(item, "", None) for item in tree.items]), tree.arcs)
    return _page(rows, links_of(boxes), set(outputs))


def _reduction(width: float, height: float) -> float:
    """How many times smaller a picture must be shown to fit on a slide."""
    return max(1.0, width / SLIDE[0], height / SLIDE[1])


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
    breaks: dict[tuple[int, ...], None] = {}
    while width >= 0.95 * widest:
        breaks[_breaks(parts, width, torn)] = None
        width *= 0.97
    layouts = [
        [_row(parts, range(first, end), arcs, number=number) for first, end in pairwise(layout)] for layout in breaks
    ]
    return min(layouts, key=_cost)


def _cost(rows: Sequence[Part]) -> tuple[float, int, float]:
    """How much a slide reduces these rows, how many they are, and how wide: the first that differs decides."""
    width = max(row.right - row.left for row in rows) + 2 * MARGIN
    height = sum(row.bottom - row.top for row in rows) + ROW * (len(rows) - 1) + TITLE + 2 * MARGIN
    return max(POINTS / SMALLEST, _reduction(width, height)), len(rows), width


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
    return replace(merged(row, here, left=left + STEM, right=right, before=before), left=left, right=right)


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
    feeds: dict[str, str] = {}
    for box in boxes.values():
        if box.kind == "bar" and all(boxes[source].colour is None for source in box.inputs):
            pairs = zip(box.inputs, box.colours, strict=True)
            feeds |= {source: colour for source, colour in pairs if boxes[source].kind != "bar"}
    for box in boxes.values():
        yield replace(box, colour=feeds.get(box.id, box.colour))


# Edges


def _edge(source: Box, target: Box, waypoints: Sequence[Sequence[Point]], *, rows: Sequence[Part]) -> Edge:
    """The edge through waypoints, which are given for each row that it crosses."""
    colour = _edge_colour(source, target)
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


def _edge_colour(source: Box, target: Box) -> str | None:
    own = target.colours[target.inputs.index(source.id)] if target.colours else None
    if target.kind == "bar" or own == SHORTCUT:
        return own
    return source.colour if len(target.inputs) > 1 and source.colour is not None else target.colour


def _with_turns(points: Sequence[Point]) -> list[Point]:
    """The points, with one more where each change of lanes begins."""
    turned = [points[0]]
    for (x, y), (next_x, next_y) in pairwise(points):
        if abs(x - next_x) > 1e-6 and abs(y - next_y) > 1e-6:
            turned.append((max(x, next_x - TURN), y))
        turned.append((next_x, next_y))
    return turned
