"""How any picture becomes an image that a net was trained on.

Photographs are cropped, padded or stretched to the size of the images. MNIST and Fashion-MNIST were made by a rule
from scans and photographs of one figure on a plain ground, and a user's picture goes through the same rule:

- digits (LeCun et al. 1998, section III-A, and the data set's page): the longer side of the figure is scaled to
  20 pixels, and its centre of mass is moved to the middle of 28×28.
- garments (Xiao et al. 2017, section 2): the longer side is scaled to 28 pixels, and the box is centred.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from branchwork.errors import ImageError

Grey = NDArray[np.float64]


@dataclass(frozen=True)
class FigureRule:
    """The longer side of the figure, as a fraction of the image, and whether its mass or its box is centred."""

    longer_side: float
    by_mass: bool


RULES = {"digits": FigureRule(20 / 28, by_mass=True), "garments": FigureRule(1.0, by_mass=False)}
FITS = ("crop", "pad", "stretch")
# As torchvision tests what it publishes: the shorter side is made so many pixels long, and the middle is cut out.
CENTRES = {"centre-256": 256, "centre-232": 232}
METHODS = (*RULES, *FITS, *CENTRES)

# Pictures are reduced to this side before anything is measured: enough for any figure, and quick for any camera.
_WORKING_SIDE = 512
# The least difference between ink and ground, of 255, that is a figure and not noise.
_LEAST_CONTRAST = 24
# How much more contrast than luminance colours must have to be looked at instead.
_MORE_CONTRAST = 1.25
# The stroke width of MNIST, as a fraction of the figure's longer side. Thinner pens are thickened to it.
_STROKE = 0.12


def to_image(picture: Image.Image, *, channels: int, size: tuple[int, int], method: str) -> Tensor:
    """Return a picture as an image like those that a net was trained on: uint8 C×H×W, of `size` (height, width).

    `method` is one of `METHODS`. Raises `ImageError` if a figure is needed and none is found.
    """
    return torch.from_numpy(to_array(picture, channels=channels, size=size, method=method))


def to_array(picture: Image.Image, *, channels: int, size: tuple[int, int], method: str) -> NDArray[np.uint8]:
    """Return the same as `to_image`, as an array that owns its memory."""
    if method in RULES:
        pixels = place_figure(picture, size, RULES[method])[np.newaxis]
    else:
        fitted = np.asarray(_fit(to_mode(picture, "L" if channels == 1 else "RGB"), size, method))
        pixels = fitted[np.newaxis] if fitted.ndim == 2 else fitted.transpose(2, 0, 1)
    return np.array(np.broadcast_to(pixels, (channels, *size)))


def to_mode(picture: Image.Image, mode: str) -> Image.Image:
    # Pillow would copy a picture that has this mode already: half a gigabyte for a large one.
    return picture if picture.mode == mode else picture.convert(mode)


def _fit(picture: Image.Image, size: tuple[int, int], method: str) -> Image.Image:
    """Resize a picture to `size` (height, width) in its own mode; one that has this size keeps every pixel.

    `crop` keeps the proportions and cuts off the excess evenly on both sides; `pad` keeps all of the picture and
    fills the rest with black; `stretch` changes the proportions. `CENTRES` crop more.
    """
    height, width = size
    if method in CENTRES:
        return _centre(picture, size, CENTRES[method])
    if method == "crop":
        return ImageOps.fit(picture, (width, height), Image.Resampling.BICUBIC)
    if method == "pad":
        return ImageOps.pad(picture, (width, height), Image.Resampling.BICUBIC)
    assert method == "stretch", method
    return picture.resize((width, height), Image.Resampling.BICUBIC)


def _centre(picture: Image.Image, size: tuple[int, int], shorter: int) -> Image.Image:
    """Return the middle of `size` of the picture with a shorter side of `shorter` pixels, which is never made whole."""
    scaled = [shorter * side // min(picture.size) for side in picture.size]
    starts = [round((side - wanted) / 2) for side, wanted in zip(scaled, reversed(size), strict=True)]
    steps = [before / after for before, after in zip(picture.size, scaled, strict=True)]
    left, top = (start * step for start, step in zip(starts, steps, strict=True))
    box = (left, top, left + size[1] * steps[0], top + size[0] * steps[1])
    return picture.resize((size[1], size[0]), Image.Resampling.BILINEAR, box)


def place_figure(picture: Image.Image, size: tuple[int, int], rule: FigureRule) -> NDArray[np.uint8]:
    """Return the figure in `picture`, light on black, placed by `rule` in an image of `size`: uint8 H×W.

    Ink and ground may be of any two colours, equally light ones included. An image that already follows the rule, or
    whose negative does, keeps every pixel. Raises `ImageError` if there is no figure.
    """
    return place_ink(find_ink(picture, size, rule), size, rule)


@dataclass(frozen=True)
class Ink:
    """How much ink each pixel of a picture holds, H×W, 0 to 255; `placed` if it is an image placed by a rule."""

    pixels: Grey
    placed: bool


def find_ink(picture: Image.Image, size: tuple[int, int], rule: FigureRule) -> Ink:
    """Return what `place_figure` takes for ink, before it moves and scales it. Raises `ImageError` if it is nothing."""
    grey = _to_grey(picture)
    for image in (grey, 255 - grey) if grey.shape == size else ():
        if _follows(image, rule):
            return Ink(image.astype(np.float64), placed=True)
    return Ink(_extract_ink(grey.astype(np.float64)), placed=False)


def place_ink(ink: Ink, size: tuple[int, int], rule: FigureRule) -> NDArray[np.uint8]:
    """Return the ink placed by `rule` in an image of `size`: uint8 H×W. Raises `ImageError` if it is only specks."""
    if ink.placed:
        return ink.pixels.astype(np.uint8)
    return _scale_and_centre(_thicken(ink.pixels) if rule.by_mass else ink.pixels, size, rule)


def _to_grey(picture: Image.Image) -> NDArray[np.uint8]:
    """Return a picture as grey, uint8 H×W, of at most `_WORKING_SIDE` pixels a side.

    Its luminance; or, where colours differ much more than that, as red and blue do, their place between the colours
    that differ most.
    """
    luminance = picture.convert("L")
    luminance.thumbnail((_WORKING_SIDE, _WORKING_SIDE), Image.Resampling.BOX)
    grey = np.asarray(luminance)
    if picture.mode == "L":
        return grey
    small = to_mode(picture, "RGB").reduce(math.ceil(max(picture.size) / _WORKING_SIDE))
    colours = np.asarray(small).astype(np.float64)
    from_mean = (colours - colours.mean((0, 1))).reshape(-1, 3)
    _, directions = np.linalg.eigh(from_mean.T @ from_mean)
    direction = directions[:, -1] * np.sign(directions[np.abs(directions[:, -1]).argmax(), -1])
    direction /= np.abs(direction).sum()  # the values lie within 255, like the colours
    between = colours @ direction - 255 * np.minimum(direction, 0).sum()
    return between.round().astype(np.uint8) if np.ptp(between) > _MORE_CONTRAST * np.ptp(grey) else grey


def _follows(grey: NDArray[np.uint8], rule: FigureRule) -> bool:
    """Return whether an image of the right size is light on black and placed by the rule already."""
    corners = grey[[0, 0, -1, -1], [0, -1, 0, -1]]
    rows, columns = np.nonzero(grey)
    if not len(rows) or np.median(corners) > 0:
        return False
    height, width = np.ptp(rows) + 1, np.ptp(columns) + 1
    side = max(grey.shape)
    if not rule.by_mass:
        return bool(max(height, width) == side)
    offset = max(abs(c - n / 2) for c, n in zip(_centre_of_mass(grey), grey.shape, strict=True))
    return bool(max(height, width) == round(rule.longer_side * side) and offset <= 1.0)


def _centre_of_mass(grey: NDArray[np.uint8] | Grey) -> tuple[float, float]:
    mass = grey / grey.sum()
    return mass.sum(1) @ np.arange(grey.shape[0]), mass.sum(0) @ np.arange(grey.shape[1])


def _extract_ink(grey: Grey) -> Grey:
    """Return how much each pixel differs from the ground, 0 to 255, whichever of the two is darker."""
    difference = grey - _fit_ground(grey)
    # The figure is what differs most from the ground; anything on the other side of it is noise.
    low, high = np.percentile(difference, (0.5, 99.5))
    lowest, highest = float(difference.min()), float(difference.max())
    lighter = highest > -lowest if abs(high + low) < _LEAST_CONTRAST else high > -low
    ink = np.clip(difference if lighter else -difference, 0, None)
    strongest = float(ink.max())
    if strongest < _LEAST_CONTRAST:
        raise ImageError("there is nothing to recognise: it is a single colour. Write larger or with more contrast.")
    threshold = _otsu_threshold(ink)
    level = float(np.median(ink[ink > threshold]))
    # Up to half of the threshold is ground; between that and the level is the soft edge of a stroke.
    floor = threshold / 2
    return np.clip((ink - floor) / max(level - floor, 1.0), 0, 1) * 255


def _fit_ground(grey: Grey) -> Grey:
    """Fit a plane to the rim of the picture: paper in uneven light."""
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
    # If the rim has one colour the plane is exact, and rounding must not leave a film on black.
    return np.full_like(grey, level) if np.ptp(terms[at_rim] @ plane) < 1 else terms @ plane


def _otsu_threshold(ink: Grey) -> float:
    """Return the threshold with the least variance on either side of it (Otsu 1979)."""
    counts, edges = np.histogram(ink, bins=256, range=(0, float(ink.max())))
    middles = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * middles)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(middles[np.nanargmax(between)])


def _bounding_box(ink: Grey) -> tuple[slice, slice]:
    """Return the rows and columns of the figure. Specks of noise, which few pixels of a row share, do not widen it."""
    strong = ink > 96
    least = max(1, round(0.004 * max(ink.shape))) if max(ink.shape) > 64 else 1
    rows = np.flatnonzero(strong.sum(1) >= least)
    columns = np.flatnonzero(strong.sum(0) >= least)
    if not len(rows) or not len(columns):
        raise ImageError("there is nothing to recognise: it contains only specks. Write larger.")
    # One more pixel all around keeps the soft edge.
    return (
        slice(max(0, rows[0] - 1), min(ink.shape[0], rows[-1] + 2)),
        slice(max(0, columns[0] - 1), min(ink.shape[1], columns[-1] + 2)),
    )


def _thicken(ink: Grey) -> Grey:
    """Widen the strokes of a pen so thin that scaling would wash it out, to what MNIST has."""
    rows, columns = _bounding_box(ink)
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
    for _ in range(grow):  # many small filters equal one large one, at a tenth of the work
        image = image.filter(ImageFilter.MaxFilter(3))
    return np.asarray(image).astype(np.float64)


def _scale_and_centre(ink: Grey, size: tuple[int, int], rule: FigureRule) -> NDArray[np.uint8]:
    figure = ink[_bounding_box(ink)]
    scale = rule.longer_side * min(size) / max(figure.shape)
    height, width = (max(1, round(n * scale)) for n in figure.shape)
    small = Image.fromarray(figure.astype(np.float32)).resize((width, height), Image.Resampling.LANCZOS)
    figure = np.clip(np.asarray(small), 0, 255).astype(np.float64)
    # Scaling down dims thin strokes, and the training images reach white.
    figure *= 255 / max(1.0, float(figure.max()))
    if rule.by_mass:
        top, left = (round(n / 2 - c) for n, c in zip(size, _centre_of_mass(figure), strict=True))
    else:
        top, left = (size[0] - height) // 2, (size[1] - width) // 2
    top, left = min(max(0, top), size[0] - height), min(max(0, left), size[1] - width)
    image = np.zeros(size, np.uint8)
    image[top : top + height, left : left + width] = figure.round().astype(np.uint8)
    return image
