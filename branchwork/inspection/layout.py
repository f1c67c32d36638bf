"""Where each operation of a trace stands in its picture: left to right, in rows like text, lanes for branches.

Lengths are inches, y grows downwards. Nothing here draws.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from branchwork.graph.costs import VIEWS
from branchwork.graph.trace import Join, Node, Shape, Trace

POINTS = 9.5  # the size of all text but the title
LEAST = 9.0  # to what it may be reduced on a slide before a net takes another row
SLIDE = (13.33, 7.5)
LETTER = 0.082  # the width that a letter of that size needs at most, on average
LINE = 0.17  # the height of a line of text
BAND = 0.2  # the width of an operation that is fused to the one before
GAP = 0.25  # the least length of an edge
TURN = 0.35  # what an edge needs to change lanes
LANE = 0.12  # between two lanes
RAIL = 0.16  # between two shortcuts, one over the other
MARGIN = 0.3
TITLE = 0.4
LEAD = 0.4  # the line into a row
ROW = 0.36  # between two rows
_SEGMENT = 0.2  # the least height of a bar's segment

# Operations that are drawn as a band of the one before, and their names there.
_BANDS = {op: op for op in ("relu", "relu6", "gelu", "silu", "elu", "sigmoid", "tanh", "softmax", *sorted(VIEWS))}
_BANDS |= {"batch_norm": "bn", "dropout": "drop", "leaky_relu": "leaky", "hardtanh": "clip", "flatten": "flat"}
_BANDS |= {"hardswish": "hswish", "layer_norm": "ln", "group_norm": "gn", "log_softmax": "log sm", "clone": "copy"}
_WORDS = {"conv2d": "conv", "scaled_dot_product_attention": "attention", "upsample_nearest2d": "upsample"}


@dataclass(eq=False)
class Box:
    """An operation with those that are fused to it: a box, for a concatenation a bar, for a sum a circle.

    `x` is its left side, `y` its middle. `shape` is what its outgoing edge says, empty where the shape is what came in.
    `colour` is the number of the branch that it is in, None outside of branches.
    """

    kind: str
    nodes: tuple[Node, ...]
    inputs: tuple["Box", ...] = field(repr=False)  # each has inputs again: to print them all takes for ever
    join: Join | None = field(repr=False)
    label: str
    name: str
    bands: tuple[str, ...]
    shape: str
    height: float
    x: float = 0.0
    y: float = 0.0
    row: int = 0
    colour: int | None = None

    @property
    def body(self) -> float:
        """Its width without its bands."""
        if self.kind in ("bar", "sum"):
            return 0.44 if self.kind == "bar" else 0.3
        return 0.16 + LETTER * max(len(self.label), len(self.name))

    @property
    def right(self) -> float:
        return self.x + self.body + BAND * len(self.bands)

    @property
    def out(self) -> float:
        """Where its outgoing edge may turn: after the words under it."""
        return self.right + (LETTER * len(self.shape) + 0.08 if self.shape else 0)

    @property
    def middle(self) -> float:
        return self.x + self.body / 2

    @property
    def below(self) -> float:
        """How far it reaches under the line, words included."""
        return max(self.height / 2 + LINE * (self.kind == "bar"), 0.25)

    def segments(self) -> list[tuple[float, float, int]]:
        """Of a bar: the top, height and channels of each branch, from top to bottom."""
        assert self.join is not None, "only a concatenation has segments"
        channels = [branch.channels for branch in self.join.branches]
        top, found = self.y - self.height / 2, []
        for count in channels:
            # Each is high enough for its number; what is left is divided by channels.
            height = _SEGMENT + (self.height - _SEGMENT * len(channels)) * count / max(1, sum(channels))
            found.append((top, height, count))
            top += height
        return found

    def entry(self, source: "Box") -> float:
        """The height at which the edge from `source` comes in."""
        if self.kind != "bar":
            return self.y
        top, height, _ = self.segments()[self.branch(source)]
        return top + height / 2

    def landing(self, source: "Box") -> float:
        """Where a rail from `source` comes down on it."""
        if self.kind != "bar":
            return self.middle
        return self.x + self.body * (self.branch(source) + 0.5) / len(self.nodes[0].inputs)

    def branch(self, source: "Box") -> int:
        """The number of the branch of this join that ends in `source`."""
        names = [node.name for node in source.nodes] or ["input"]
        return next(n for n, name in enumerate(self.nodes[0].inputs) if name in names)


@dataclass(eq=False)
class Rail:
    """An edge over others, such as a shortcut: from x = `start` along `y` to x = `end`, and down to each of `targets`.

    `rises` is the height at which it leaves another edge, None where it comes from the row before. `goes_on` says that
    it leaves for the next row.
    """

    start: float
    end: float
    rises: float | None
    goes_on: bool
    source: Box
    targets: list[Box]
    colour: int | None
    y: float = 0.0

    def shift(self, x: float, y: float) -> None:
        self.start += x
        self.end += x
        self.y += y
        self.rises = None if self.rises is None else self.rises + y


@dataclass(eq=False)
class Block:
    """The branches of a join as lanes, one above another in the order of the join, and the join after them."""

    title: str
    lanes: list[list["Item"]]
    join: Box
    x: float = 0.0
    top: float = 0.0
    below: float = 0.0
    rails: list[Rail] = field(default_factory=list)


Item = Box | Block
Edge = tuple[Box, Box, int | None]  # from, to, and the number of its colour
Path = tuple[int, ...]
# By the sequence or block that they pass over: the source of each rail and its targets.
Over = dict[Path, dict[Box, list[Box]]]


@dataclass(frozen=True)
class Picture:
    """What is to be drawn, in inches. `rows` has the y of each row's line and of its bottom."""

    width: float
    height: float
    rows: list[tuple[float, float]]
    boxes: list[Box]
    blocks: list[Block]
    edges: list[Edge]
    rails: list[Rail]


