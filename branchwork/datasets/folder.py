"""The files of a folder of images, by class and split, before any of them is opened."""

import os
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from branchwork.datasets.dataset import FolderProblem, SplitName
from branchwork.datasets.reading import BROKEN_LINK, FORMATS, SUFFIXES
from branchwork.errors import BranchworkError, DataError, nearest, system_words
from branchwork.files import printable
from branchwork.language import mark, say

# What people call the three splits.
SPLIT_NAMES: dict[str, SplitName] = {
    "train": "train", "training": "train",
    "val": "validation", "valid": "validation", "validation": "validation",
    "test": "test", "testing": "test",
}  # fmt: skip


@dataclass(frozen=True)
class PictureFile:
    """One picture's path, its path within the folder as text, its split and its class."""

    path: Path
    shown: str
    split: SplitName
    label: str


@dataclass(frozen=True)
class FolderLayout:
    """The pictures of a folder in a fixed order, and the problems of everything else in it. Classes are sorted."""

    folder: Path
    classes: tuple[str, ...]
    files: tuple[PictureFile, ...]
    splits: tuple[SplitName, ...]
    problems: tuple[FolderProblem, ...]


def find_files(folder: Path) -> FolderLayout:
    """Find the pictures below `folder`: a sub-folder for each class, or `train`, `val` and `test` with such ones.

    A class has the name of its folder, and the pictures in folders within it. Hidden and empty folders, other files
    and links that lead back are left out, each as a `FolderProblem`. Raises `DataError` if there are not two classes,
    or if `val` or `test` have one that `train` lacks.
    """
    if not os.path.isdir(folder):
        raise DataError(
            "there is no folder {folder}: name one that has a sub-folder for each class", folder=printable(folder)
        )
    problems: list[FolderProblem] = []
    parts = _find_splits(folder, problems)
    files: list[PictureFile] = []
    for split, part in parts.items():
        files += _read_split(part, split, folder=folder, problems=problems)
    trained = {file.label for file in files if file.split == "train"}
    if len(trained) < 2:
        raise DataError(
            "{train} has one class with pictures, {label!r}, but at least two classes are needed: make a sub-folder "
            "for each class, named after it, with its pictures inside. Or did you mean another folder than {folder}?"
            if trained
            else "{train} has no sub-folder with pictures, but at least two classes are needed: make a sub-folder for "
            "each class, named after it, with its pictures inside. Or did you mean another folder than {folder}?",
            train=printable(parts["train"]),
            label=min(trained, default=""),
            folder=printable(folder),
        )
    for split, part in parts.items():
        for label in sorted({file.label for file in files if file.split == split} - trained):
            raise DataError(
                "{part} has a class {label!r} that {train} has no pictures of: "
                "no net can learn it. Add pictures to train, or remove it.{hint}",
                part=printable(part),
                label=label,
                train=printable(parts["train"]),
                hint=nearest(label, trained),
            )
    files.sort(key=lambda file: (file.split, file.label, os.fsencode(file.path)))
    splits = tuple(split for split in parts if any(file.split == split for file in files))
    return FolderLayout(folder, tuple(sorted(trained)), tuple(files), splits, tuple(problems))


def check_unicode(path: str | Path, error: type[BranchworkError]) -> None:
    """Raise `error` if `path` is not valid UTF-8, as in old archives: a run's files could not name it."""
    try:
        str(path).encode()
    except UnicodeEncodeError as reason:
        raise error("{path} has a name that is not valid UTF-8: rename it", path=printable(path)) from reason


def title_of(path: Path) -> str:
    """Return the name of a folder or file, short enough to be part of other files' names."""
    name = printable(Path(os.path.realpath(path)).name.removesuffix(".pack")) or "images"
    return name.encode()[:80].decode("utf-8", "ignore")


def _find_splits(folder: Path, problems: list[FolderProblem]) -> dict[SplitName, Path]:
    """Return the folders of the splits; `folder` itself is `train` if it has no such folders."""
    at_top: list[FolderProblem] = []
    folders = _find_folders(folder, folder, at_top)
    named = {name: path for name, path in folders.items() if name.casefold() in SPLIT_NAMES}
    parts: dict[SplitName, Path] = {}
    for name, path in named.items():
        parts.setdefault(SPLIT_NAMES[name.casefold()], path)
    if "train" in parts and _has_folders(parts["train"]):
        for name, path in named.items():
            first = parts[SPLIT_NAMES[name.casefold()]]
            if path != first:
                raise DataError(
                    "{folder} has both {name} and {other}: move all into one of them",
                    folder=printable(folder),
                    name=first.name,
                    other=path.name,
                )
        problems += at_top
        message = say("it is next to train: if it is a class, move it into train")
        problems += [
            FolderProblem("beside the splits", _shown(path, folder), message)
            for name, path in folders.items()
            if name not in named
        ]
        return parts
    if parts and "train" not in parts and any(map(_has_folders, parts.values())):
        raise DataError(
            "{folder} has {values}, but no train: name the folder with training images train",
            folder=printable(folder),
            values=", ".join(sorted(path.name for path in parts.values())),
        )
    return {"train": folder}


