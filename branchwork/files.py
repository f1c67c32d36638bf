"""Files that appear whole or not at all."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

from branchwork.errors import BranchworkError, RunError

# It can only be read by setting it.
_UMASK = os.umask(0o022)
os.umask(_UMASK)


def write_whole(path: Path, content: bytes | str, *, error: type[BranchworkError] = RunError) -> None:
    """Write `content` to `path` through a neighbour that is synced and then renamed over it.

    A reader sees the old file or the new one, never a part. Raises `error` where the disk is full or the
    folder cannot be written; the old file is then untouched and the neighbour removed.
    """
    data = content.encode() if isinstance(content, str) else content
    handle, neighbour = _neighbour(path, error)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(neighbour, 0o666 & ~_UMASK)  # temporary files are for their owner alone
        os.replace(neighbour, path)
        _sync_folder(path.parent)
    except OSError as reason:
        raise error(f"cannot write {path} ({len(data):,} bytes): {_plain(reason)}") from reason
    finally:
        Path(neighbour).unlink(missing_ok=True)


def need_writable(folder: Path) -> None:
    """Make `folder` where it is missing. Raises `RunError` where no file can be written into it."""
    handle, neighbour = _neighbour(folder / "a file", RunError)
    os.close(handle)
    os.unlink(neighbour)


def remove_parts(path: Path) -> None:
    """Remove what a process that was killed while it wrote `path` has left beside it."""
    for part in path.parent.glob(f".{path.name}.*.part"):
        part.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    write_whole(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _neighbour(path: Path, error: type[BranchworkError]) -> tuple[int, str]:
    """An open temporary file beside `path`, and its name."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    except OSError as reason:
        raise error(f"cannot write {path}: {_plain(reason)}") from reason


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
        file = next(p for p in (place, *place.parents) if os.path.exists(p))
        return f"{file} is a file, and a folder is needed. Choose another place."
    text = reason.strerror or str(reason)
    if isinstance(reason, PermissionError):
        return f"{text}. Choose a folder that you may write to."
    return f"{text}. Free some space, or choose another place."
