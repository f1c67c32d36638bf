"""Check a folder of images: every file is decoded once, and judged by its contents."""

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from branchwork.datasets.dataset import SPLITS, FolderProblem, FolderReport, PictureSizes, SplitName
from branchwork.datasets.folder import FolderLayout, PictureFile, find_files
from branchwork.datasets.placing import FITS, METHODS
from branchwork.datasets.reading import Array, FileRecord, ImageFormat, PictureHeader, read_files, read_headers
from branchwork.errors import DataError
from branchwork.files import printable, typed
from branchwork.language import mark, say, times
from branchwork.observer import Observer

# The fraction of each class that is tested on if a folder has no test images.
HELD_OUT = 0.2
# Sides that halve well. A folder of large photographs is reduced to the last.
_SIDES = (16, 24, 32, 48, 64, 96, 128)
# Images that share a size keep it up to this side.
_MOST_KEPT = 224
_MOST_SIDE = 4096


@dataclass(frozen=True)
class UsableFiles:
    """Which files, by their number in the layout, belong to which split. Labels are indices into `classes`."""

    classes: tuple[str, ...]
    rows: dict[SplitName, Tensor]
    labels: dict[SplitName, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    report: FolderReport


def survey(
    folder: Path,
    observer: Observer,
    *,
    size: int | tuple[int, int] | None = None,
    fit: str | None = None,
    channels: int | None = None,
) -> tuple[FolderLayout, ImageFormat]:
    """Return the files of a folder and the format of their images, which the headers decide as far as it is not given.

    `fit` is one of `placing.METHODS`. Raises `DataError`.
    """
    if fit is not None and fit not in METHODS:
        raise DataError("--fit must be one of {fits}, got {fit!r}", fits=", ".join(FITS), fit=fit)
    if size is not None:
        size = (size, size) if isinstance(size, int) else size
        if not all(1 <= side <= _MOST_SIDE for side in size):
            raise DataError("each side of size must be from 1 to {most}, got {size}", most=_MOST_SIDE, size=times(size))
    layout = find_files(folder)
    headers = read_headers(
        [file.path for file in layout.files], say("scanning {name}", name=printable(folder.name)), observer
    )
    if not headers:
        raise DataError(
            "none of the {files:,} files in {folder} is a picture that can be read",
            files=len(layout.files),
            folder=printable(folder),
        )
    grey = all(header.grey for header in headers)
    return layout, ImageFormat(channels or (1 if grey else 3), size or choose_size(headers), fit or FITS[0])


def choose_size(headers: Sequence[PictureHeader]) -> tuple[int, int]:
    """Return the height and width that suit pictures: their own if they share a small one, else a square.

    Its side is the largest of 16, 24, 32, 48, 64, 96 and 128 that the median of the shorter sides reaches.
    """
    first, *others = {(header.height, header.width) for header in headers}
    if not others and max(first) <= _MOST_KEPT:
        return first
    shorter = statistics.median(min(header.height, header.width) for header in headers)
    side = max((side for side in _SIDES if side <= shorter), default=_SIDES[0])
    return side, side


def read_layout(
    layout: FolderLayout, image_format: ImageFormat, observer: Observer
) -> Iterator[tuple[FileRecord, Array]]:
    """Decode the files in their order; yield the record and the image of each."""
    paths = [file.path for file in layout.files]
    title = say("reading {name}", name=printable(layout.folder.name))
    return read_files(paths, image_format, title=title, observer=observer)


def select_usable(layout: FolderLayout, records: Sequence[FileRecord], image_format: ImageFormat) -> UsableFiles:
    """Decide from the records of all files which are used, and report what is left out and why.

    Of copies within a class one is kept, in test before validation before train. Copies in two classes are all left
    out, since one of them is wrong. Raises `DataError` if the rest cannot be trained or tested on.
    """
    files = layout.files
    problems = _find_unreadable(files, records) | _find_copies(files, records)
    usable = [i for i in range(len(files)) if i not in problems]
    classes = tuple(sorted({files[i].label for i in usable if files[i].split == "train"}))
    lost = [name for name in layout.classes if name not in classes]
    for i in usable:
        if files[i].label in lost:
            message = say("no training picture of {label} can be used", label=files[i].label)
            problems[i] = FolderProblem("class lost", files[i].shown, message)
    general = list(layout.problems)
    general += [FolderProblem("class lost", name, say("none of its pictures can be used")) for name in lost]
    if len(classes) < 2:
        first = next(iter(problems.values()))
        raise DataError(
            "{folder}: only the class {label!r} has a picture to train on once {problems:,} of {files:,} files are "
            "left out, but two classes are needed. {path}: {message}"
            if classes
            else "{folder}: no class has a picture to train on once {problems:,} of {files:,} files are left out, but "
            "two classes are needed. {path}: {message}",
            folder=printable(layout.folder),
            label=classes[0] if classes else "",
            problems=len(problems),
            files=len(files),
            path=first.path,
            message=first.message,
        )
    parts: dict[SplitName, list[int]] = {
        split: [i for i in usable if i not in problems and files[i].split == split] for split in layout.splits
    }
    for split, rows in parts.items():
        if not rows:
            folder = typed(layout.folder)
            raise DataError(
                "{folder}: none of the pictures for {split} can be used: branchwork data {folder} says why",
                folder=folder,
                split=say(split),
            )
    has_test = "test" in parts
    if not has_test:
        parts["train"], parts["test"] = _hold_out(parts["train"], files, records)
        if not parts["test"]:
            raise DataError(
                "{folder} has one picture of each class, but two are needed: add some to test on",
                folder=printable(layout.folder),
            )
    for name in sorted(set(classes) - {files[i].label for i in parts["test"]}):
        message = say("the class has no picture to test on: add some, or its accuracy is unknown")
        general.append(FolderProblem("not tested", name, message, left_out=False))
    number = {name: index for index, name in enumerate(classes)}
    labels = {split: torch.tensor([number[files[i].label] for i in parts[split]]) for split in SPLITS if split in parts}
    counts = {split: torch.bincount(numbers, minlength=len(classes)).tolist() for split, numbers in labels.items()}
    mean, std = _mean_and_std([records[i] for i in parts["train"]], image_format)
    return UsableFiles(
        classes=classes,
        rows={split: torch.tensor(parts[split]) for split in labels},
        labels=labels,
        mean=mean,
        std=std,
        report=FolderReport(
            folder=printable(layout.folder),
            counts={split: dict(zip(classes, numbers, strict=True)) for split, numbers in counts.items()},
            files=len(files),
            left_out=len(problems),
            held_out=0.0 if has_test else HELD_OUT,
            sizes=_sizes([record for record in records if record.error is None]),
            oddities=dict(Counter(word for record in records for word in record.oddities).most_common()),
            problems=(*(problems[i] for i in sorted(problems)), *general),
        ),
    )


def _find_unreadable(files: Sequence[PictureFile], records: Sequence[FileRecord]) -> dict[int, FolderProblem]:
    problems = {}
    for i, (file, record) in enumerate(zip(files, records, strict=True)):
        if record.error is not None:
            # The error begins with the whole path, and the report has the path within the folder already.
            message = printable(record.error).removeprefix(f"{printable(file.path)} ")
            problems[i] = FolderProblem("unreadable", file.shown, message)
    return problems


def _find_copies(files: Sequence[PictureFile], records: Sequence[FileRecord]) -> dict[int, FolderProblem]:
    """Return the files that are left out because another holds the same pixels."""
    by_digest: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        if record.error is None:
            by_digest.setdefault(record.digest, []).append(i)
    problems = {}
    for rows in by_digest.values():
        first, *others = sorted(rows, key=lambda i: (-SPLITS.index(files[i].split), i))
        for i in others:
            twin, across = files[first], files[i].split != files[first].split
            kind = mark("copy across splits") if across else mark("copy")
            message = say(
                "the same picture as {twin}, which is for {split}: delete one"
                if across
                else "the same picture as {twin}: delete one",
                twin=twin.shown,
                split=say(twin.split),
            )
            problems[i] = FolderProblem(kind, files[i].shown, message)
        if len({files[i].label for i in rows}) > 1:
            for i in rows:
                other = next(files[j].shown for j in rows if files[j].label != files[i].label)
                message = say("the same picture as {twin}, in another class: delete the wrong one", twin=other)
                problems[i] = FolderProblem("copy in two classes", files[i].shown, message)
    return problems


def _hold_out(
    train: list[int], files: Sequence[PictureFile], records: Sequence[FileRecord]
) -> tuple[list[int], list[int]]:
    """Divide the training images into train and test, which gets a fraction of every class, by their contents.

    The same pictures are tested on whatever their files are called. If pictures are added or removed, only a few
    change sides.
    """
    test: set[int] = set()
    members: dict[str, list[int]] = {}
    for i in sorted(train, key=lambda i: records[i].digest):
        members.setdefault(files[i].label, []).append(i)
    for rows in members.values():
        test.update(rows[: min(max(1, round(HELD_OUT * len(rows))), len(rows) - 1)])
    return [i for i in train if i not in test], sorted(test)


def _mean_and_std(
    records: Sequence[FileRecord], image_format: ImageFormat
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and standard deviation of each channel over all pixels, which lie in [0, 1]."""
    count = len(records) * image_format.size[0] * image_format.size[1]
    means, deviations = [], []
    for channel in range(image_format.channels):
        # Sums of integers do not depend on the order of the files.
        mean = sum(record.sums[channel] for record in records) / count
        square = sum(record.squares[channel] for record in records) / count
        # Images of one colour have no deviation; dividing by one grey level leaves them as they are.
        deviation = max(math.sqrt(max(square - mean * mean, 0.0)), 1.0)
        means.append(mean / 255)
        deviations.append(deviation / 255)
    return tuple(means), tuple(deviations)


def _sizes(records: Sequence[FileRecord]) -> PictureSizes:
    def spread(values: list[int]) -> tuple[int, int, int]:
        return min(values), int(statistics.median(values)), max(values)

    return PictureSizes(spread([record.width for record in records]), spread([record.height for record in records]))
