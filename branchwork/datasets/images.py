"""Reading people's pictures, which may be anything: what is read is one sound picture, or one clear error."""

import os
import struct
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from branchwork.datasets.fitting import FITS, fit
from branchwork.datasets.placing import RULES, place
from branchwork.errors import ImageError

# Formats whose decoders are widely used; Pillow knows many more that nobody keeps pictures in.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
LEADS_NOWHERE = "is a link that leads nowhere: mend or delete it"
# Twice the pixels of a large camera. A file of some kilobytes can claim far more.
_MOST_PIXELS = 100_000_000
# The ways in which a picture becomes an image of a data set: by a rule for one figure, or as it is.
WAYS = (*RULES, *FITS)
_ORIENTATION = 0x0112  # the tag of EXIF that says how the camera was held


@dataclass(frozen=True)
class Picture:
    """A picture as 8-bit grey ("L") or RGB, and what was odd about its file, in words such as `CMYK`."""

    image: Image.Image
    oddities: tuple[str, ...]


@dataclass(frozen=True)
class Header:
    """What a file says of itself: the picture's width and height when upright, and whether it is grey."""

    width: int
    height: int
    grey: bool


def read_picture(path: Path) -> Image.Image:
    """The first frame of the picture at `path`, upright, as 8-bit grey or RGB without transparency.

    Raises `ImageError` for what is no picture, truncated, or too large when unpacked.
    """
    with quiet_decoders():
        return decode(path).image


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Pillow only warns of some damage and of some sizes; both are judged here.

    Threads share the filter of warnings, so whoever decodes in several enters this once, around all of them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def decode(path: Path) -> Picture:
    """`read_picture` for those who have entered `quiet_decoders`, with what is odd about the file."""
    with _opened(path) as picture:
        picture.load()
        oddities = tuple(_oddities(picture))
        ImageOps.exif_transpose(picture, in_place=True)
        return Picture(_eight_bits(picture), oddities)


def read_header(path: Path) -> Header:
    """What the file says before it is decoded, for those who have entered `quiet_decoders`. Raises `ImageError`."""
    with _opened(path) as picture:
        width, height = picture.size
        if picture.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8):  # these lie on their side
            width, height = height, width
        return Header(width, height, _is_grey(picture))


@contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """The picture at `path`, not yet decoded; what goes wrong until it is closed becomes an `ImageError`."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ImageError(f"{path} is no file that can be read as a picture")
    if os.path.islink(path) and not os.path.exists(path):
        raise ImageError(f"{path} {LEADS_NOWHERE}")
    try:
        with Image.open(path, formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > _MOST_PIXELS:
                raise Image.DecompressionBombError
            yield picture
    except UnidentifiedImageError as reason:
        raise ImageError(f"{path} is no picture that can be read: give one of {', '.join(FORMATS)}") from reason
    except FileNotFoundError as reason:
        raise ImageError(f"there is no file {path}") from reason
    except Image.DecompressionBombError as reason:
        raise ImageError(f"{path} unpacks to more than {_MOST_PIXELS:,} pixels: shrink it") from reason
    except (PermissionError, IsADirectoryError) as reason:
        raise ImageError(f"{path} cannot be read: {reason.strerror}") from reason
    # What Pillow's decoders raise on damage.
    except (
        OSError,
        SyntaxError,
        ValueError,
        TypeError,
        ArithmeticError,
        LookupError,
        EOFError,
        struct.error,
    ) as reason:
        raise ImageError(f"{path} is damaged or truncated ({reason}): copy it again from where it came") from reason


def find_pictures(arguments: Iterable[Path]) -> list[Path]:
    """The files named, and the pictures right inside the folders named. Raises `ImageError` for an empty folder."""
    found = []
    for argument in arguments:
        if not os.path.isdir(argument):
            found.append(argument)
            continue
        try:
            names = sorted(os.listdir(argument))
        except OSError as reason:
            raise ImageError(f"the folder {argument} cannot be read: {reason.strerror}") from reason
        inside = [argument / name for name in names if Path(name).suffix.lower() in SUFFIXES and name[0] != "."]
        if not inside:
            raise ImageError(
                f"the folder {argument} holds no pictures: give one with {', '.join(sorted(SUFFIXES))} files"
            )
        found += inside
    return found


def to_image(picture: Image.Image, channels: int, size: tuple[int, int], pictures: str) -> Tensor:
    """A picture as an image of the kind that a net was trained on: uint8 C×H×W, of `size` (height, width).

    `pictures` is one of `WAYS`: the rule by which the data set was made, or how its files were brought to one size.
    Raises `ImageError`.
    """
    return torch.from_numpy(to_array(picture, channels, size, pictures))


def to_array(picture: Image.Image, channels: int, size: tuple[int, int], pictures: str) -> NDArray[np.uint8]:
    """`to_image` as an array of its own memory."""
    if pictures in RULES:
        pixels = place(picture, size, RULES[pictures])[np.newaxis]
    else:
        fitted = np.asarray(fit(_in_mode(picture, "L" if channels == 1 else "RGB"), size, pictures))
        pixels = fitted[np.newaxis] if fitted.ndim == 2 else fitted.transpose(2, 0, 1)
    return np.array(np.broadcast_to(pixels, (channels, *size)))


def _is_grey(picture: Image.Image) -> bool:
    """Whether `_eight_bits` gives grey."""
    return picture.mode.startswith(("I", "F")) or (picture.mode in ("1", "L") and not _is_clear(picture))


def _is_clear(picture: Image.Image) -> bool:
    return picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info


def _oddities(picture: Image.Image) -> Iterator[str]:
    if picture.mode.startswith("I") or picture.mode == "F":
        yield "16-bit"
    if picture.mode in ("P", "PA"):
        yield "palette"
    if _is_clear(picture):
        yield "transparency"
    if picture.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        yield picture.mode
    if picture.getexif().get(_ORIENTATION, 1) != 1:
        yield "EXIF rotation"
    if getattr(picture, "is_animated", False):
        yield "several frames"


def _eight_bits(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        # 16-bit grey comes as "I;16" or "I": scaled by its own range, since writers do not agree on white.
        numbers = np.asarray(picture).astype(np.float32)
        low, high = np.nanmin(numbers), np.nanmax(numbers)
        numbers -= low
        numbers *= 255 / max(float(high - low), 1e-12)
        return Image.fromarray(np.nan_to_num(numbers).round().astype(np.uint8))
    if _is_clear(picture):
        return _on_ground(picture.convert("RGBA"))
    return _in_mode(picture, "L" if picture.mode in ("1", "L") else "RGB")


def _in_mode(picture: Image.Image, mode: str) -> Image.Image:
    # Pillow copies a picture that is in this mode already, of which a large one takes half a gigabyte.
    return picture if picture.mode == mode else picture.convert(mode)


def _on_ground(picture: Image.Image) -> Image.Image:
    """A picture with transparency laid on white, or on black where what is opaque is itself light."""
    # A small copy is enough to tell, and a large picture would take gigabytes as floating-point numbers.
    small = picture.reduce(max(1, max(picture.size) // 256))
    alpha = np.asarray(small)[..., 3].astype(np.float64)
    grey = np.asarray(small.convert("L")).astype(np.float64)
    light = alpha.sum() > 0 and (grey * alpha).sum() / alpha.sum() > 127
    ground = Image.new("RGBA", picture.size, "black" if light else "white")
    return Image.alpha_composite(ground, picture).convert("RGB")
