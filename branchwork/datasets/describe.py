"""What a data set holds and where it came from."""

from dataclasses import dataclass
from pathlib import Path

import torch

from branchwork.datasets.load import DataSet, Split, known_source, load_data
from branchwork.datasets.pictures import draw_sheet
from branchwork.datasets.sources import cache_folder
from branchwork.observer import Observer


@dataclass(frozen=True)
class DataSummary:
    """A data set in figures.

    `counts` is images by class name for `train` and `test`; `files` are name and md5 in `folder`, where there is one.
    """

    name: str
    origin: str
    folder: str | None
    files: dict[str, str]
    image_shape: tuple[int, int, int]
    counts: dict[str, dict[str, int]]
    mean: tuple[float, ...]
    std: tuple[float, ...]


def data(
    name: str | DataSet = "auto",
    *,
    source: Path | None = None,
    sheet: Path | None = None,
    observer: Observer | None = None,
) -> DataSummary:
    """What the data set `name` holds. With `sheet`, examples of each class are drawn into that file."""
    loaded = load_data(name, source=source, observer=observer) if isinstance(name, str) else name
    if sheet is not None:
        draw_examples(sheet, loaded)
    files = known_source(loaded.name)
    return DataSummary(
        name=loaded.name,
        origin=loaded.origin,
        folder=str(cache_folder() / loaded.name) if files else None,
        files=dict(files.md5) if files else {},
        image_shape=(loaded.channels, *loaded.image_size),
        counts={"train": _counts(loaded.train, loaded), "test": _counts(loaded.test, loaded)},
        mean=loaded.mean,
        std=loaded.std,
    )


def draw_examples(path: Path, data: DataSet, each: int = 10) -> None:
    """A sheet with the first `each` training images of every class, a class a row."""
    rows = [(data.train.labels == label).nonzero()[:each, 0] for label in range(len(data.classes))]
    chosen = torch.cat(rows)
    captions = [data.classes[int(label)] for label in data.train.labels[chosen]]
    draw_sheet(path, data.train.images[chosen], captions, f"{data.name}: the first {each} of each class", each)


def _counts(split: Split, data: DataSet) -> dict[str, int]:
    counts = torch.bincount(split.labels, minlength=len(data.classes)).tolist()
    return dict(zip(data.classes, counts, strict=True))