def layout(traced: Trace) -> Picture:
    """Places every operation of `traced` once. Edges say whole shapes where a slide has the room."""
    picture = _layout(traced, brief=False)
    return picture if _reduction(picture.width, picture.height) <= POINTS / LEAST else _layout(traced, brief=True)


def _reduction(width: float, height: float) -> float:
    """How many times smaller a picture must be shown than it is, to fit on a slide."""
    return max(1.0, width / SLIDE[0], height / SLIDE[1])


def _layout(traced: Trace, *, brief: bool) -> Picture:
    boxes, maker = _boxes(traced, brief)
    lanes = {box: _lanes(box.join, maker) for box in boxes if box.join is not None}
    _colour(lanes, maker)
    items = _nest(boxes, lanes, "")
    _across(items, 0.0)
    edges, over = _edges(items)
    _stack(items, (), over)
    return _page(items, _break(items, over.get((), {})), edges)


# From operations to boxes


def _boxes(traced: Trace, brief: bool) -> tuple[list[Box], dict[str, Box]]:
    """The boxes in order, the image first, and the box of each node by its name."""
    readers: dict[str, int] = {}
    for name in (name for node in traced.nodes for name in node.inputs):
        readers[name] = readers.get(name, 0) + 1
    groups: dict[str, list[Node]] = {}
    for node in traced.nodes:
        group = groups.get(node.inputs[0]) if len(node.inputs) == 1 else None
        if group is not None and node.op in _BANDS and readers[node.inputs[0]] == 1:
            group.append(node)
            groups[node.name] = group
        else:
            groups[node.name] = [node]
    shapes = {"input": traced.input_shape} | {node.name: node.output_shape for node in traced.nodes}
    joins = {join.node: join for join in traced.joins}
    widest = max((_channels(node.output_shape) for node in traced.nodes if node.name not in joins), default=1)
    image = Box("input", (), (), None, "input", "", (), _text(traced.input_shape), LINE)
    maker = {"input": image}
    for nodes in dict.fromkeys(map(tuple, groups.values())):
        inputs = tuple(dict.fromkeys(maker[name] for name in nodes[0].inputs))
        box = _box(nodes, inputs, joins.get(nodes[0].name), shapes, widest, brief)
        maker |= dict.fromkeys((node.name for node in nodes), box)
    boxes = list(dict.fromkeys(maker.values()))
    kinds: dict[Box, set[str]] = {}
    for box in boxes:
        for source in box.inputs:
            kinds.setdefault(source, set()).add(box.kind)
    for source, read_by in kinds.items():
        if read_by == {"bar"}:
            source.shape = ""  # the segment says it
    return boxes, maker


