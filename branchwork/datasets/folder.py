"""Which files a folder of images has, by class and split, before any of them is opened."""

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from branchwork.datasets.images import FORMATS, LEADS_NOWHERE, SUFFIXES
from branchwork.datasets.report import Problem, SplitName
from branchwork.errors import BranchworkError, DataError, nearest
from branchwork.files import printable

# What people call the three parts.
SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip
_LEADS_BACK = "the link leads back into the data: delete it"


@dataclass(frozen=True)
class File:
    """One picture's path, its path within the folder as text, its split and its class."""

    path: Path
    shown: str
    split: SplitName
    label: str


@dataclass(frozen=True)
class Layout:
    """The pictures of a folder, in a fixed order, and what else was found there. Classes are sorted by name."""

    folder: Path
    classes: tuple[str, ...]
    files: tuple[File, ...]
    splits: tuple[SplitName, ...]
    problems: tuple[Problem, ...]


def find_files(folder: Path) -> Layout:
    """The files below `folder`: a sub-folder for each class, or `train`, `val` and `test` with such sub-folders.

    A class is what its folder is called; pictures in folders within it are its own. Hidden and empty folders, other
    files and links that lead back are left out, each as a `Problem`. Raises `DataError` where there are not two
    classes, or where `val` or `test` have one that `train` lacks.
    """
    if not os.path.isdir(folder):
        raise DataError(f"there is no folder {printable(folder)}: name one that has a sub-folder for each class")
    problems: list[Problem] = []
    at_top: list[Problem] = []
    folders = _folders(folder, folder, at_top)
    parts = {SPLIT_NAMES[name.casefold()]: path for name, path in folders.items() if name.casefold() in SPLIT_NAMES}
    if "train" in parts and _has_folders(parts["train"]):
        _need_different(folder, [name for name in folders if name.casefold() in SPLIT_NAMES])
        beside = [path for name, path in folders.items() if name.casefold() not in SPLIT_NAMES]
        problems += at_top
        problems += [
            Problem(
                "beside the splits", _shown(path, folder), "it lies beside train: move it into train, if it is a class"
            )
            for path in beside
        ]
    elif parts and "train" not in parts and any(map(_has_folders, parts.values())):
        raise DataError(
            f"{printable(folder)} has {' and '.join(sorted(path.name for path in parts.values()))}, but no train: "
            "name the folder with training images train"
        )
    else:
        parts = {"train": folder}
    files: list[File] = []
    for split, part in parts.items():
        files += _read_part(part, split, folder, problems)
    trained = {file.label for file in files if file.split == "train"}
    _need_classes(folder, parts["train"], trained)
    for split, part in parts.items():
        for label in sorted({file.label for file in files if file.split == split} - trained):
            raise DataError(
                f"{printable(part)} has a class {label!r} that {printable(parts['train'])} has no pictures of: "
                f"no net can learn it. Add pictures to train, or take it away.{nearest(label, trained)}"
            )
    files.sort(key=lambda file: (file.split, file.label, os.fsencode(file.path)))
    splits = tuple(split for split in parts if any(file.split == split for file in files))
    return Layout(folder, tuple(sorted(trained)), tuple(files), splits, tuple(problems))


def need_unicode(path: str | Path, error: type[BranchworkError]) -> None:
    """Raises `error` where `path` has a name that is no UTF-8, as old archives have: it could not be noted in a run."""
    try:
        str(path).encode()
    except UnicodeEncodeError as reason:
        raise error(f"{printable(path)} has a name that is no UTF-8: rename it") from reason


def title_of(path: Path) -> str:
    """What a folder or file is called, short enough to be a part of other files' names."""
    name = printable(Path(os.path.realpath(path)).name.removesuffix(".pack")) or "images"
    return name.encode()[:80].decode("utf-8", "ignore")


def _read_part(part: Path, split: SplitName, folder: Path, problems: list[Problem]) -> Iterator[File]:
    labels: dict[str, Path] = {}
    for name, path in _folders(part, folder, problems).items():
        # macOS writes é as two characters where others write one; it is the same name.
        label = unicodedata.normalize("NFC", name)
        if label in labels:
            raise DataError(f"{printable(part)} has two folders for the class {label!r}: move all into one")
        labels[label] = path
        count = 0
        for picture in _pictures(path, folder, problems):
            count += 1
            yield File(picture, _shown(picture, folder), split, label)
        if not count:
            problems.append(Problem("empty folder", _shown(path, folder), "it has no pictures: it is no class"))


