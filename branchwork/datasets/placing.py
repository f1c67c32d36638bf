"""From any picture of one figure on a plain ground to the image that a net was trained on.

MNIST and Fashion-MNIST were made by a rule from scans and photographs. A person's own picture goes through the same
rule here: which side is ink, where the figure stands, how large it is and where its centre lies.

- digits (LeCun et al. 1998, section III-A, and the data set's page): the longer side of the figure is scaled to
  20 pixels, and its centre of mass is put into the middle of 28×28.
- garments (Xiao et al. 2017, section 2): the longer side is scaled to 28 pixels, and the box is put into the middle.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from branchwork.errors import ImageError

Grey = NDArray[np.float64]


@dataclass(frozen=True)
class Rule:
    """How a kind of image was made: the longer side of the figure, as a share of the image, and what is centred."""

    box: float
    by_mass: bool


RULES = {"digits": Rule(box=20 / 28, by_mass=True), "garments": Rule(box=1.0, by_mass=False)}

# Pictures are brought down to this before anything is measured: enough for any figure, and quick for any camera.
_WORKING_SIDE = 512
# The least difference between ink and ground, of 255, that is taken for a figure and not for noise.
_LEAST_CONTRAST = 24
# Strokes of MNIST are about this wide, as a share of the figure's longer side; thinner pens are thickened to it.
_STROKE = 0.12


def place(picture: Image.Image, size: tuple[int, int], rule: Rule) -> NDArray[np.uint8]:
    """The figure in `picture`, light on black, placed by `rule` in an image of `size` (height, width): uint8 H×W.

    An image that already follows the rule, or whose negative does, keeps every pixel. Raises `ImageError` where
    there is no figure.
    """
    picture = picture.convert("L")
    grey = np.asarray(picture)
    if grey.shape == size:
        for image in (grey, 255 - grey):
            if _follows(image, rule):
                return image
    if max(grey.shape) > _WORKING_SIDE:
        picture.thumbnail((_WORKING_SIDE, _WORKING_SIDE), Image.Resampling.BOX)
        grey = np.asarray(picture)
    ink = _ink(grey.astype(np.float64))
    if rule.by_mass:
        ink = _thicken(ink)
    return _place(ink, size, rule)


def _follows(grey: NDArray[np.uint8], rule: Rule) -> bool:
    """Whether an image of the right size is already light on black and placed by the rule."""
    corners = grey[[0, 0, -1, -1], [0, -1, 0, -1]]
    rows, columns = np.nonzero(grey)
    if not len(rows) or np.median(corners) > 0:
        return False
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    side = max(grey.shape)
    if not rule.by_mass:
        return bool(max(height, width) == side)
    mass = grey / grey.sum()
    centre = (mass.sum(1) @ np.arange(grey.shape[0]), mass.sum(0) @ np.arange(grey.shape[1]))
    off = max(abs(c - n / 2) for c, n in zip(centre, grey.shape, strict=True))
    return bool(max(height, width) == round(rule.box * side) and off <= 1.0)


def _ink(grey: Grey) -> Grey:
    """How much each pixel differs from the ground, 0 to 255, whichever of the two is the darker."""
    difference = grey - _ground(grey)
    # The figure is what stands out furthest from the ground; what lies on the other side of it is noise.
    low, high = np.percentile(difference, (0.5, 99.5))
    extremes = (float(difference.min()), float(difference.max()))
    lighter = extremes[1] > -extremes[0] if abs(high + low) < _LEAST_CONTRAST else high > -low
    ink = np.clip(difference if lighter else -difference, 0, None)
    strongest = float(ink.max())
    if strongest < _LEAST_CONTRAST:
        raise ImageError("there is nothing to recognise: it is all of one colour. Write larger or with more contrast.")
    threshold = _otsu(ink)
    level = float(np.median(ink[ink > threshold]))
    # Half of the threshold is ground for certain; what lies between is the soft edge of a stroke.
    floor = threshold / 2
    return np.clip((ink - floor) / max(level - floor, 1.0), 0, 1) * 255


def _ground(grey: Grey) -> Grey:
    """The plane that fits the rim of the picture: paper in uneven light."""
    height, width = grey.shape
    y, x = np.mgrid[0:height, 0:width]
    rim = max(1, min(height, width) // 20)
    at_rim = (y < rim) | (y >= height - rim) | (x < rim) | (x >= width - rim)
    level = np.median(grey[at_rim])
    # Strokes that run over the rim must not tilt the plane.
    ground = at_rim & (np.abs(grey - level) < 48)
    if ground.sum() < 3 * rim:
        return np.full_like(grey, level)
    terms = np.stack([np.ones(grey.shape), y / height, x / width], axis=-1)
    plane, *_ = np.linalg.lstsq(terms[ground], grey[ground], rcond=None)
    # Where the rim is of one colour the plane is exact, and rounding must not leave a film on black.
    return np.full_like(grey, level) if np.ptp(terms[at_rim] @ plane) < 1 else terms @ plane


def _otsu(ink: Grey) -> float:
    """The threshold that best parts the values in two (Otsu 1979): least variance within the parts."""
    counts, edges = np.histogram(ink, bins=256, range=(0, float(ink.max())))
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(middles[np.nanargmax(between)])


def _box(ink: Grey) -> tuple[slice, slice]:
    """Where the figure is; specks of noise, which no row or column has many of, do not widen it."""
    strong = ink > 96
    least = max(1, round(0.004 * max(ink.shape))) if max(ink.shape) > 64 else 1
    rows = np.flatnonzero(strong.sum(1) >= least)
    columns = np.flatnonzero(strong.sum(0) >= least)
    if not len(rows) or not len(columns):
        raise ImageError("there is nothing to recognise: it holds specks, but no figure. Write larger.")
    # One pixel more all around keeps the soft edge.
    return (
        slice(max(0, rows[0] - 1), min(ink.shape[0], rows[-1] + 2)),
        slice(max(0, columns[0] - 1), min(ink.shape[1], columns[-1] + 2)),
    )


def _thicken(ink: Grey) -> Grey:
    """Strokes widened to what MNIST has, where a pen is so thin that scaling would wash it out."""
    rows, columns = _box(ink)
    figure = ink[rows, columns] > 96
    inner = figure.copy()
    for axis in (0, 1):
        for shift in (-1, 1):
            inner &= np.roll(figure, shift, axis)
    edge = figure.sum() - inner.sum()
    width = 2 * figure.sum() / max(1, edge)  # a stroke of length l and width w has area l·w and edge 2·l
    missing = _STROKE * max(figure.shape) - width
    if missing < 2:
        return ink
    grow = min(15, round(missing / 2))
    image = Image.fromarray(np.pad(ink, grow).round().astype(np.uint8))
    for _ in range(grow):  # many small filters are one large one, at a tenth of its work
        image = image.filter(ImageFilter.MaxFilter(3))
    return np.asarray(image).astype(np.float64)


def _place(ink: Grey, size: tuple[int, int], rule: Rule) -> NDArray[np.uint8]:
    figure = ink[_box(ink)]
    scale = rule.box * min(size) / max(figure.shape)
    height, width = (max(1, round(n * scale)) for n in figure.shape)
    small = Image.fromarray(figure.astype(np.float32)).resize((width, height), Image.Resampling.LANCZOS)
    figure = np.clip(np.asarray(small), 0, 255).astype(np.float64)
    # Scaling down dims thin strokes; the trained images reach white.
    figure *= 255 / max(1.0, float(figure.max()))
    if rule.by_mass:
        mass = figure / figure.sum()
        centre = (mass.sum(1) @ np.arange(height), mass.sum(0) @ np.arange(width))
        top, left = (round(n / 2 - c) for n, c in zip(size, centre, strict=True))
    else:
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
    top, left = min(max(0, top), size[0] - height), min(max(0, left), size[1] - width)
    image = np.zeros(size, np.uint8)
    image[top : top + height, left : left + width] = figure.round().astype(np.uint8)
    return image
