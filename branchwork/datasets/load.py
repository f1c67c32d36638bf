"""From a data argument to a data set."""

import lzma
import os
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from branchwork.datasets.checking import judge, read_layout, survey
from branchwork.datasets.folder import title_of
from branchwork.datasets.idx import from_idx, rank_of
from branchwork.datasets.pack import SUFFIX, open_pack
from branchwork.datasets.reading import Target
from branchwork.datasets.report import FolderReport
from branchwork.datasets.sources import FASHION_MNIST, MNIST, Bytes, Source, fetch
from branchwork.datasets.split import DataSet as DataSet
from branchwork.datasets.split import Split as Split
from branchwork.errors import DataError, nearest
from branchwork.files import available_memory, printable
from branchwork.language import times
from branchwork.observer import Observer

NAMES = ("auto", "mnist", "fashion-mnist", "sample")
DIGITS = tuple("0123456789")
GARMENTS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


def load_data(
    name: str = "auto",
    *,
    source: Path | None = None,
    size: int | tuple[int, int] | None = None,
    fit: str | None = None,
    channels: int | None = None,
    observer: Observer | None = None,
) -> DataSet:
    """Load `mnist`, `fashion-mnist`, `sample` (7,000 digits of MNIST that come with the package), `auto`, a folder,
    or a pack.

    `auto` is MNIST if it can be had, else `sample`; `observer` is told which. `source` is a folder that holds the
    files of MNIST or Fashion-MNIST, and must then serve. A folder, named by its path, has a sub-folder for each class,
    or such sub-folders in `train`, `val` and `test`; its pictures become images of `size` (height and width, or one
    side for both) by the way `fit`, which is `crop`, `pad` or `stretch`, grey where all of them are unless `channels`
    says 1 or 3. A pack, which `pack` has made of a folder, is mapped. Raises `DataError`.
    """
    observer = observer or Observer()
    if is_path(name):
        if source is not None:
            raise DataError(f"{name} is read from where it lies: leave out --source")
        if os.path.isfile(name):
            data = open_pack(Path(name), size, fit, channels)
            observer.note(f"data: {data.origin}, images {times(data.train.images.shape[1:])} by --fit {data.pictures}")
            return data
        if name.endswith(SUFFIX) and not os.path.exists(name):
            raise DataError(
                f"there is no pack {printable(name)}: make it with branchwork data pack FOLDER --out {printable(name)}"
            )
        return _load_folder(Path(name), size, fit, channels, observer)
    if size is not None or fit is not None:
        raise DataError(f"{name} has images of one size: leave out --size and --fit, which are for folders")
    if name == "auto":
        try:
            data = _mnist(source, observer)
        except DataError as reason:
            if source is not None:
                raise
            observer.note(f"MNIST cannot be had, so the 7,000 embedded digits of `sample` are used.\n{reason}")
            return _sample()
        observer.note(f"data: MNIST, from {data.origin}")
        return data
    if name == "mnist":
        return _mnist(source, observer)
    if name == "fashion-mnist":
        return _from_files(
            FASHION_MNIST.name, *fetch(FASHION_MNIST, source, observer), GARMENTS, 0.2860, 0.3530, "garments"
        )
    if name == "sample":
        if source is not None:
            raise DataError("the sample comes with the package: leave out --source")
        return _sample()
    raise DataError(
        f"there is no data set called {name!r}.{nearest(name, NAMES)} Nor is there such a folder, by which your own "
        "images are named."
    )


def is_path(name: str) -> bool:
    """Whether a data argument is a place of people's own images; a folder called `mnist` is `./mnist`."""
    return name not in NAMES and (os.path.exists(name) or os.sep in name or name.endswith(SUFFIX))


def note_folder(report: FolderReport, target: Target, size: object, fit: object, observer: Observer) -> None:
    """Tell what was chosen for the user, what was left out, and what is tested on."""
    height, width = target.size
    chosen = " and ".join(flag for flag, given in (("--size", size), ("--fit", fit)) if given is None)
    lines = [
        f"{report.folder}: {report.files:,} pictures, as {times(target.shape)} by --size {height}x{width} "
        f"--fit {target.pictures}" + f" ({chosen} chosen for you)" * bool(chosen)
    ]
    # What is hidden is meant to be.
    kinds = Counter(problem.kind for problem in report.problems if problem.left_out and problem.kind != "hidden")
    if kinds:
        found = ", ".join(f"{kind} {count:,}" for kind, count in kinds.items())
        lines.append(f"left out: {found}; branchwork data {report.folder} names each")
    if report.held_out:
        lines.append(f"there is no test folder: {report.held_out:.0%} of each class are held out to test on")
    observer.note("\n".join(lines))


def _load_folder(
    folder: Path, size: int | tuple[int, int] | None, fit: str | None, channels: int | None, observer: Observer
) -> DataSet:
    layout, target = survey(folder, size, fit, channels, observer)
    needed, free = 2 * len(layout.files) * target.bytes, available_memory()
    if free is not None and needed > free:
        raise DataError(
            f"{folder} takes {needed / 1e9:.1f} GB as images of {times(target.shape)}, and {free / 1e9:.1f} GB of "
            f"memory are free: make a pack with branchwork data pack {folder}, and name that as --data"
        )
    images = np.empty((len(layout.files), *target.shape), np.uint8)
    records = []
    for row, (record, image) in enumerate(read_layout(layout, target, observer)):
        images[row] = image
        records.append(record)
    judgement = judge(layout, records, target)
    note_folder(judgement.report, target, size, fit, observer)
    everything = torch.from_numpy(images)
    splits = {split: Split(everything[rows], judgement.labels[split]) for split, rows in judgement.rows.items()}
    return DataSet(
        name=title_of(folder),
        train=splits["train"],
        test=splits["test"],
        classes=judgement.classes,
        mean=judgement.mean,
        std=judgement.std,
        pictures=target.pictures,
        origin=f"the folder {printable(folder)}",
        validation=splits.get("validation"),
        path=os.path.abspath(folder),
        report=judgement.report,
    )


def _mnist(source: Path | None, observer: Observer) -> DataSet:
    return _digits(MNIST.name, *fetch(MNIST, source, observer))


def _sample() -> DataSet:
    folder = resources.files("branchwork") / "datasets/sample"
    files = {name: lzma.decompress((folder / f"{name}.xz").read_bytes()) for name in MNIST.md5}
    return _digits("sample", files, "the package itself")


def _digits(name: str, files: Bytes, origin: str) -> DataSet:
    # The lecture's constants, which are MNIST's own mean and standard deviation.
    return _from_files(name, files, origin, DIGITS, 0.1307, 0.3081, "digits")


def _from_files(
    name: str, files: Bytes, origin: str, classes: tuple[str, ...], mean: float, std: float, pictures: str
) -> DataSet:
    def split(prefix: str) -> Split:
        images, labels = (
            from_idx(files[name], name, rank_of(name))
            for name in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte")
        )
        # A copy, because torch needs memory that may be written to.
        return Split(torch.from_numpy(images.copy()).unsqueeze(1), torch.from_numpy(labels.astype("int64")))

    return DataSet(name, split("train"), split("t10k"), classes, (mean,), (std,), pictures, origin)


def known_source(name: str) -> Source | None:
    """The files behind a data set that is fetched; None for one that comes with the package."""
    return {source.name: source for source in (MNIST, FASHION_MNIST)}.get(name)
