"""Reading picture files, which may contain anything: each becomes a valid picture or one clear error.

Many files are read by threads: Pillow decodes and scales without holding Python's lock, so that photographs keep every
core busy, no process needs to be started, and a script needs no `if __name__ == "__main__"`.
"""

import hashlib
import math
import os
import struct
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from branchwork.datasets.placing import to_array, to_mode
from branchwork.errors import ImageError, system_words
from branchwork.files import available_memory
from branchwork.language import mark, say
from branchwork.observer import Observer

# Formats whose decoders are widely used. Pillow knows many more that nobody keeps pictures in.
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
SUFFIXES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm"}
BROKEN_LINK = mark("is a link that leads nowhere: repair or delete it")
# Twice the pixels of a large camera. A file of a few kilobytes can claim far more.
_MOST_PIXELS = 100_000_000
# The most that a pixel was seen to take while its file is decoded, in bytes: in WebP; other formats take half of it.
_BYTES_PER_PIXEL = 18
_ORIENTATION = 0x0112  # the EXIF tag for how the camera was held
# Rows of a picture that are converted and hashed at once: all of them would be a second copy.
_STRIP = 256
# What Pillow's decoders raise on damage.
_DAMAGE = (OSError, SyntaxError, ValueError, TypeError, ArithmeticError, LookupError, EOFError, struct.error)

T = TypeVar("T")
Array = NDArray[np.uint8]


@dataclass(frozen=True)
class DecodedPicture:
    """A picture as 8-bit grey ("L") or RGB, and any oddity of its file, such as `CMYK`."""

    image: Image.Image
    oddities: tuple[str, ...]


@dataclass(frozen=True)
class PictureHeader:
    """What a file says before it is decoded: width and height when upright, and whether the picture is grey."""

    width: int
    height: int
    grey: bool


@dataclass(frozen=True)
class ImageFormat:
    """The images that pictures become: 1 or 3 channels, `size` (height, width), and one of `placing.METHODS`."""

    channels: int
    size: tuple[int, int]
    method: str

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, *self.size)

    @property
    def bytes(self) -> int:
        return self.channels * self.size[0] * self.size[1]


@dataclass(frozen=True)
class FileRecord:
    """The result of decoding one file, or the `error` that prevented it.

    `digest` is a hash of the decoded pixels before scaling, so that copies are recognised in any format. `sums` and
    `squares` are, for each channel, the sum of the image's pixels and of their squares.
    """

    width: int = 0
    height: int = 0
    oddities: tuple[str, ...] = ()
    digest: str = ""
    sums: tuple[int, ...] = ()
    squares: tuple[int, ...] = ()
    error: str | None = None


def read_picture(path: Path) -> Image.Image:
    """Return the first frame of the picture at `path`, upright, as 8-bit grey or RGB without transparency.

    Raises `ImageError` if it is not a picture, is truncated, or is too large when unpacked.
    """
    with quiet_decoders(), _Memory().share() as take:
        return _decode(path, take).image


