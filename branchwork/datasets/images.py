"""Reading people's pictures, which may be anything: what is read is one sound picture, or one clear error."""

import os
import warnings
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from branchwork.datasets.placing import RULES, place
from branchwork.errors import ImageError

# Formats whose decoders are widely used; Pillow knows many more that nobody keeps pictures in.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
# Twice the pixels of a large camera. A file of some kilobytes can claim far more.
_MOST_PIXELS = 100_000_000


def read_picture(path: Path) -> Image.Image:
    """The first frame of the picture at `path`, upright, as 8-bit grey or RGB without transparency.

    Raises `ImageError` for what is no picture, truncated, or too large when unpacked.
    """
    if os.path.exists(path) and not os.path.isfile(path):
        raise ImageError(f"{path} is no file that can be read as a picture")
    try:
        # Pillow only warns of some damage and of some sizes; both are judged here.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(path, formats=FORMATS) as picture:
                width, height = picture.size
                if width * height > _MOST_PIXELS:
                    raise Image.DecompressionBombError
                picture.load()
                return _eight_bits(ImageOps.exif_transpose(picture))
    except UnidentifiedImageError as reason:
        raise ImageError(f"{path} is no picture that can be read: give one of {', '.join(FORMATS)}") from reason
    except FileNotFoundError as reason:
        raise ImageError(f"there is no file {path}") from reason
    except Image.DecompressionBombError as reason:
        raise ImageError(f"{path} unpacks to more than {_MOST_PIXELS:,} pixels: shrink it") from reason
    except (PermissionError, IsADirectoryError) as reason:
        raise ImageError(f"{path} cannot be read: {reason.strerror}") from reason
    except (OSError, SyntaxError, ValueError, EOFError) as reason:  # what Pillow's decoders raise on damage
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
        inside = [argument / name for name in names if Path(name).suffix.lower() in _SUFFIXES and name[0] != "."]
        if not inside:
            raise ImageError(
                f"the folder {argument} holds no pictures: give one with {', '.join(sorted(_SUFFIXES))} files"
            )
        found += inside
    return found


def to_image(picture: Image.Image, channels: int, size: tuple[int, int], pictures: str) -> Tensor:
    """A picture as an image of the kind that a net was trained on: uint8 C×H×W.

    `pictures` names the rule in `placing.RULES` by which the data set was made. Raises `ImageError`.
    """
    image = torch.from_numpy(place(picture, size, RULES[pictures]).copy())
    return image.expand(channels, *size)


def _eight_bits(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        # 16-bit grey comes as "I;16" or "I": scaled by its own range, since writers do not agree on white.
        numbers = np.asarray(picture).astype(np.float32)
        low, high = np.nanmin(numbers), np.nanmax(numbers)
        numbers -= low
        numbers *= 255 / max(float(high - low), 1e-12)
        return Image.fromarray(np.nan_to_num(numbers).round().astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        return _on_ground(picture.convert("RGBA"))
    return picture.convert("L" if picture.mode in ("1", "L") else "RGB")


def _on_ground(picture: Image.Image) -> Image.Image:
    """A picture with transparency laid on white, or on black where what is opaque is itself light."""
    # A small copy is enough to tell, and a large picture would take gigabytes as floating-point numbers.
    small = picture.reduce(max(1, max(picture.size) // 256))
    alpha = np.asarray(small)[..., 3].astype(np.float64)
    grey = np.asarray(small.convert("L")).astype(np.float64)
    light = alpha.sum() > 0 and (grey * alpha).sum() / alpha.sum() > 127
    ground = Image.new("RGBA", picture.size, "black" if light else "white")
    return Image.alpha_composite(ground, picture).convert("RGB")
