"""A net's boxes as a tree of series and parallel parts, and the edges that fit into none of them."""

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

from branchwork.drawing.boxes import Box

Link = tuple[str, str]  # the ids of the box that an edge leaves and of the box that it enters
Span = tuple[int, int]  # the same two boxes by their positions in the order in which they run


@dataclass(frozen=True)
class Series:
    """Items one after another. `arcs` are the edges that pass over some of them; their ends may lie outside."""

    items: tuple["Box | Parallel", ...] = ()
    arcs: tuple[Link, ...] = ()

    def __add__(self, other: "Series") -> "Series":
        return Series(self.items + other.items, self.arcs + other.arcs)


@dataclass(frozen=True)
class Parallel:
    """Branches that part at one box and meet at another, with the box where they meet.

    `link` is the edge between these two. `branches` are in the order in which they are joined, each with its number
    there; one without items is a shortcut. `join` is None if that box belongs to a larger part that ends with this one.
    `path` is the module that made the branches and the join, or empty. `colours` are those of the branches of the box
    where they meet, by number, where it joins some.
    """

    link: Link
    branches: tuple[tuple[int, Series], ...]
    join: Box | None
    path: str
    colours: tuple[str, ...]


def series_of(boxes: Sequence[Box]) -> Series:
    """Return the series of all `boxes`."""
    number = {box.id: index for index, box in enumerate(boxes)}
    links = [(number[source], number[target]) for source, target in links_of(boxes)]
    # What nothing reads is linked to the end, and what reads nothing to the input, so that every path has both ends.
    read = {source for source, _ in links}
    links += [(index, len(boxes)) for index in range(len(boxes)) if index not in read]
    links += [(0, index) for index in range(1, len(boxes)) if not boxes[index].inputs]
    return _series(boxes, range(len(boxes)), links, ends=(-1, len(boxes)))


def _series(boxes: Sequence[Box], members: Sequence[int], links: Sequence[Span], *, ends: Span) -> Series:
    """Return the series of `members` between the boxes `ends`. Each of `links` begins or ends at a member.

    The members over which no link passes are in series. If there are none, the part is neither series nor parallel:
    a member over which the fewest links pass is taken nevertheless, and these links become arcs.
    """
    passing = _passing(members, links)
    cuts = [member for member, count in zip(members, passing, strict=True) if count == min(passing)]
    arcs: list[Span] = []
    if min(passing) > 0:
        cuts = cuts[:1]
        arcs = [link for link in links if link[0] < cuts[0] < link[1]]
    links = [link for link in links if link not in arcs]
    series = Series((), _ids(boxes, arcs))
    for fork, end in pairwise([ends[0], *cuts, ends[1]]):
        join = boxes[end] if end in cuts else None
        between = members[bisect_right(members, fork) : bisect_left(members, end)]
        if not between:
            series += Series((join,) if join else ())
            continue
        inner = [link for link in links if not set(link).isdisjoint(between)]
        shortcut = [(fork, end)] if (fork, end) in links else []
        lanes = _components(between, inner)
        path = _maker(join, [boxes[member] for member in between])
        # One branch beside a shortcut is a part of its own, in which no row ends, only where one module made both.
        if len(lanes) > 1 or (shortcut and path and min(_passing(between, inner)) == 0):
            branches = _branches(boxes, lanes + [[] for _ in shortcut], inner, ends=(fork, end))
            target, colours = (boxes[end].id, boxes[end].colours) if end < len(boxes) else ("", ())
            series += Series((Parallel((boxes[fork].id, target), branches, join, path, colours),))
        else:
            series += _series(boxes, between, inner, ends=(fork, end))
            series += Series((join,) if join else (), _ids(boxes, shortcut))
    return series


def _branches(
    boxes: Sequence[Box], lanes: Sequence[Sequence[int]], links: Sequence[Span], *, ends: Span
) -> tuple[tuple[int, Series], ...]:
    """The branches that have the boxes `lanes`, in the order of the box in which they end, with their numbers there."""
    fork, end = ends
    inputs = boxes[end].inputs if end < len(boxes) else ()
    branches: list[tuple[list[int], Series]] = []
    for lane in lanes:
        numbers = [inputs.index(boxes[member].id) for member in lane or [fork] if boxes[member].id in inputs]
        inner = [link for link in links if not set(link).isdisjoint(lane)]
        branches.append((numbers or [len(branches)], _series(boxes, lane, inner, ends=ends) if lane else Series()))
    branches.sort(key=lambda branch: min(branch[0]))
    return tuple((max(numbers), series) for numbers, series in branches)


def _maker(join: Box | None, boxes: Sequence[Box]) -> str:
    """The module that made `boxes` and their join, or empty."""
    if join is None or not join.path or not all(box.name.startswith(f"{join.path}.") for box in boxes):
        return ""
    return join.path


def _ids(boxes: Sequence[Box], links: Iterable[Span]) -> tuple[Link, ...]:
    """Those of `links` between boxes that read one another, by their ids."""
    pairs = [(boxes[source].id, boxes[target]) for source, target in links if target < len(boxes)]
    return tuple((source, target.id) for source, target in pairs if source in target.inputs)


def _passing(members: Sequence[int], links: Iterable[Span]) -> list[int]:
    """How many of `links` pass over each of `members`."""
    changes = [0] * (len(members) + 1)
    for source, target in links:
        first, end = bisect_right(members, source), bisect_left(members, target)
        if first < end:
            changes[first] += 1
            changes[end] -= 1
    return list(accumulate(changes[:-1]))


def _components(members: Sequence[int], links: Iterable[Span]) -> list[list[int]]:
    """The members of each connected component, in order."""
    component = {member: [member] for member in members}
    for source, target in links:
        if source in component and target in component and component[source] is not component[target]:
            merged = sorted(component[source] + component[target])
            component |= dict.fromkeys(merged, merged)
    return list({id(group): group for group in component.values()}.values())


def links_of(boxes: Iterable[Box]) -> list[Link]:
    """An edge for each input of each box."""
    return [(source, box.id) for box in boxes for source in box.inputs]