@contextmanager
def quiet_decoders() -> Iterator[None]:
    """Silence Pillow's warnings about damage and large sizes, which are checked here.

    Threads share the filter of warnings: enter this once, around all of them.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


class _Memory:
    """Half of the memory that is free, shared by threads that decode. The other half is for what they make."""

    def __init__(self) -> None:
        free = available_memory()
        self.whole = self.left = math.inf if free is None else free / 2
        self.given_back = threading.Condition()

    @contextmanager
    def share(self) -> Iterator[Callable[[int], None]]:
        """Lend a function that takes bytes, once others have given back enough; they are given back at the end.

        It raises `MemoryError` for more than there is.
        """
        taken = 0

        def take(size: int) -> None:
            nonlocal taken
            if size > self.whole:
                raise MemoryError
            with self.given_back:
                self.given_back.wait_for(lambda: size <= self.left)
                self.left -= size
            taken = size

        try:
            yield take
        finally:
            with self.given_back:
                self.left += taken
                self.given_back.notify_all()


def _decode(path: Path, take: Callable[[int], None]) -> DecodedPicture:
    """Do what `read_picture` does, within `quiet_decoders` and a share of memory, and note any oddity of the file."""
    with _open_picture(path) as picture:
        take(picture.width * picture.height * _BYTES_PER_PIXEL)
        picture.load()
        oddities = tuple(_oddities(picture))
        ImageOps.exif_transpose(picture, in_place=True)
        return DecodedPicture(_to_eight_bits(picture), oddities)


def find_pictures(pictures: str | Path | Iterable[str | Path]) -> list[Path]:
    """Return the files named, and the pictures directly in the folders named.

    Raises `ImageError` for a folder without pictures, and if nothing is named.
    """
    paths = []
    for argument in map(Path, [pictures] if isinstance(pictures, str | Path) else pictures):
        if not os.path.isdir(argument):
            paths.append(argument)
            continue
        try:
            names = sorted(os.listdir(argument))
        except OSError as reason:
            raise ImageError(
                "the folder {folder} cannot be read: {strerror}", folder=argument, strerror=system_words(reason)
            ) from reason
        inside = [argument / name for name in names if Path(name).suffix.lower() in SUFFIXES and name[0] != "."]
        if not inside:
            raise ImageError(
                "the folder {folder} contains no pictures: it needs {suffixes} files",
                folder=argument,
                suffixes=", ".join(sorted(SUFFIXES)),
            )
        paths += inside
    if not paths:
        raise ImageError("no pictures were given: name files, or a folder of them")
    return paths


def read_files(
    paths: Sequence[Path], image_format: ImageFormat, *, title: str, observer: Observer
) -> Iterator[tuple[FileRecord, Array]]:
    """Decode each picture and convert it to `image_format`; yield its record and its image uint8 C×H×W.

    The image is black if the picture cannot be read: nothing that a file holds raises. `observer` is told how many
    are done, of a count called `title`.
    """
    memory = _Memory()
    return _in_parallel(lambda path: _read_file(path, image_format, memory), paths, title=title, observer=observer)


def read_headers(paths: Sequence[Path], title: str, observer: Observer) -> list[PictureHeader]:
    """Return the headers of the files, without those that cannot be read."""
    return [
        header for header in _in_parallel(_read_header, paths, title=title, observer=observer) if header is not None
    ]


def _read_file(path: Path, image_format: ImageFormat, memory: _Memory) -> tuple[FileRecord, Array]:
    try:
        with memory.share() as take:
            picture = _decode(path, take)
            image = to_array(
                picture.image, channels=image_format.channels, size=image_format.size, method=image_format.method
            )
            return _record(picture, image), image
    except ImageError as reason:
        return FileRecord(error=str(reason)), np.zeros(image_format.shape, np.uint8)


def _record(picture: DecodedPicture, image: Array) -> FileRecord:
    width, height = picture.image.size
    digest = hashlib.blake2b(f"{picture.image.mode} {picture.image.size} ".encode(), digest_size=16)
    for _, strip in _strips(picture.image):
        digest.update(strip.tobytes())
    pixels = image.reshape(len(image), -1).astype(np.int64)
    sums, squares = pixels.sum(1), (pixels * pixels).sum(1)
    return FileRecord(
        width, height, picture.oddities, digest.hexdigest(), tuple(sums.tolist()), tuple(squares.tolist())
    )


def _read_header(path: Path) -> PictureHeader | None:
    """Return what the file says before it is decoded, within `quiet_decoders`; None if it cannot be read."""
    try:
        with _open_picture(path) as picture:
            width, height = picture.size
            if picture.getexif().get(_ORIENTATION, 1) in (5, 6, 7, 8):  # lying on its side
                width, height = height, width
            grey = picture.mode.startswith(("I", "F")) or (picture.mode in ("1", "L") and not _is_transparent(picture))
            return PictureHeader(width, height, grey)
    except ImageError:
        return None


def _in_parallel(work: Callable[[Path], T], paths: Sequence[Path], *, title: str, observer: Observer) -> Iterator[T]:
    workers = os.cpu_count() or 1
    upcoming, waiting = iter(paths), deque[Future[T]]()
    with quiet_decoders(), ThreadPoolExecutor(workers) as pool:
        observer.count(title, 0, len(paths))
        try:
            for done in range(1, len(paths) + 1):
                # Only a few are read ahead, so that memory stays bounded however slow the consumer is.
                waiting += [pool.submit(work, path) for path in islice(upcoming, 4 * workers - len(waiting))]
                yield waiting.popleft().result()
                observer.count(title, done, len(paths))
        finally:
            pool.shutdown(cancel_futures=True)
            observer.count_end()


@contextmanager
def _open_picture(path: Path) -> Iterator[Image.Image]:
    """Open the picture at `path` without decoding it; whatever fails until it is closed becomes an `ImageError`."""
    if os.path.exists(path) and not os.path.isfile(path):
        raise ImageError("{path} is not a file that can be read as a picture", path=path)
    if os.path.islink(path) and not os.path.exists(path):
        raise ImageError("{path} {reason}", path=path, reason=say(BROKEN_LINK))
    try:
        with Image.open(path, formats=FORMATS) as picture:
            width, height = picture.size
            if width * height > _MOST_PIXELS:
                raise Image.DecompressionBombError
            yield picture
    except UnidentifiedImageError as reason:
        raise ImageError(
            "{path} is not a picture that can be read: give one of {formats}", path=path, formats=", ".join(FORMATS)
        ) from reason
    except FileNotFoundError as reason:
        raise ImageError("there is no file {path}", path=path) from reason
    except Image.DecompressionBombError as reason:
        raise ImageError(
            "{path} unpacks to more than {most:,} pixels: shrink it", path=path, most=_MOST_PIXELS
        ) from reason
    except MemoryError as reason:
        raise ImageError("{path} takes more memory to decode than is free: shrink it", path=path) from reason
    except (PermissionError, IsADirectoryError) as reason:
        raise ImageError("{path} cannot be read: {strerror}", path=path, strerror=system_words(reason)) from reason
    except _DAMAGE as reason:
        raise ImageError(
            "{path} is damaged or truncated ({reason}): copy it again from its source", path=path, reason=reason
        ) from reason


def _is_transparent(picture: Image.Image) -> bool:
    return picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info


def _oddities(picture: Image.Image) -> Iterator[str]:
    if picture.mode.startswith("I") or picture.mode == "F":
        yield mark("16-bit")
    if picture.mode in ("P", "PA"):
        yield mark("palette")
    if _is_transparent(picture):
        yield mark("transparency")
    if picture.mode in ("CMYK", "YCbCr", "LAB", "HSV"):
        yield picture.mode
    if picture.getexif().get(_ORIENTATION, 1) != 1:
        yield mark("EXIF rotation")
    if getattr(picture, "is_animated", False):
        yield mark("several frames")


def _to_eight_bits(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I") or picture.mode == "F":
        return _stretch(picture)
    if _is_transparent(picture):
        return _flatten(to_mode(picture, "RGBA"))
    return to_mode(picture, "L" if picture.mode in ("1", "L") else "RGB")


def _strips(picture: Image.Image) -> Iterator[tuple[int, Image.Image]]:
    """Yield a picture in strips, each with the number of its first row."""
    for top in range(0, picture.height, _STRIP):
        yield top, picture.crop((0, top, picture.width, min(top + _STRIP, picture.height)))


def _stretch(picture: Image.Image) -> Image.Image:
    """Scale 16-bit grey, which is read as "I;16" or "I", by its own range: writers do not agree on white."""
    strips = (np.asarray(strip).astype(np.float32) for _, strip in _strips(picture))
    lows, highs = zip(*((np.nanmin(numbers), np.nanmax(numbers)) for numbers in strips), strict=True)
    low, high = np.nanmin(lows), np.nanmax(highs)
    grey = Image.new("L", picture.size)
    for top, strip in _strips(picture):
        numbers = np.asarray(strip).astype(np.float32)
        numbers -= low
        numbers *= 255 / max(float(high - low), 1e-12)
        grey.paste(Image.fromarray(np.nan_to_num(numbers).round().astype(np.uint8)), (0, top))
    return grey


def _flatten(picture: Image.Image) -> Image.Image:
    """Lay a picture with transparency on white, or on black if its opaque part is itself light."""
    # A small copy is enough to tell; a large picture would take gigabytes as floating-point numbers.
    small = picture.reduce(max(1, max(picture.size) // 256))
    alpha = np.asarray(small)[..., 3].astype(np.float64)
    grey = np.asarray(small.convert("L")).astype(np.float64)
    light = alpha.sum() > 0 and (grey * alpha).sum() / alpha.sum() > 127
    flat = Image.new("RGB", picture.size)
    for top, strip in _strips(picture):
        ground = Image.new("RGBA", strip.size, "black" if light else "white")
        flat.paste(Image.alpha_composite(ground, strip).convert("RGB"), (0, top))
    return flat