def _box(
    nodes: tuple[Node, ...],
    inputs: tuple[Box, ...],
    join: Join | None,
    shapes: dict[str, Shape],
    widest: int,
    brief: bool,
) -> Box:
    head, *others = nodes
    label, name = _label(head), head.name
    bands = tuple(_BANDS[node.op] for node in others)
    before = shapes[head.inputs[0]] if head.inputs else ()
    after = nodes[-1].output_shape
    product = next((node.detail for node in nodes if "=" in node.detail), "")
    shape = product or (_text(after) if after != before else "")
    kind = "sum" if join is not None and head.op == "add" else "box"
    if join is not None and head.op == "cat" and sum(b.channels for b in join.branches) == _channels(head.output_shape):
        kind = "bar"
    if brief and len(after) > 1 and after[1:] == before[1:] and shape:  # only the channels are new; a bar says them
        shape = "" if kind == "bar" else str(after[0])
    height = max([0.44, *(0.12 + LETTER * len(band) for band in bands)])
    if kind == "bar" and join is not None:
        height = max(height, 0.4 + _SEGMENT * len(join.branches))
    elif kind == "box":
        join = None
        height = max(height, 0.42 + 0.24 * min(1, _channels(head.output_shape) / widest) ** 0.5)
    return Box(kind, nodes, inputs, join, label, name, bands, shape, height)


def _label(node: Node) -> str:
    """`conv 3×3 /2`: what it does, its kernel, and its stride where that is not as usual."""
    word = _WORDS.get(node.op) or node.op.removeprefix("adaptive_").removesuffix("2d").replace("_", " ")
    if "=" in node.detail or not node.detail:
        return _BANDS.get(node.op, word)
    kernel, *others = node.detail.split(", ")
    stride = next((f" /{other.removeprefix('stride ')}" for other in others if other.startswith("stride")), "")
    return f"{word} {kernel}{stride}"


def _channels(shape: Shape) -> int:
    return shape[0] if shape else 1


def _text(shape: Shape) -> str:
    return "×".join(map(str, shape))


# From boxes to blocks


def _lanes(join: Join, maker: dict[str, Box]) -> list[list[Box]]:
    """The boxes of each branch. What several branches share belongs to the longest, so that each box is in one lane."""
    claimed: set[Box] = set()
    lanes: list[list[Box]] = [[] for _ in join.branches]
    for number in sorted(range(len(lanes)), key=lambda n: -len(join.branches[n].nodes)):
        own = dict.fromkeys(maker[name] for name in join.branches[number].nodes)
        lanes[number] = [box for box in own if box not in claimed]
        claimed.update(own)
    return lanes


def _colour(lanes: dict[Box, list[list[Box]]], maker: dict[str, Box]) -> None:
    """Gives each branch a colour: its boxes, or what a concatenation reads where the others are mere shortcuts."""
    for join, branches in lanes.items():
        alone = sum(map(bool, branches)) < 2
        for number, lane in enumerate(branches):
            source = maker[join.nodes[0].inputs[number]]
            for box in lane if not alone else [source] if join.kind == "bar" else []:
                if box.colour is None:
                    box.colour = number


