"""What of a folder of images can be used: every file is decoded once, and judged by what it held."""

import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from branchwork.datasets.fitting import FITS
from branchwork.datasets.folder import File, Layout, find_files
from branchwork.datasets.images import WAYS, Header
from branchwork.datasets.reading import Array, Record, Target, read_files, read_headers
from branchwork.datasets.report import SPLITS, FolderReport, Problem, Sizes, SplitName
from branchwork.errors import DataError, nearest
from branchwork.files import printable
from branchwork.language import times
from branchwork.observer import Observer

# Of each class, what is tested on where a folder has no test part.
HELD_OUT = 0.2
# Sides that halve well; a folder of large photographs is brought to the last.
_SIDES = (16, 24, 32, 48, 64, 96, 128)
# Images of one size keep it up to this side.
_MOST_KEPT = 224
_MOST_SIDE = 4096


@dataclass(frozen=True)
class Judgement:
    """What of the files, by their numbers in the layout, is used for what. Labels are numbers of `classes`."""

    classes: tuple[str, ...]
    rows: dict[SplitName, Tensor]
    labels: dict[SplitName, Tensor]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    report: FolderReport


def survey(
    folder: Path,
    size: int | tuple[int, int] | None,
    fit: str | None,
    channels: int | None,
    observer: Observer,
) -> tuple[Layout, Target]:
    """The files of a folder, and what images they become: what is None is chosen by what the files say of themselves.

    `fit` is one of `images.WAYS`. Raises `DataError`.
    """
    if fit is not None and fit not in WAYS:
        raise DataError(f"there is no way to fit pictures called {fit!r}.{nearest(fit, FITS)}")
    if size is not None:
        size = (size, size) if isinstance(size, int) else size
        if not all(1 <= side <= _MOST_SIDE for side in size):
            raise DataError(f"size is {times(size)}, and each side must be from 1 to {_MOST_SIDE}")
    layout = find_files(folder)
    headers = read_headers([file.path for file in layout.files], f"looking into {printable(folder.name)}", observer)
    if not headers:
        raise DataError(f"none of the {len(layout.files):,} files in {printable(folder)} is a picture that can be read")
    grey = all(header.grey for header in headers)
    return layout, Target(channels or (1 if grey else 3), size or choose_size(headers), fit or FITS[0])


def choose_size(headers: Sequence[Header]) -> tuple[int, int]:
    """Height and width that suit pictures: their own where they share a small one, else a square.

    Its side is the greatest of 16, 24, 32, 48, 64, 96 and 128 that the median of the shorter sides reaches.
    """
    first, *others = {(header.height, header.width) for header in headers}
    if not others and max(first) <= _MOST_KEPT:
        return first
    shorter = statistics.median(min(header.height, header.width) for header in headers)
    side = max((side for side in _SIDES if side <= shorter), default=_SIDES[0])
    return side, side


def read_layout(layout: Layout, target: Target, observer: Observer, start: int = 0) -> Iterator[tuple[Record, Array]]:
    """Record and image of each file, from file number `start` on."""
    paths = [file.path for file in layout.files[start:]]
    return read_files(paths, target, f"reading {printable(layout.folder.name)}", observer)


def judge(layout: Layout, records: Sequence[Record], target: Target) -> Judgement:
    """What is used, what is left out and why, from the records of all files in their order.

    Of copies within a class one is kept, in test before validation before train; copies in two classes are all left
    out, since one of them is wrong. Raises `DataError` where what is left cannot be trained or tested on.
    """
    files = layout.files
    problems = {i: Problem("unreadable", files[i].shown, why) for i, why in _unreadable(files, records)}
    problems |= _copies(files, records)
    usable = [i for i in range(len(files)) if i not in problems]
    classes = tuple(sorted({files[i].label for i in usable if files[i].split == "train"}))
    lost = [name for name in layout.classes if name not in classes]
    for i in [i for i in usable if files[i].label in lost]:
        problems[i] = Problem("class lost", files[i].shown, f"no training picture of {files[i].label} can be used")
    general = [*layout.problems, *(Problem("class lost", name, "none of its pictures can be used") for name in lost)]
    if len(classes) < 2:
        raise DataError(f"{printable(layout.folder)}: {_lost(layout, problems, classes)}")

    parts: dict[SplitName, list[int]] = {
        split: [i for i in usable if i not in problems and files[i].split == split] for split in layout.splits
    }
    empty = [split for split, rows in parts.items() if not rows]
    if empty:
        raise DataError(f"{printable(layout.folder)}: none of the pictures for {empty[0]} can be used: see its files")
    own_test = "test" in parts
    if not own_test:
        parts["train"], parts["test"] = _hold_out(parts["train"], files, records)
        if not parts["test"]:
            raise DataError(
                f"{printable(layout.folder)} has one picture of each class, and two are needed: add some to test on"
            )
    for name in sorted(set(classes) - {files[i].label for i in parts["test"]}):
        general.append(
            Problem(
                "not tested", name, "the class has no picture to test on: add some, or its accuracy is unknown", False
            )
        )
    number = {name: index for index, name in enumerate(classes)}
    labels = {split: torch.tensor([number[files[i].label] for i in parts[split]]) for split in SPLITS if split in parts}
    counts = {split: torch.bincount(own, minlength=len(classes)).tolist() for split, own in labels.items()}
    mean, std = _statistics([records[i] for i in parts["train"]], target)
    return Judgement(
        classes=classes,
        rows={split: torch.tensor(parts[split]) for split in labels},
        labels=labels,
        mean=mean,
        std=std,
        report=FolderReport(
            folder=printable(layout.folder),
            counts={split: dict(zip(classes, own, strict=True)) for split, own in counts.items()},
            files=len(files),
            left_out=len(problems),
            held_out=0.0 if own_test else HELD_OUT,
            sizes=_sizes([record for record in records if record.error is None]),
            oddities=dict(Counter(word for record in records for word in record.oddities).most_common()),
            problems=(*(problems[i] for i in sorted(problems)), *general),
        ),
    )


