"""What the ink of a picture shows: one figure, several, or a frame around it.

scipy is imported where it is needed, since importing it takes a second.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from branchwork.datasets.placing import Ink

Mask = NDArray[np.bool_]
Box = tuple[slice, slice]

# Ink from here on, of 255, belongs to a stroke.
_STROKE = 96
# Pieces nearer to each other than this, of the tallest one's height, are one figure whose pen was lifted.
_LIFTED = 0.06
# A figure is at least this tall, of the tallest one: a bar, a dot or a blot is part of another one, or nothing.
_TALL = 0.5
# What a frame surrounds is at least this long, of the frame's longer side: the dot in some zeros is shorter.
_INSIDE = 0.25
# A sheet of paper on a darker table fills this share of its box.
_FILLED = 0.8
# More pieces than this are not looked at: the picture is of noise.
_MOST = 50


@dataclass(frozen=True)
class Blobs:
    """How many figures stand beside each other in a picture, and whether something surrounds them."""

    figures: int
    framed: bool


def find_blobs(ink: Ink) -> Blobs:
    """Count the figures in the ink of a picture."""
    from scipy import ndimage

    strokes = ink.pixels > _STROKE
    pieces, count = ndimage.label(strokes, np.ones((3, 3)))
    boxes: list[Box] = ndimage.find_objects(pieces)
    order = sorted(range(count), key=lambda index: -max(_sides(boxes[index])))[:_MOST]
    frames = [index for index in order if _surrounds(pieces == index + 1, index, boxes, others=order)]
    for index in frames:
        strokes &= pieces != index + 1
    if not strokes.any():
        return Blobs(1, framed=True)
    tallest = max(_sides(boxes[index])[0] for index in range(count) if index not in frames)
    gap = round(_LIFTED * tallest / 2)
    near = ndimage.binary_dilation(strokes, np.ones((3, 3)), gap) if gap else strokes
    figures = ndimage.find_objects(ndimage.label(near, np.ones((3, 3)))[0])
    tall = [box for box in figures if _sides(box)[0] - 2 * gap >= _TALL * tallest]
    return Blobs(max(1, len(tall)), framed=bool(frames))


def _sides(box: Box) -> tuple[int, int]:
    return box[0].stop - box[0].start, box[1].stop - box[1].start


def _surrounds(piece: Mask, index: int, boxes: list[Box], *, others: list[int]) -> bool:
    """Return whether a piece has another one inside it, or is a sheet with a figure in another colour on it."""
    outer = boxes[index]
    least = _INSIDE * max(_sides(outer))
    inside = [boxes[other] for other in others if other != index and max(_sides(boxes[other])) >= least]
    if any(_is_within(box, outer) and _has_on_all_sides(piece, box) for box in inside):
        return True
    height, width = _sides(outer)
    return piece.sum() >= _FILLED * height * width and _has_large_hole(piece[outer], least)


def _is_within(inner: Box, outer: Box) -> bool:
    return all(o.start < i.start and i.stop < o.stop for i, o in zip(inner, outer, strict=True))


def _has_on_all_sides(piece: Mask, box: Box) -> bool:
    """Return whether one looks from the middle of `box` upwards, downwards, left and right at the piece."""
    row, column = ((side.start + side.stop) // 2 for side in box)
    return bool(
        piece[:row, column].any()
        and piece[row:, column].any()
        and piece[row, :column].any()
        and piece[row, column:].any()
    )


def _has_large_hole(sheet: Mask, least: float) -> bool:
    from scipy import ndimage

    holes = ndimage.find_objects(ndimage.label(ndimage.binary_fill_holes(sheet) & ~sheet)[0])
    return any(max(_sides(hole)) >= least for hole in holes)