def _nest(boxes: Sequence[Box], lanes: dict[Box, list[list[Box]]], inside: str) -> list[Item]:
    """Puts together each block whose boxes run one after another, with nothing between that belongs elsewhere.

    A single lane is a block only where one module made all of it: a dense net is a chain of joins, and no block.
    """
    items: list[Item] = []
    last = len(boxes) - 1
    while last >= 0:  # from the end, since the join of an outer block comes after those inside it
        join = boxes[last]
        own = [lane for lane in lanes.get(join, []) if lane]
        first = last - sum(map(len, own))
        path = join.nodes[0].path if join.nodes else ""
        made = bool(path) and all(box.name.startswith(f"{path}.") for lane in own for box in lane)
        whole = first >= 0 and set(boxes[first:last]) == {box for lane in own for box in lane}
        if own and whole and (len(own) > 1 or made):
            inner = [_nest(lane, lanes, path if made else inside) for lane in own]
            items.append(Block(path.removeprefix(f"{inside}.") if made and path != inside else "", inner, join))
            if made:
                for box in (box for lane in own for box in lane):
                    box.name = box.name.removeprefix(f"{path}.")
            last = first
        else:
            items.append(join)
        last -= 1
    return items[::-1]


def _walk(items: Sequence[Item], path: Path = ()) -> Iterator[tuple[Path, Box]]:
    """Every box with its place: the item, then lane and item of each block that it is in; -1 is a block's join."""
    for index, item in enumerate(items):
        if isinstance(item, Box):
            yield (*path, index), item
        else:
            for number, lane in enumerate(item.lanes):
                yield from _walk(lane, (*path, index, number))
            yield (*path, index, -1), item.join


def _exit(item: Item) -> Box:
    return item.join if isinstance(item, Block) else item


def _across(items: Sequence[Item], x: float) -> float:
    """Places items from `x` to the right; returns where the next one may begin."""
    for item in items:
        if isinstance(item, Block):
            turn = TURN if len(item.lanes) > 1 else 0.0
            item.x = x
            # The longest first: a shorter lane may begin in the middle of it.
            longest = sorted(item.lanes, key=lambda lane: -sum(1 for _ in _walk(lane)))
            item.join.x = max(_across(lane, x + turn) for lane in longest) + turn / 2
        else:
            item.x = max([x, *(source.out + GAP for source in item.inputs)])
        x = _exit(item).out + GAP
    return x


def _neighbours(items: Sequence[Item]) -> Iterator[tuple[Box, Box]]:
    """Pairs of boxes with nothing between them but an edge, if there is one."""
    for before, after in pairwise(items):
        yield from ((_exit(before), box) for box in _entries(after))
    for item in items:
        if isinstance(item, Block):
            for lane in item.lanes:
                yield from _neighbours(lane)
                yield _exit(lane[-1]), item.join


def _entries(item: Item) -> list[Box]:
    return [box for lane in item.lanes for box in _entries(lane[0])] if isinstance(item, Block) else [item]


def _edges(items: Sequence[Item]) -> tuple[list[Edge], Over]:
    """The edges from neighbour to neighbour, and those that must pass over something."""
    paths = {box: path for path, box in _walk(items)}
    neighbours = set(_neighbours(items))
    edges: list[Edge] = []
    over: Over = {}
    for box, path in paths.items():
        for source in box.inputs:
            start = paths[source]
            common = next(n for n, (a, b) in enumerate(zip(start, path, strict=False)) if a != b)
            among_lanes = common % 2 == 1
            if (source, box) in neighbours or (among_lanes and path[common] != -1):
                edges.append((source, box, _edge_colour(source, box, len(path) > 1)))
                continue
            if among_lanes:  # from the middle of a lane to the join: over the rest of the lane
                owner = start[: common + 1]
            elif (
                path[common + 1 :] == (-1,)
                and path[common] == start[common] + 1
                and not any(step != -1 for step in start[common + 1 :])
            ):  # the shortcut of a block
                owner = path[: common + 1]
            else:
                owner = path[:common]
            over.setdefault(owner, {}).setdefault(source, []).append(box)
    return edges, over