def _unreadable(files: Sequence[File], records: Sequence[Record]) -> Iterator[tuple[int, str]]:
    for i, (file, record) in enumerate(zip(files, records, strict=True)):
        if record.error is not None:
            # The message names the file in full, and the report names it already.
            yield i, printable(record.error).removeprefix(f"{printable(file.path)} ")


def _copies(files: Sequence[File], records: Sequence[Record]) -> dict[int, Problem]:
    """Those of the files that are left out because another holds the same pixels."""
    same: dict[str, list[int]] = {}
    for i, record in enumerate(records):
        if record.error is None:
            same.setdefault(record.digest, []).append(i)
    problems = {}
    for rows in same.values():
        first, *others = sorted(rows, key=lambda i: (-SPLITS.index(files[i].split), i))
        for i in others:
            twin, across = files[first], files[i].split != files[first].split
            kind = "copy across splits" if across else "copy"
            message = f"the same picture as {twin.shown}" + f", which is for {twin.split}" * across + ": delete one"
            problems[i] = Problem(kind, files[i].shown, message)
        labels = sorted({files[i].label for i in rows})
        if len(labels) > 1:
            for i in rows:
                other = next(files[j].shown for j in rows if files[j].label != files[i].label)
                message = f"the same picture as {other}, in another class: delete the wrong one"
                problems[i] = Problem("copy in two classes", files[i].shown, message)
    return problems


def _hold_out(train: list[int], files: Sequence[File], records: Sequence[Record]) -> tuple[list[int], list[int]]:
    """Train and test: of every class a share, by what the pictures hold.

    So the same pictures are tested on whatever they are called. Where others are added or taken away, the border of the
    share moves, and a few change sides.
    """
    test: set[int] = set()
    members: dict[str, list[int]] = {}
    for i in sorted(train, key=lambda i: records[i].digest):
        members.setdefault(files[i].label, []).append(i)
    for rows in members.values():
        test.update(rows[: min(max(1, round(HELD_OUT * len(rows))), len(rows) - 1)])
    return [i for i in train if i not in test], sorted(test)


def _statistics(records: Sequence[Record], target: Target) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel over all pixels, which lie in [0, 1]."""
    count = len(records) * target.size[0] * target.size[1]
    means, deviations = [], []
    for channel in range(target.channels):
        # In whole numbers, so that the order of the files does not matter.
        mean = sum(record.sums[channel] for record in records) / count
        square = sum(record.squares[channel] for record in records) / count
        # Images of one colour have no deviation, and dividing by a grey value leaves them as they are.
        deviation = max(math.sqrt(max(square - mean * mean, 0.0)), 1.0)
        means.append(mean / 255)
        deviations.append(deviation / 255)
    return tuple(means), tuple(deviations)


def _sizes(records: Sequence[Record]) -> Sizes:
    def spread(values: list[int]) -> tuple[int, int, int]:
        return min(values), int(np.median(values)), max(values)

    return Sizes(spread([record.width for record in records]), spread([record.height for record in records]))


def _lost(layout: Layout, problems: dict[int, Problem], classes: tuple[str, ...]) -> str:
    first = next(iter(problems.values()))
    left = f"only the class {classes[0]!r}" if classes else "no class"
    return (
        f"{left} has a picture to train on once {len(problems):,} of {len(layout.files):,} files are left out, and two "
        f"are needed. {first.path}: {first.message}"
    )
