"""Blocks folded into one box each, for a net of more layers than one picture can show."""

from collections.abc import Iterator, Sequence
from dataclasses import replace

from branchwork.drawing.boxes import Box
from branchwork.drawing.series_parallel import Parallel, series_of


def fold_blocks(boxes: Sequence[Box]) -> tuple[list[Box], dict[str, list[Box]]]:
    """Return `boxes` with one box for each block, and the boxes of each block by the id of that one box.

    A block is what lies between the box where branches part and the box where they meet, that box included. Its own
    boxes come after one of kind "input", which stands for what the block reads.
    """
    by_id = {box.id: box for box in boxes}
    inside: dict[str, str] = {}  # the block of a box
    blocks: dict[str, list[Box]] = {}
    folded: dict[str, Box] = {}
    for item in series_of(boxes).items:
        if not isinstance(item, Parallel) or item.join is None:
            continue
        fork, join = by_id[item.link[0]], item.join
        ids = {*_ids_of(item), join.id}
        members = [box for box in boxes if box.id in ids]
        if not _is_closed(boxes, ids, fork=fork.id, join=join.id):
            continue
        size = boxes[0]  # the input: as small as a box may be
        source = replace(size, id=fork.id, nodes=fork.nodes[-1:], label=fork.name or fork.label, shape="")
        blocks[join.id] = [source, *members]
        inside |= dict.fromkeys(ids, join.id)
        folded[join.id] = replace(
            size,
            id=join.id,
            kind="box",
            nodes=tuple(node for box in members for node in box.nodes),
            inputs=(fork.id,),
            label=f"⊞ {item.path or join.path}",
            shape=join.shape,
        )
    return [folded.get(box.id, box) for box in boxes if inside.get(box.id, box.id) == box.id], blocks


def _ids_of(item: Box | Parallel) -> Iterator[str]:
    if isinstance(item, Box):
        yield item.id
    else:
        for _, series in item.branches:
            for inner in series.items:
                yield from _ids_of(inner)
        if item.join is not None:
            yield item.join.id


def _is_closed(boxes: Sequence[Box], ids: set[str], *, fork: str, join: str) -> bool:
    """Return whether the boxes `ids` read nothing else but `fork`, and nothing else reads them but for `join`."""
    return all(
        set(box.inputs) <= {*ids, fork} if box.id in ids else ids.isdisjoint(set(box.inputs) - {join}) for box in boxes
    )
