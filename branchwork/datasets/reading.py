"""Reading many pictures at once, each once, in the order in which they are named.

By threads: Pillow decodes and scales without holding Python's lock, so that photographs keep every core busy, nothing
needs to be started or sent, and a script needs no `if __name__ == "__main__"`.
"""

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from branchwork.datasets.images import Header, decode, quiet_decoders, read_header, to_array
from branchwork.errors import ImageError
from branchwork.observer import Observer

# Rows of a picture of which the digest is taken at once.
_STRIP = 256

T = TypeVar("T")
Array = NDArray[np.uint8]


@dataclass(frozen=True)
class Target:
    """The images that pictures become: 1 or 3 channels, `size` (height, width), and the way, one of `images.WAYS`."""

    channels: int
    size: tuple[int, int]
    pictures: str

    @property
    def shape(self) -> tuple[int, int, int]:
        return (self.channels, *self.size)

    @property
    def bytes(self) -> int:
        return self.channels * self.size[0] * self.size[1]


@dataclass(frozen=True)
class Record:
    """What decoding one file gave; `error` says why it gave nothing.

    `digest` is that of the decoded pixels before scaling, so that copies are found in whatever format. `sums` and
    `squares` are the sums over each channel of the image's pixels, and of their squares.
    """

    width: int
    height: int
    oddities: tuple[str, ...]
    digest: str
    sums: tuple[int, ...]
    squares: tuple[int, ...]
    error: str | None


def read_files(paths: Sequence[Path], target: Target, title: str, observer: Observer) -> Iterator[tuple[Record, Array]]:
    """Each picture decoded and brought to `target`: its record and its image uint8 C×H×W, black where it has none.

    `observer` sees how many are done, of a count called `title`. Nothing that a file holds raises.
    """
    return _in_parallel(lambda path: _read(path, target), paths, title, observer)


def read_headers(paths: Sequence[Path], title: str, observer: Observer) -> list[Header]:
    """What the files say of themselves, without those that cannot be read."""
    return [header for header in _in_parallel(_header, paths, title, observer) if header is not None]


def _read(path: Path, target: Target) -> tuple[Record, Array]:
    try:
        picture = decode(path)
        image = to_array(picture.image, target.channels, target.size, target.pictures)
    except ImageError as reason:
        return Record(0, 0, (), "", (), (), str(reason)), np.zeros(target.shape, np.uint8)
    content = hashlib.blake2b(f"{picture.image.mode} {picture.image.size} ".encode(), digest_size=16)
    width, height = picture.image.size
    for top in range(0, height, _STRIP):  # all of it at once would be a second copy
        content.update(picture.image.crop((0, top, width, min(top + _STRIP, height))).tobytes())
    flat = image.reshape(target.channels, -1).astype(np.int64)
    sums, squares = flat.sum(1), (flat * flat).sum(1)
    return (
        Record(
            width, height, picture.oddities, content.hexdigest(), tuple(sums.tolist()), tuple(squares.tolist()), None
        ),
        image,
    )


def _header(path: Path) -> Header | None:
    try:
        return read_header(path)
    except ImageError:
        return None


def _in_parallel(work: Callable[[Path], T], paths: Sequence[Path], title: str, observer: Observer) -> Iterator[T]:
    workers = os.cpu_count() or 1
    upcoming, waiting = iter(paths), deque[Future[T]]()
    with quiet_decoders(), ThreadPoolExecutor(workers) as pool:
        observer.count(title, 0, len(paths))
        try:
            for done in range(1, len(paths) + 1):
                # Only a few lie ready, so that memory stays bounded however slow whoever takes them is.
                waiting += [pool.submit(work, path) for path in islice(upcoming, 4 * workers - len(waiting))]
                yield waiting.popleft().result()
                observer.count(title, done, len(paths))
        finally:
            pool.shutdown(cancel_futures=True)
            observer.count_end()
