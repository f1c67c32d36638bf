"""What a data set holds and where it came from."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from branchwork.datasets.checking import judge, read_layout, survey
from branchwork.datasets.folder import title_of
from branchwork.datasets.load import DataSet, is_path, known_source, load_data
from branchwork.datasets.pack import verify_pack
from branchwork.datasets.pictures import draw_sheet, need_sheet
from branchwork.datasets.reading import Array
from branchwork.datasets.report import FolderReport
from branchwork.datasets.sources import cache_folder
from branchwork.files import printable
from branchwork.observer import Observer

# Examples of each class on a sheet.
EACH = 10
# More classes on a sheet take minutes to draw, and would not be looked at.
MOST_CLASSES = 20


@dataclass(frozen=True)
class DataSummary:
    """A data set in figures.

    `counts` is images by class name for `train` and `test`, and for `validation` where it has files of its own;
    `files` are name and md5 in `folder`, where there is one. `report` is what was found among people's own
    images, `sheet` where examples were drawn.
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
    sheet: str | None = None


def data(
    name: str | DataSet = "auto",
    *,
    source: Path | None = None,
    sheet: Path | bool = False,
    observer: Observer | None = None,
) -> DataSummary:
    """What the data set `name` holds.

    With `sheet`, examples of each class are drawn into that file, or where it is True into NAME-examples.png. Of a
    folder, every file is decoded once, and no more images are kept in memory than are drawn; a pack is read whole.
    """
    if isinstance(name, str) and os.path.isdir(name) and is_path(name):
        return _check_folder(Path(name), sheet, observer or Observer())
    loaded = load_data(name, source=source, observer=observer) if isinstance(name, str) else name
    drawn = _sheet(sheet, loaded.name)
    if loaded.path is not None and os.path.isfile(loaded.path):
        verify_pack(Path(loaded.path), observer or Observer())
    if drawn is not None:
        draw_examples(drawn, loaded)
    files = known_source(loaded.name) if loaded.path is None else None
    return DataSummary(
        name=loaded.name,
        origin=loaded.origin,
        folder=str(cache_folder() / loaded.name) if files else None,
        files=dict(files.md5) if files else {},
        image_shape=(loaded.channels, *loaded.image_size),
        counts=_counts(loaded),
        mean=loaded.mean,
        std=loaded.std,
        report=loaded.report,
        sheet=None if drawn is None else str(drawn),
    )


def _check_folder(folder: Path, sheet: Path | bool, observer: Observer) -> DataSummary:
    name = title_of(folder)
    drawn = _sheet(sheet, name)
    layout, target = survey(folder, None, None, None, observer)
    records, examples = [], dict[int, Array]()
    seen, kept = set[str](), Counter[str]()
    for row, (record, image) in enumerate(read_layout(layout, target, observer)):
        records.append(record)
        label = layout.files[row].label
        # Twice as many as are drawn, since some will be held out to test on.
        if record.error is None and record.digest not in seen and kept[label] < 2 * EACH:
            seen.add(record.digest)
            kept[label] += 1
            examples[row] = image
    judgement = judge(layout, records, target)
    if drawn is not None:
        training = set(judgement.rows["train"].tolist())
        usable = [row for row in sorted(examples) if row in training] or sorted(examples)
        rows = [
            row
            for label in judgement.classes[:MOST_CLASSES]
            for row in [row for row in usable if layout.files[row].label == label][:EACH]
        ]
        images = torch.from_numpy(np.stack([examples[row] for row in rows]))
        draw_sheet(drawn, images, [layout.files[row].label for row in rows], _title(name, judgement.classes), EACH)
    return DataSummary(
        name=name,
        origin=f"the folder {printable(folder)}",
        folder=None,
        files={},
        image_shape=target.shape,
        counts=judgement.report.counts,
        mean=judgement.mean,
        std=judgement.std,
        report=judgement.report,
        sheet=None if drawn is None else str(drawn),
    )


def draw_examples(path: Path, data: DataSet) -> None:
    """A sheet with the first training images of every class, a class a row."""
    rows = [(data.train.labels == label).nonzero()[:EACH, 0] for label in range(len(data.classes[:MOST_CLASSES]))]
    chosen = torch.cat(rows)
    captions = [data.classes[int(label)] for label in data.train.labels[chosen]]
    draw_sheet(path, data.train.images[chosen], captions, _title(data.name, data.classes), EACH)


def _title(name: str, classes: tuple[str, ...]) -> str:
    few = f" of the first {MOST_CLASSES} classes" if len(classes) > MOST_CLASSES else " class"
    return f"{name}: the first {EACH} of each{few}"


def _sheet(sheet: Path | bool, name: str) -> Path | None:
    """Where the sheet is drawn, if it is. Raises `RunError` where that cannot be, before anything is read."""
    path = Path(f"{name}-examples.png") if sheet is True else sheet or None
    if path is not None:
        need_sheet(path)
    return path


def _counts(data: DataSet) -> dict[str, dict[str, int]]:
    counts = {}
    for name, split in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        if split is not None:
            numbers = torch.bincount(split.labels, minlength=len(data.classes)).tolist()
            counts[name] = dict(zip(data.classes, numbers, strict=True))
    return counts
