"""Files that appear whole or not at all, and files that are read back into the types they were written from."""

import dataclasses
import glob
import io
import json
import os
import shlex
import shutil
import subprocess
import tempfile
import time
import tokenize
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from filelock import FileLock, Timeout
from safetensors import SafetensorError

from branchwork.errors import BranchworkError, RunError, system_words
from branchwork.language import mark, say

T = TypeVar("T")

# The umask can only be read by setting it.
_UMASK = os.umask(0o022)
os.umask(_UMASK)

# The number that the files of runs carry, in the field `format`. It rises when an older program cannot read what is
# written. Fields that are added later have defaults, with which files of a lower number are read, or of none.
FORMAT = 1

_COPY_AGAIN = mark("copy the run again, or train again")


def write_whole(path: Path, content: bytes | str, *, error: type[BranchworkError] = RunError) -> None:
    """Write `content` to `path` through a temporary file beside it, which is synced and then renamed.

    A reader sees the old file or the new one, never a part. Symbolic links are followed; devices and pipes such as
    /dev/stdout are written to directly. Raises `error` if the disk is full or the folder is not writable; the old
    file is then untouched and the temporary one removed.
    """
    data = content.encode() if isinstance(content, str) else content
    target = Path(os.path.realpath(path))
    is_device = os.path.exists(target) and not os.path.isfile(target) and not os.path.isdir(target)
    try:
        if is_device:
            target.write_bytes(data)
        else:
            _replace(target, data, *_open_beside(target, error, path))
    except OSError as reason:
        raise error(
            "cannot write {path} ({data:,} bytes): {reason}",
            path=path,
            data=len(data),
            reason=_cause_and_remedy(reason),
        ) from reason


def _replace(target: Path, data: bytes, handle: int, temporary: str) -> None:
    """Write `data` to an open temporary file, and rename it to `target`. It is gone in the end, whatever happens."""
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o666 & ~_UMASK)  # mkstemp lets nobody but the owner read
        os.replace(temporary, target)
        _sync_folder(target.parent)
    finally:
        with suppress(OSError):  # it would hide why the file cannot be written
            Path(temporary).unlink(missing_ok=True)


def with_format(record: Any) -> dict[str, Any]:
    """Return a dataclass as a dict that `read_json` and `parse_json` read back, with the number of the format."""
    return {"format": FORMAT, **dataclasses.asdict(record)}


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def printable(path: str | Path) -> str:
    """Return a path as one line of text that can be shown and written, whatever bytes the file system has for it."""
    return escaped(os.fsencode(path).decode("utf-8", "backslashreplace"))


def typed(path: str | Path) -> str:
    """Return a path as it is typed into a shell, in quotes if it needs them."""
    words = printable(path)
    return subprocess.list2cmdline([words]) if os.name == "nt" else shlex.quote(words)


def encoding_of_python(content: bytes) -> str | None:
    """Return the encoding of a Python file: the one that it declares, else UTF-8, else GBK; None if none fits."""
    encodings = ["utf-8-sig", "gb18030"]
    with suppress(SyntaxError):  # it is not UTF-8, or names an encoding that does not exist
        encodings.insert(0, tokenize.detect_encoding(io.BytesIO(content).readline)[0])
    for encoding in encodings:
        with suppress(UnicodeDecodeError):
            content.decode(encoding)
            return encoding
    return None