def _edge_colour(source: Box, box: Box, in_lane: bool) -> int | None:
    if box.kind == "bar":
        return box.branch(source)
    return source.colour if box.kind == "sum" else box.colour if in_lane else None


# Heights, and rails over what is placed


def _top(item: Item) -> float:
    return item.top if isinstance(item, Block) else item.y - item.height / 2


def _bottom(item: Item) -> float:
    return item.below if isinstance(item, Block) else item.y + item.below


def _reach(items: Sequence[Item], rails: Sequence[Rail]) -> tuple[float, float]:
    """How far up and down they go."""
    return min([*map(_top, items), *(rail.y for rail in rails)]), max(map(_bottom, items))


def _stack(items: Sequence[Item], path: Path, over: Over) -> None:
    """Places the insides of blocks up and down, each block around the line at y = 0."""
    for index, item in enumerate(items):
        if not isinstance(item, Block):
            continue
        here, join = (*path, index), item.join
        heights = []
        for number, lane in enumerate(item.lanes):
            _stack(lane, (*here, number), over)
            passing = over.get((*here, number), {}).items()
            rails = [_rail(source.right + 0.1, source.y, source, targets) for source, targets in passing]
            _settle(rails, lane)
            heights.append((*_reach(lane, rails), rails))
        total = sum(below - top for top, below, _ in heights) + LANE * (len(heights) - 1)
        item.top = y = -total / 2 if len(heights) > 1 else heights[0][0]
        item.below = y + total
        for lane, (top, below, rails) in zip(item.lanes, heights, strict=True):
            _shift(lane, 0, y - top)
            for rail in rails:
                rail.shift(0, y - top)
            item.rails += rails
            y += below - top + LANE
        if join.kind == "bar":
            join.height = max(join.height, 0.75 * total)
        shortcuts = [_rail(item.x - GAP / 2, 0.0, *passing) for passing in over.get(here, {}).items()]
        _settle(shortcuts, [item, join])
        item.rails += shortcuts
        item.top = min([item.top, _top(join), *(rail.y for rail in shortcuts)]) - (LINE + 0.1) * bool(item.title)
        item.below = max(item.below, _bottom(join))


def _rail(start: float, rises: float | None, source: Box, targets: list[Box]) -> Rail:
    colour = targets[0].branch(source) if targets[0].kind == "bar" else None
    return Rail(start, max(box.middle for box in targets), rises, False, source, targets, colour)


def _settle(rails: Sequence[Rail], items: Sequence[Item]) -> None:
    """Gives each rail its height: over what it passes, the longer over the shorter."""
    placed: list[Rail] = []
    for rail in sorted(reversed(rails), key=lambda rail: rail.end - rail.start):
        under = [_top(item) for item in items if item.x < rail.end and rail.start < _exit(item).right]
        rail.y = min([*under, *(r.y for r in placed if r.start < rail.end and rail.start < r.end)], default=0.0) - RAIL
        placed.append(rail)


def _shift(items: Sequence[Item], x: float, y: float) -> None:
    for item in items:
        item.x += x
        if isinstance(item, Box):
            item.y += y
            continue
        item.top += y
        item.below += y
        for rail in item.rails:
            rail.shift(x, y)
        for lane in item.lanes:
            _shift(lane, x, y)
        _shift([item.join], x, y)


# Rows


@dataclass(frozen=True)
class _Row:
    """Some items of the net in a line, with the rails that pass over them."""

    items: list[Item]
    rails: list[Rail]
    left: float
    right: float
    top: float
    below: float


