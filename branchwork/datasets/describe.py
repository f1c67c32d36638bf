"""The verb `data`: what a data set holds and where it came from."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from branchwork.datasets.checking import read_layout, select_usable, survey
from branchwork.datasets.cifar import CIFAR10
from branchwork.datasets.dataset import DataSet, FolderReport
from branchwork.datasets.folder import title_of
from branchwork.datasets.load import is_path, load_data
from branchwork.datasets.pack import verify_pack
from branchwork.datasets.reading import Array
from branchwork.datasets.sheet import draw_sheet
from branchwork.datasets.sources import FASHION_MNIST, MNIST, cache_folder
from branchwork.figures import check_drawing, legible
from branchwork.files import printable
from branchwork.language import say
from branchwork.observer import Observer
from branchwork.screen import watch
from branchwork.shown import Shown

# Examples of each class on a sheet.
_EXAMPLES = 10
# More classes on a sheet would take minutes to draw, and nobody would look at them.
_MOST_CLASSES = 20


@dataclass(frozen=True)
class DataSummary(Shown):
    """A data set in figures.

    `counts` is the number of images by class name for `train` and `test`, and for `validation` if it has files of its
    own. `files` maps names to md5 sums in `folder`, if there is one. `report` is what was found among a user's own
    images.
    """

    name: str
    origin: str
    folder: str | None
    files: dict[str, str]
    image_shape: tuple[int, int, int]
    counts: dict[str, dict[str, int]]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    report: FolderReport | None = None


def data(
    name: str | DataSet = "auto",
    *,
    source: Path | None = None,
    draw: Path | None = None,
    progress: bool | Observer = False,
) -> DataSummary:
    """Describe the data set `name`: its images, classes, source and, for a folder, its problems.

    With `draw`, examples of each class are drawn into that file. Every file of a folder is decoded once, and only the
    images to draw are kept in memory; a pack is read whole. Raises `DataError`, and `RunError` if `draw` cannot be
    written.
    """
    observer = watch(progress)
    if draw is not None:
        check_drawing(draw)
    if isinstance(name, str) and os.path.isdir(name) and is_path(name):
        return _check_folder(Path(name), draw, observer)
    loaded = load_data(name, source=source, progress=observer) if isinstance(name, str) else name
    if loaded.path is not None and os.path.isfile(loaded.path):
        verify_pack(Path(loaded.path), observer)
    if draw is not None:
        shown = loaded.classes[:_MOST_CLASSES]
        rows = torch.cat([(loaded.train.labels == i).nonzero()[:_EXAMPLES, 0] for i in range(len(shown))])
        captions = [loaded.classes[int(label)] for label in loaded.train.labels[rows]]
        _draw(draw, loaded.train.images[rows], captions, name=loaded.name, classes=loaded.classes)
    fetched = None if loaded.path else {s.name: s for s in (MNIST, FASHION_MNIST, CIFAR10)}.get(loaded.name)
    return DataSummary(
        name=loaded.name,
        origin=loaded.origin,
        folder=str(cache_folder() / loaded.name) if fetched else None,
        files=fetched.sums(cache_folder() / loaded.name) if fetched else {},
        image_shape=loaded.image_shape,
        counts=_count_images(loaded),
        mean=loaded.mean,
        std=loaded.std,
        report=loaded.report,
    )


def _check_folder(folder: Path, draw: Path | None, observer: Observer) -> DataSummary:
    name = title_of(folder)
    layout, image_format = survey(folder, observer)
    records, examples = [], dict[int, Array]()
    seen, kept = set[str](), Counter[str]()
    for row, (record, image) in enumerate(read_layout(layout, image_format, observer)):
        records.append(record)
        label = layout.files[row].label
        # Twice as many as are drawn, since some will be held out to test on.
        if record.error is None and record.digest not in seen and kept[label] < 2 * _EXAMPLES:
            seen.add(record.digest)
            kept[label] += 1
            examples[row] = image
    usable = select_usable(layout, records, image_format)
    if draw is not None:
        training = set(usable.rows["train"].tolist())
        candidates = [row for row in sorted(examples) if row in training] or sorted(examples)
        rows = [
            row
            for label in usable.classes[:_MOST_CLASSES]
            for row in [row for row in candidates if layout.files[row].label == label][:_EXAMPLES]
        ]
        images = torch.from_numpy(np.stack([examples[row] for row in rows]))
        _draw(draw, images, [layout.files[row].label for row in rows], name=name, classes=usable.classes)
    return DataSummary(
        name=name,
        origin=say("the folder {folder}", folder=printable(folder)),
        folder=None,
        files={},
        image_shape=image_format.shape,
        counts=usable.report.counts,
        mean=usable.mean,
        std=usable.std,
        report=usable.report,
    )


def _draw(path: Path, images: torch.Tensor, captions: list[str], *, name: str, classes: tuple[str, ...]) -> None:
    """Draw the examples, a class per row."""
    with legible(path):
        title = say(
            "{name}: the first {count} of each of the first {classes} classes"
            if len(classes) > _MOST_CLASSES
            else "{name}: the first {count} of each class",
            name=name,
            count=_EXAMPLES,
            classes=_MOST_CLASSES,
        )
        draw_sheet(path, images, captions, title=title, columns=_EXAMPLES)


def _count_images(data: DataSet) -> dict[str, dict[str, int]]:
    counts = {}
    for name, split in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        if split is not None:
            numbers = torch.bincount(split.labels, minlength=len(data.classes)).tolist()
            counts[name] = dict(zip(data.classes, numbers, strict=True))
    return counts