def _read_split(part: Path, split: SplitName, *, folder: Path, problems: list[FolderProblem]) -> Iterator[PictureFile]:
    labels = set()
    for name, path in _find_folders(part, folder, problems).items():
        # macOS writes é as two characters and others write one; it is the same name.
        label = unicodedata.normalize("NFC", name)
        if label in labels:
            raise DataError(
                "{part} has two folders for the class {label!r}: move all into one", part=printable(part), label=label
            )
        labels.add(label)
        empty = True
        for picture in _find_pictures(path, folder, problems):
            empty = False
            yield PictureFile(picture, _shown(picture, folder), split, label)
        if empty:
            message = say("it has no pictures, so it is not a class")
            problems.append(FolderProblem("empty folder", _shown(path, folder), message))


def _find_folders(parent: Path, root: Path, problems: list[FolderProblem]) -> dict[str, Path]:
    """Return the folders in `parent` that are not hidden, by their names as text."""
    folders: dict[str, Path] = {}
    loose = 0
    entries = _list_visible(parent, root, problems)
    above = os.path.join(os.path.realpath(parent), "")
    siblings = {os.path.realpath(path) for path in entries if not os.path.islink(path)}
    for path in entries:
        real = os.path.realpath(path)
        if os.path.islink(path) and (real in siblings or above.startswith(os.path.join(real, ""))):
            problems.append(_loop(path, root))
        elif os.path.isdir(path):
            folders[printable(path.name)] = path
        else:
            loose += path.suffix.lower() in SUFFIXES
            message = say("it is outside every class folder: move it into one")
            problems.append(_stray(path, root, kind=mark("outside of a class"), message=message))
    if loose and not folders:
        raise DataError(
            "{parent} has {loose:,} pictures and no sub-folders: make a sub-folder for each class, "
            "and move the pictures into them",
            parent=printable(parent),
            loose=loose,
        )
    return folders


def _find_pictures(folder: Path, root: Path, problems: list[FolderProblem]) -> Iterator[Path]:
    """Yield the pictures at any depth below a class's folder in a fixed order, reading each folder once."""
    waiting: list[Path] = [folder]
    seen: set[str] = set()
    above = [os.path.join(os.path.realpath(path), "") for path in (folder, root)]
    while waiting:
        current = waiting.pop()
        real = os.path.realpath(current)
        leads_up = any(path.startswith(os.path.join(real, "")) for path in above)
        if real in seen or (leads_up and current != folder):
            problems.append(_loop(current, root))
            continue
        seen.add(real)
        for path in _list_visible(current, root, problems):
            if os.path.isdir(path):
                waiting.append(path)
            elif path.suffix.lower() in SUFFIXES:
                yield path
            else:
                message = say(
                    "a {suffix} file is not a picture that can be read: convert it to one of {formats}"
                    if path.suffix
                    else "a file without an extension is not a picture that can be read: convert it to one of "
                    "{formats}",
                    suffix=path.suffix,
                    formats=", ".join(FORMATS),
                )
                problems.append(_stray(path, root, kind=mark("no picture"), message=printable(message)))


def _list_visible(folder: Path, root: Path, problems: list[FolderProblem]) -> list[Path]:
    """Return the visible entries of `folder`, sorted. Hidden ones and unreadable folders become problems."""
    try:
        names = sorted(os.listdir(folder), key=os.fsencode)
    except OSError as reason:
        message = say("it cannot be read: {strerror}", strerror=system_words(reason))
        problems.append(FolderProblem("unreadable folder", _shown(folder, root), message))
        return []
    for name in names:
        if name.startswith("."):
            message = say("it is hidden: rename it if it belongs here")
            problems.append(FolderProblem("hidden", _shown(folder / name, root), message))
    return [folder / name for name in names if not name.startswith(".")]


def _loop(path: Path, root: Path) -> FolderProblem:
    return FolderProblem("loop", _shown(path, root), say("the link leads back into the data: delete it"))


def _stray(path: Path, root: Path, *, kind: str, message: str) -> FolderProblem:
    """Describe something that is neither a folder nor a picture."""
    if os.path.islink(path) and not os.path.exists(path):
        return FolderProblem("unreadable", _shown(path, root), say(BROKEN_LINK))
    return FolderProblem(kind, _shown(path, root), message)


def _has_folders(folder: Path) -> bool:
    return any(os.path.isdir(path) for path in _list_visible(folder, folder, []))


def _shown(path: Path, root: Path) -> str:
    return printable(path.relative_to(root)) if path != root else "."