def _folders(parent: Path, root: Path, problems: list[Problem]) -> dict[str, Path]:
    """The folders in `parent` that are not hidden, by their names as text."""
    found: dict[str, Path] = {}
    loose = 0
    entries = _entries(parent, root, problems)
    above = os.path.join(os.path.realpath(parent), "")
    own = {os.path.realpath(path) for path in entries if not os.path.islink(path)}
    for path in entries:
        real = os.path.realpath(path)
        if os.path.islink(path) and (real in own or above.startswith(os.path.join(real, ""))):
            problems.append(Problem("loop", _shown(path, root), _LEADS_BACK))
        elif os.path.isdir(path):
            found[printable(path.name)] = path
        else:
            loose += path.suffix.lower() in SUFFIXES
            problems.append(_stray(path, root, "outside of a class", "it lies in no class's folder: move it"))
    if loose and not found:
        raise DataError(
            f"{printable(parent)} has {loose:,} pictures and no sub-folders: make a sub-folder for each class, "
            "and move the pictures into them"
        )
    return found


def _pictures(folder: Path, root: Path, problems: list[Problem]) -> Iterator[Path]:
    """The pictures at any depth below a class's folder, in a fixed order; each folder is read once."""
    waiting: list[Path] = [folder]
    seen: set[str] = set()
    above = [os.path.join(os.path.realpath(path), "") for path in (folder, root)]
    while waiting:
        current = waiting.pop()
        real = os.path.realpath(current)
        leads_up = any(path.startswith(os.path.join(real, "")) for path in above)
        if real in seen or (leads_up and current != folder):
            problems.append(Problem("loop", _shown(current, root), _LEADS_BACK))
            continue
        seen.add(real)
        for path in _entries(current, root, problems):
            if os.path.isdir(path):
                waiting.append(path)
            elif path.suffix.lower() in SUFFIXES:
                yield path
            else:
                what = f"a file {path.suffix}" if path.suffix else "a file without an ending"
                message = f"{what} is no picture that is read: convert it to one of {', '.join(FORMATS)}"
                problems.append(_stray(path, root, "no picture", printable(message)))


def _entries(folder: Path, root: Path, problems: list[Problem]) -> list[Path]:
    """What is in `folder`, sorted; what is hidden, or cannot be listed, goes to `problems`."""
    try:
        names = sorted(os.listdir(folder), key=os.fsencode)
    except OSError as reason:
        problems.append(Problem("unreadable folder", _shown(folder, root), f"it cannot be read: {reason.strerror}"))
        return []
    for name in names:
        if name.startswith("."):
            problems.append(
                Problem("hidden", _shown(folder / name, root), "it is hidden: rename it if it belongs here")
            )
    return [folder / name for name in names if not name.startswith(".")]


def _stray(path: Path, root: Path, kind: str, message: str) -> Problem:
    """What is wrong with something that is no folder and no picture."""
    if os.path.islink(path) and not os.path.exists(path):
        return Problem("unreadable", _shown(path, root), LEADS_NOWHERE)
    return Problem(kind, _shown(path, root), message)


def _has_folders(folder: Path) -> bool:
    return any(os.path.isdir(path) and path.name[0] != "." for path in _entries(folder, folder, []))


def _shown(path: Path, root: Path) -> str:
    return printable(path.relative_to(root)) if path != root else "."


def _need_different(folder: Path, names: list[str]) -> None:
    taken: dict[SplitName, str] = {}
    for name in names:
        split = SPLIT_NAMES[name.casefold()]
        if split in taken:
            raise DataError(f"{printable(folder)} has both {taken[split]} and {name}: move all into one of them")
        taken[split] = name


def _need_classes(folder: Path, train: Path, classes: set[str]) -> None:
    if len(classes) >= 2:
        return
    found = f"one class with pictures, {next(iter(classes))!r}" if classes else "no sub-folder with pictures"
    raise DataError(
        f"{printable(train)} has {found}, and two classes are needed at least: make a sub-folder for each class, "
        f"named after it, with its pictures inside. Or is {printable(folder)} another folder than you meant?"
    )
