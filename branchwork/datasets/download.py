"""The one way to download a file: bounded, checked, and continued where it broke off."""

import hashlib
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock, Timeout

from branchwork.errors import DataError, system_words
from branchwork.language import say
from branchwork.observer import Observer

if TYPE_CHECKING:
    import requests

# Seconds in which a source has to answer at all, and in which more of a file has to come.
_PATIENCE = 5.0
_SILENCE = 10.0
# Bytes of a download that are written at once.
_CHUNK = 2**16


class BrokenOff(DataError):
    """A download that may be continued."""


def check_answer(mirror: str) -> None:
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


def download_checked(
    url: str, part: Path, problem_of: Callable[[Path], str | None], *, largest: int, observer: Observer
) -> None:
    """Download `url` into `part`, which may hold its beginning, and go on where it breaks off while more of it comes.

    `problem_of` says what is wrong with the whole file. Raises `DataError` with that, and then removes `part`;
    `BrokenOff`, and what has come stays in `part`; or what `download` raises.
    """
    while True:
        held = _size(part)
        try:
            download(url, part, largest=largest, observer=observer)
        except BrokenOff:
            come = _size(part)
            if come > held or (held and not come):  # none of it if the server has no more than was held
                continue
            raise
        problem = problem_of(part)
        if problem is None:
            return
        part.unlink()
        if not held:  # else what was held may have been the beginning of another version
            raise DataError(problem)


def download(url: str, path: Path, *, largest: int, observer: Observer) -> None:
    """Download `url` into the file `path`, after what it holds already; a server that cannot do so sends all of it.

    What has come stays there if the download breaks off. Proxies are those that the environment names, as HTTPS_PROXY
    does. Raises `DataError`, also for more than `largest` bytes.
    """
    import requests

    name = url.rpartition("/")[2]
    with path.open("ab") as file:
        held = file.tell()
        # A server that compresses what it sends would count other bytes.
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={held}-"} if held else {})
        try:
            with requests.get(url, headers=headers, timeout=_SILENCE, stream=True) as answer:
                if answer.status_code == requests.codes.requested_range_not_satisfiable:
                    file.truncate(0)  # where there is no rest, what is held cannot be the beginning
                answer.raise_for_status()
                length = answer.headers.get("Content-Length", "")
                size = int(length) if length.isdigit() else None
                if answer.status_code == requests.codes.ok:  # the whole instead of the rest, which would be 206
                    if size is not None and size < held:  # such as a page to log in
                        raise BrokenOff(
                            "{name} has {found:,} bytes there, fewer than were downloaded already: it is another file",
                            name=name,
                            found=size,
                        )
                    file.truncate(0)
                    held = 0
                total = 0 if size is None else held + size
                check_size(total, name, largest)
                for chunk in answer.iter_content(_CHUNK):
                    held += len(chunk)
                    check_size(held, name, largest)
                    file.write(chunk)
                    observer.download(name, held, total)
        except requests.RequestException as reason:
            raise BrokenOff(_describe_request(reason)) from reason
        finally:
            observer.download_end()


@contextmanager
def lock_cache(cache: Path, name: str, *, megabytes: int, observer: Observer) -> Iterator[None]:
    """Hold the folder `cache`, which is made, while `name` is fetched into it; wait while another process does.

    Raises `DataError`, with the `megabytes` that are needed, if nothing can be written there.
    """
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
            strerror=system_words(reason),
            megabytes=megabytes,
        ) from reason
    try:
        yield
    finally:
        lock.release()


def check_size(size: int, name: str, largest: int) -> None:
    """Raise `DataError` if a file or a download is larger than what it is called can be."""
    if size > largest:
        raise DataError(
            "{name} is larger than {largest:,} bytes, the most it can have: it is damaged, or a different file",
            name=name,
            largest=largest,
        )


def checksum_problem(path: Path, name: str, kind: str, digits: str) -> str | None:
    """Return what is wrong with the file at `path`, called `name`; None if its checksum begins with `digits`.

    `kind` is what hashlib calls the checksum: md5 or sha256.
    """
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, partial(hashlib.new, kind, usedforsecurity=False)).hexdigest()
    except FileNotFoundError:
        return say("{name} is not there", name=name)
    except OSError as reason:
        return system_words(reason)
    if found.startswith(digits):
        return None
    return wrong_checksum(name, kind, expected=digits, found=found[: len(digits)], size=path.stat().st_size)


def wrong_checksum(name: str, kind: str, *, expected: str, found: str, size: int) -> str:
    return say(
        "{name} is damaged or another file: expected {kind} {expected}, found {found} ({size:,} bytes)",
        name=name,
        kind=kind,
        expected=expected,
        found=found,
        size=size,
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _describe_request(reason: "requests.RequestException") -> str:
    import requests

    if reason.response is not None:
        return say("the server answered {code}", code=reason.response.status_code)
    silent = isinstance(reason, requests.ConnectionError | requests.Timeout)
    return say("no answer ({error})" if silent else "the download broke off ({error})", error=type(reason).__name__)