def _row(items: list[Item], first: int, end: int, passing: dict[Box, list[Box]], places: dict[Box, int]) -> _Row:
    """The row of items from `first` up to `end`. `places` has the index of the item that each box is in."""
    here = items[first:end]
    left, right = here[0].x - LEAD, _exit(here[-1]).out + GAP
    rails = []
    for source, targets in passing.items():
        begin = places[source]
        # What the last item of a row gives goes to the next row on the line, and rises there.
        if source is _exit(items[begin]) and begin in (first - 1, end - 1):
            begin += 1
        mine = [box for box in targets if first <= places[box] < end]
        goes_on = any(places[box] >= end for box in targets)
        if begin >= end or not (mine or goes_on):
            continue
        if places[source] >= first:
            rail = _rail(source.right + 0.1, source.y, source, targets)
        else:
            rail = _rail(left + 0.1, 0.0 if begin == first else None, source, targets)
        rail.targets, rail.goes_on = mine, goes_on
        rail.end = right if goes_on else max(box.middle for box in mine)
        rails.append(rail)
    _settle(rails, here)
    return _Row(here, rails, left, right, *_reach(here, rails))


def _break(items: list[Item], passing: dict[Box, list[Box]]) -> list[_Row]:
    """Breaks the net into the fewest rows that a slide holds; a larger one into those that are reduced least."""
    places = {box: path[0] for path, box in _walk(items)}
    cut: set[int] = set()  # before these items, a rail would have to go on in the next row
    for source, targets in passing.items():
        begin = places[source] + (2 if source is _exit(items[places[source]]) else 1)
        cut.update(range(begin, max(places[box] for box in targets) + 1))
    widest = max(_exit(item).out + GAP - item.x + LEAD for item in items)
    width = _exit(items[-1]).out + GAP + LEAD
    found: dict[tuple[int, ...], tuple[float, int, float, list[_Row]]] = {}
    while width >= 0.95 * widest:
        breaks = _fill(items, width, cut)
        if breaks not in found:
            rows = [_row(items, first, end, passing, places) for first, end in pairwise(breaks)]
            needs = max(row.right - row.left for row in rows) + 2 * MARGIN
            high = sum(row.below - row.top for row in rows) + ROW * (len(rows) - 1) + TITLE + 2 * MARGIN
            found[breaks] = (max(POINTS / LEAST, _reduction(needs, high)), len(rows), needs, rows)
        width *= 0.97
    return min(found.values(), key=lambda one: one[:3])[3]


def _fill(items: Sequence[Item], width: float, cut: set[int]) -> tuple[int, ...]:
    """Where rows of `width` begin, and the end: full, but for a break that cuts no rail in their second half."""
    breaks = [0]
    for index, item in enumerate(items):
        start = items[breaks[-1]].x - LEAD
        if index > breaks[-1] and _exit(item).out + GAP - start > width:
            whole = [i for i in range(breaks[-1] + 1, index + 1) if i not in cut and items[i].x - start > width / 2]
            breaks.append(whole[-1] if whole else index)
    return (*breaks, len(items))


def _page(items: list[Item], rows: list[_Row], edges: list[Edge]) -> Picture:
    """Puts one row under another."""
    y = MARGIN + TITLE
    lines, rails = [], []
    for number, row in enumerate(rows):
        line = y - row.top
        _shift(row.items, MARGIN - row.left, line)
        for rail in row.rails:
            rail.shift(MARGIN - row.left, line)
        rails += row.rails
        for _, box in _walk(row.items):
            box.row = number
        lines.append((line, line + row.below))
        y = line + row.below + ROW
    boxes = [box for _, box in _walk(items)]
    blocks = list(_blocks(items))
    rails += [rail for block in blocks for rail in block.rails]
    width = max(row.right - row.left for row in rows) + 2 * MARGIN
    return Picture(width, y - ROW + MARGIN, lines, boxes, blocks, edges, rails)


def _blocks(items: Sequence[Item]) -> Iterator[Block]:
    for item in items:
        if isinstance(item, Block):
            yield item
            for lane in item.lanes:
                yield from _blocks(lane)