def escaped(text: str) -> str:
    """Return `text` with whatever would not be seen, or would move the cursor, written as in Python: `\\n`, `\\x1b`."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


@contextmanager
def folder_beside(path: Path, *, error: type[BranchworkError] = RunError) -> Iterator[Path]:
    """Provide an empty folder beside `path`, for files that are moved there once they are complete.

    The folder is removed at the end. Raises `error` if it cannot be made, or if another process writes `path`.
    """
    check_writable(path, error=error)
    target = Path(os.path.realpath(path))
    folder = target.with_name(f".{target.name}.part")
    with _remains_removed(path, error):
        try:
            folder.mkdir()
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def remove_remains(path: Path) -> None:
    """Remove what killed processes left beside `path` while they wrote it by `folder_beside`, if none does so now."""
    with suppress(RunError), _remains_removed(path, RunError):
        pass


@contextmanager
def _remains_removed(path: Path, error: type[BranchworkError]) -> Iterator[None]:
    """Hold the lock of those who write `path` by `folder_beside`, without what killed ones left."""
    target = Path(os.path.realpath(path))
    with hold_lock(target.with_name(f".{target.name}.lock"), say("is writing {path}", path=path), error=error):
        shutil.rmtree(target.with_name(f".{target.name}.part"), ignore_errors=True)
        for part in _parts_of(target):
            part.unlink(missing_ok=True)
        yield


def _parts_of(path: Path) -> Iterator[Path]:
    """Yield the temporary files of `write_whole` for `path`."""
    return path.parent.glob(f".{glob.escape(path.name)}.????????.part")


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """Provide an empty folder where the system keeps temporary files, and remove it at the end.

    Those that killed processes left there are removed too: a living process holds the lock beside its own.
    """
    place = Path(tempfile.gettempdir())
    for lock in place.glob("branchwork-*.lock"):
        with suppress(OSError, Timeout), FileLock(lock, timeout=0):
            shutil.rmtree(lock.with_suffix(""), ignore_errors=True)
            lock.unlink()
    folder = place / f"branchwork-{uuid.uuid4().hex}"
    with FileLock(f"{folder}.lock", timeout=0):
        folder.mkdir(mode=0o700)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):  # on Windows it is open, and removed when it is released
                Path(f"{folder}.lock").unlink(missing_ok=True)


def make_folder(folder: Path, *, exist_ok: bool = True) -> None:
    """Make `folder` and those above it that are missing, so that they outlast a power cut. Raises `OSError`."""
    missing = [path for path in (folder, *folder.parents) if not os.path.exists(path)]
    folder.mkdir(parents=True, exist_ok=exist_ok)
    for path in missing:
        _sync_folder(path.parent)


def move_together(moves: Sequence[tuple[Path, Path]], *, error: type[BranchworkError] = RunError) -> None:
    """Move files that belong together, each from its first path to its second, replacing what is there.

    The last pair is the file that readers open. Its old version is removed first and its new version moved last, so
    that it never stands beside files of another version. Raises `error` if a file cannot be moved.
    """
    targets = [(source, Path(os.path.realpath(target))) for source, target in moves]
    try:
        for source, _ in targets:
            with source.open("rb") as file:
                os.fsync(file.fileno())
        if len(targets) > 1:
            targets[-1][1].unlink(missing_ok=True)
        for source, target in targets:
            os.replace(source, target)
        _sync_folder(targets[-1][1].parent)
    except OSError as reason:
        raise error("cannot write {path}: {reason}", path=moves[-1][1], reason=_cause_and_remedy(reason)) from reason


def check_writable(path: Path, *, error: type[BranchworkError] = RunError) -> None:
    """Raise `error` if `write_whole` could not write `path`. Its folder is made if it is missing."""
    target = Path(os.path.realpath(path))
    if os.path.isdir(target):
        raise error("cannot write {path}: it is a folder. Name a file in it.", path=path)
    if os.path.isfile(target) or not os.path.exists(target):
        handle, temporary = _open_beside(target, error, path)
        os.close(handle)
        Path(temporary).unlink(missing_ok=True)


def remove_parts(*folders: Path) -> None:
    """Remove the temporary files of `write_whole` that killed processes left in `folders`, whose lock is held."""
    for folder in folders:
        for part in folder.glob(".*.????????.part"):
            part.unlink(missing_ok=True)


@contextmanager
def hold_lock(lock: Path, activity: str, *, error: type[BranchworkError] = RunError) -> Iterator[None]:
    """Hold the lock file `lock`, which is removed at the end.

    Raises `error` if another process holds it. `activity` says what that process does, in the user's language: "is
    training in runs/first".
    """
    file_lock = FileLock(lock)
    try:
        file_lock.acquire(timeout=0)
    except Timeout:
        raise error("another process {activity}: wait for it, or choose another --out", activity=activity) from None
    except OSError as reason:
        raise error(
            "cannot write into {parent}: {strerror}", parent=lock.parent, strerror=system_words(reason)
        ) from reason
    try:
        yield
    finally:
        with suppress(OSError):  # it would hide what went wrong
            lock.unlink(missing_ok=True)
        file_lock.release()


def read_json(path: Path, kind: type[T], *, error: type[BranchworkError] = RunError, remedy: str = _COPY_AGAIN) -> T:
    """Return the JSON file `path` as a `kind`: a dataclass, or a list, tuple or dict of them.

    Raises `error`, which ends in `remedy`, if the file is missing, cannot be read, or holds anything but a `kind`. A
    file of a newer format is told as that.
    """
    with reading(path, error=error, remedy=remedy):
        return parse_json(path.read_bytes(), kind, path, error=error, remedy=remedy)


def parse_json(
    text: bytes | str, kind: type[T], path: Path, *, error: type[BranchworkError] = RunError, remedy: str = _COPY_AGAIN
) -> T:
    """Return JSON that was found inside the file `path` as a `kind`. Raises as `read_json` does."""
    with reading(path, error=error, remedy=remedy):
        fields = msgspec.json.decode(text)
        for record in fields if isinstance(fields, list) else [fields]:
            if isinstance(record, dict) and isinstance(found := record.get("format"), int):
                if found > FORMAT:
                    raise error(
                        "{path} was written by a newer Branchwork (format {found}, and this one reads up to {known}): "
                        "pip install --upgrade branchwork",
                        path=printable(path),
                        found=found,
                        known=FORMAT,
                    )
                del record["format"]
        value = msgspec.convert(fields, kind, str_keys=True)
        _check_fields(fields, value, "$")
        return value


@contextmanager
def reading(path: Path, *, error: type[BranchworkError] = RunError, remedy: str = _COPY_AGAIN) -> Iterator[None]:
    """Turn whatever goes wrong while the file `path` is read into one `error` that names the file and the `remedy`.

    The `remedy` is a message, which is said here. Checks of what was read belong inside: let them raise `ValueError`.
    An `error` that is raised inside stays as it is.
    """
    shown, remedy = printable(path), say(remedy)
    try:
        yield
    except error:
        raise
    except FileNotFoundError as reason:
        raise error("{path} is missing: {remedy}", path=shown, remedy=remedy) from reason
    except PermissionError as reason:
        raise _forbidden(shown, reason, error) from reason
    except OSError as reason:
        raise error(
            "{path} cannot be read ({strerror}): {remedy}",
            path=shown,
            strerror=system_words(reason),
            remedy=remedy,
        ) from reason
    except RecursionError as reason:
        raise error("{path} is damaged (it is nested too deeply): {remedy}", path=shown, remedy=remedy) from reason
    except (
        msgspec.MsgspecError, SafetensorError, BranchworkError, ValueError, TypeError, LookupError, ArithmeticError,
    ) as reason:  # fmt: skip
        raise error("{path} is damaged ({reason}): {remedy}", path=shown, reason=reason, remedy=remedy) from reason


def check_permission(path: str | Path, *, error: type[BranchworkError] = RunError) -> None:
    """Raise `error` if the system lets this user not look at `path`, or into it if it is a folder.

    Without it, such a path would be called missing. One that is missing is left to the caller.
    """
    try:
        os.stat(path)
        if os.path.isdir(path):
            os.stat(os.path.join(path, "."))  # the permission to enter, which is not the one to list
            os.scandir(path).close()
    except PermissionError as reason:
        raise _forbidden(printable(path), reason, error) from reason
    except (OSError, ValueError):
        pass


def _forbidden(shown: str, reason: PermissionError, error: type[BranchworkError]) -> BranchworkError:
    return error(
        "{path} cannot be read ({strerror}): you have no permission. Change its permissions, or ask its owner to.",
        path=shown,
        strerror=system_words(reason),
    )


def _check_fields(fields: Any, value: object, position: str) -> None:
    """Raise `ValueError` for what msgspec lets pass: fields that a dataclass lacks, and integers beyond 64 bits.

    A field with a wrong name is damage: the default in its place would be used in silence.
    """
    if isinstance(fields, int) and not -(2**63) <= fields < 2**64:
        raise ValueError(say("Integer beyond 64 bits - at `{position}`", position=position))
    if isinstance(fields, list) and isinstance(value, list | tuple):
        for index, (item, converted) in enumerate(zip(fields, value, strict=True)):
            _check_fields(item, converted, f"{position}[{index}]")
    elif isinstance(fields, dict) and isinstance(value, dict):
        for (key, item), converted in zip(fields.items(), value.values(), strict=True):
            _check_fields(item, converted, f"{position}.{key}")
    elif isinstance(fields, dict):
        surplus = fields.keys() - {field.name for field in dataclasses.fields(value)}  # type: ignore[arg-type]
        if surplus:
            message = say(
                "Object contains unknown field `{name}` - at `{position}`", name=min(surplus), position=position
            )
            raise ValueError(message)
        for name, item in fields.items():
            _check_fields(item, getattr(value, name), f"{position}.{name}")


def available_memory() -> int | None:
    """Return the bytes that this process can take without swapping; None outside Linux.

    The limit of a container is included, which the system's own figure leaves out.
    """
    whole = read_kilobytes(Path("/proc/meminfo"), "MemAvailable:")
    return None if whole is None else min(whole, *_left_in_groups())


def read_kilobytes(path: Path, name: str) -> int | None:
    """Return in bytes what a file of /proc gives in kilobytes on the line that starts with `name`; None without one."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(name)), None)


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
                most, taken = (int((folder / name).read_text(encoding="ascii")) for name in names)
                lines = (folder / "memory.stat").read_text(encoding="ascii").splitlines()
            except (OSError, ValueError):  # there is none, or its limit is the word max
                continue
            # Files that were read lie in memory as long as nobody else wants it.
            kept = [
                int(line.split()[1]) for line in lines if line.split()[0] in ("inactive_file", "total_inactive_file")
            ]
            yield max(0, most - taken + max(kept, default=0))


def _open_beside(path: Path, error: type[BranchworkError], shown: Path) -> tuple[int, str]:
    """Open a temporary file beside `path`, which messages call `shown`; return its descriptor and its name.

    Those that processes left there when they were killed are removed: no writing takes an hour.
    """
    try:
        make_folder(path.parent)
        for part in _parts_of(path):
            with suppress(OSError):
                if time.time() - part.stat().st_mtime > 3600:
                    part.unlink()
        return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as reason:
        raise error("cannot write {path}: {reason}", path=shown, reason=_cause_and_remedy(reason)) from reason


def _sync_folder(folder: Path) -> None:
    # A rename is durable only once the folder is synced. Windows cannot open folders.
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _cause_and_remedy(reason: OSError) -> str:
    if isinstance(reason, FileExistsError | NotADirectoryError):
        path = Path(reason.filename)
        file = next(p for p in (path, *path.parents) if os.path.lexists(p))
        return say("{file} is a file, and a folder is needed there. Choose another folder.", file=file)
    if isinstance(reason, PermissionError):
        return say("{cause}. Choose a folder that you may write to.", cause=system_words(reason))
    return say("{cause}. Free some space, or choose another folder.", cause=system_words(reason))
