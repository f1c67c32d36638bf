"""Files that appear whole or not at all."""

import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from filelock import FileLock, Timeout

from branchwork.errors import BranchworkError, RunError

T = TypeVar("T")

# It can only be read by setting it.
_UMASK = os.umask(0o022)
os.umask(_UMASK)


def write_whole(path: Path, content: bytes | str, *, error: type[BranchworkError] = RunError) -> None:
    """Write `content` to `path` through a neighbour that is synced and then renamed over it.

    A reader sees the old file or the new one, never a part. A link is followed, and what is no file, such as
    /dev/stdout, is written to as it is. Raises `error` where the disk is full or the folder cannot be written; the old
    file is then untouched and the neighbour removed.
    """
    data = content.encode() if isinstance(content, str) else content
    target = Path(os.path.realpath(path))
    if os.path.exists(target) and not os.path.isfile(target) and not os.path.isdir(target):
        try:
            target.write_bytes(data)
        except OSError as reason:
            raise error(f"cannot write {path} ({len(data):,} bytes): {_plain(reason)}") from reason
        return
    handle, neighbour = _neighbour(target, error, path)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(neighbour, 0o666 & ~_UMASK)  # temporary files are for their owner alone
        os.replace(neighbour, target)
        _sync_folder(target.parent)
    except OSError as reason:
        raise error(f"cannot write {path} ({len(data):,} bytes): {_plain(reason)}") from reason
    finally:
        Path(neighbour).unlink(missing_ok=True)


@contextmanager
def folder_beside(path: Path, *, error: type[BranchworkError] = RunError) -> Iterator[Path]:
    """An empty folder beside `path`, for files that must be tried before they are moved there; it goes at the end.

    Raises `error` where no folder can be made.
    """
    target = Path(os.path.realpath(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".part")
    except OSError as reason:
        raise error(f"cannot write {path}: {_plain(reason)}") from reason
    try:
        yield Path(folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_together(moves: Sequence[tuple[Path, Path]], *, error: type[BranchworkError] = RunError) -> None:
    """Move files that belong together, each from the first path to the second, which is replaced.

    The last is the one that a reader opens. It goes first and comes last, so that it never stands beside files of
    another version. Raises `error` where a file cannot be moved.
    """
    goals = [(part, Path(os.path.realpath(goal))) for part, goal in moves]
    try:
        for part, _ in goals:
            with part.open("rb") as file:
                os.fsync(file.fileno())
        if len(goals) > 1:
            goals[-1][1].unlink(missing_ok=True)
        for part, goal in goals:
            os.replace(part, goal)
        _sync_folder(goals[-1][1].parent)
    except OSError as reason:
        raise error(f"cannot write {moves[-1][1]}: {_plain(reason)}") from reason


def need_place(path: Path, *, error: type[BranchworkError] = RunError) -> None:
    """Raises `error` where `write_whole` could not write `path`, whose folder is made where it is missing."""
    target = Path(os.path.realpath(path))
    if os.path.isdir(target):
        raise error(f"cannot write {path}: it is a folder. Name a file in it.")
    if os.path.isfile(target) or not os.path.exists(target):
        handle, neighbour = _neighbour(target, error, path)
        os.close(handle)
        os.unlink(neighbour)


def remove_parts(path: Path) -> None:
    """Remove what a process that was killed while it wrote `path` has left beside it."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        part.unlink(missing_ok=True)


def available_memory() -> int | None:
    """Bytes that this process can take without swapping; None where the system does not say (only Linux does).

    A container's limit counts, which the system's own figure leaves out.
    """
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
    except OSError:
        return None
    whole = [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    return min((*whole, *_left_in_groups()), default=None)


def _left_in_groups(root: Path = Path("/")) -> Iterator[int]:
    """What each of the control groups, of version 1 or 2, that limit this process's memory has left."""
    try:
        groups = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for _, controllers, path in (group.split(":", 2) for group in groups):
        if controllers and "memory" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("memory" if controllers else "")
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else ("memory.max", "memory.current")
        # A group is also held to what those above it may take. In a container, its own is at the top.
        for depth in range(1, len(Path(path).parts) + 1):
            folder = top.joinpath(*Path(path).parts[1:depth])
            try:
                most, taken = (int((folder / name).read_text()) for name in names)
                lines = (folder / "memory.stat").read_text().splitlines()
            except (OSError, ValueError):  # there is none, or its limit is the word max
                continue
            # Files that were read lie in memory as long as nobody else wants it.
            kept = [
                int(line.split()[1]) for line in lines if line.split()[0] in ("inactive_file", "total_inactive_file")
            ]
            yield max(0, most - taken + max(kept, default=0))


def write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextmanager
def alone(lock: Path, work: str, *, error: type[BranchworkError] = RunError) -> Iterator[None]:
    """Hold the file `lock`, which is there no longer afterwards.

    Raises `error` where another process holds it, which does the `work`, in words as "trains in runs/first".
    """
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise error(f"another process {work}: wait for it, or choose another --out") from None
    except OSError as reason:
        raise error(f"cannot write into {lock.parent}: {reason.strerror or reason}") from reason
    try:
        yield
    finally:
        lock.unlink(missing_ok=True)
        held.release()


def read_fields(kind: type[T], fields: object) -> T:
    """A dataclass from JSON. Raises `TypeError` where a field is missing, surplus or of another type."""
    if not isinstance(fields, dict):
        raise TypeError(f"it holds a {type(fields).__name__}, and named fields are needed")
    values = {}
    for name, hint in get_type_hints(kind).items():
        values[name] = _with_tuples(fields.get(name), hint)
        if name in fields and not _fits(values[name], hint):
            raise TypeError(f"{name} is {fields[name]!r:.60}")
    return kind(**values | {name: fields[name] for name in fields.keys() - values.keys()})


def _with_tuples(value: object, hint: Any) -> object:
    """`value` with tuples where `hint` has them, which JSON has as lists."""
    origin, inner = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        ways = ((_with_tuples(value, kind), kind) for kind in inner)
        return next((way for way, kind in ways if _fits(way, kind)), value)
    if origin is not tuple or not isinstance(value, list):
        return value
    kinds = inner[:1] * len(value) if inner[-1] is ... else inner
    return tuple(map(_with_tuples, value, kinds)) if len(kinds) == len(value) else tuple(value)


def _fits(value: object, hint: Any) -> bool:
    origin, inner = get_origin(hint), get_args(hint)
    if origin is tuple:
        if not isinstance(value, tuple):
            return False
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        return len(value) == len(kinds) and all(map(_fits, value, kinds))
    if origin is list:
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if origin in (Union, UnionType):
        return any(_fits(value, kind) for kind in inner)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return hint is Any or isinstance(value, origin or hint)


def _neighbour(path: Path, error: type[BranchworkError], shown: Path) -> tuple[int, str]:
    """An open temporary file beside `path`, which messages call `shown`, and its name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as reason:
        raise error(f"cannot write {shown}: {_plain(reason)}") from reason


def _sync_folder(folder: Path) -> None:
    # The rename itself is only durable once the folder that holds the name is synced; Windows opens no folders.
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _plain(reason: OSError) -> str:
    if isinstance(reason, FileExistsError | NotADirectoryError):
        place = Path(reason.filename)
        file = next(p for p in (place, *place.parents) if os.path.lexists(p))
        return f"{file} is a file, and a folder is needed. Choose another place."
    text = reason.strerror or str(reason)
    if isinstance(reason, PermissionError):
        return f"{text}. Choose a folder that you may write to."
    return f"{text}. Free some space, or choose another place."
