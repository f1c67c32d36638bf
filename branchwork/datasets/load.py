"""From a data argument to a data set."""

import lzma
import os
from collections import Counter
from importlib import resources
from pathlib import Path

import numpy as np
import torch

from branchwork.datasets.checking import read_layout, select_usable, survey
from branchwork.datasets.cifar import CIFAR10, CLASSES, RECORD, TEST, TRAIN
from branchwork.datasets.dataset import DataSet, FolderReport, Split
from branchwork.datasets.folder import title_of
from branchwork.datasets.pack import SUFFIX, open_pack
from branchwork.datasets.sources import FASHION_MNIST, MNIST, Files, fetch, read_idx
from branchwork.errors import DataError, nearest
from branchwork.files import available_memory, check_permission, printable, typed
from branchwork.language import say, times
from branchwork.observer import Observer
from branchwork.screen import watch

NAMES = ("auto", "mnist", "fashion-mnist", "cifar10", "sample")
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
    progress: bool | Observer = False,
) -> DataSet:
    """Load `mnist`, `fashion-mnist`, `cifar10`, `sample` (7,000 digits of MNIST that come with the package), `auto`, a
    folder, or a pack.

    `auto` is MNIST if it is available, else `sample`; a note to `progress` says which. `source` is a folder with the
    files of MNIST, Fashion-MNIST or CIFAR-10: only the cache is tried before it, and nothing after it. A folder, named
    by its path, has a sub-folder for each class, or such sub-folders in `train`, `val` and `test`. Its pictures become
    images of `size` (height and width, or one side for both), fitted by `fit`: `crop`, `pad` or `stretch`. They are
    grey if all pictures are, unless `channels` says 1 or 3. A pack, made from a folder by `pack`, is memory-mapped.
    Raises `DataError`.
    """
    observer = watch(progress)
    if is_path(name):
        if source is not None:
            raise DataError("{name} is read in place: leave out --source", name=name)
        check_permission(name, error=DataError)
        if os.path.isfile(name):
            data = open_pack(Path(name), size=size, fit=fit, channels=channels)
            observer.note(
                say(
                    "data: {origin}, images {shape} by --fit {pictures}",
                    origin=data.origin,
                    shape=times(data.train.images.shape[1:]),
                    pictures=data.pictures,
                )
            )
            return data
        if name.endswith(SUFFIX) and not os.path.exists(name):
            raise DataError(
                "there is no pack {name}: make it with branchwork data pack FOLDER --out {name}", name=typed(name)
            )
        return _load_folder(Path(name), size=size, fit=fit, channels=channels, observer=observer)
    if size is not None or fit is not None:
        raise DataError("{name} has images of one size: leave out --size and --fit, which are for folders", name=name)
    if name == "auto":
        return _load_mnist_or_sample(source, observer)
    if name == "mnist":
        return _digits(name, *fetch(MNIST, source, observer))
    if name == "fashion-mnist":
        files, origin = fetch(FASHION_MNIST, source, observer)
        train, test = _splits(files)
        return DataSet(name, train, test, GARMENTS, (0.2860,), (0.3530,), "garments", origin)
    if name == "cifar10":
        return _load_cifar10(*fetch(CIFAR10, source, observer))
    if name == "sample":
        if source is not None:
            raise DataError("the sample comes with the package: leave out --source")
        return _load_sample()
    raise DataError(
        "there is no data set called {name!r}.{hint} To use your own images, name their folder.",
        name=name,
        hint=nearest(name, NAMES),
    )


def is_path(name: str) -> bool:
    """Return whether a data argument is the path of a user's own images. A folder called `mnist` is `./mnist`."""
    return name not in NAMES and (os.path.exists(name) or os.path.dirname(name) != "" or name.endswith(SUFFIX))


def _load_folder(
    folder: Path, *, size: int | tuple[int, int] | None, fit: str | None, channels: int | None, observer: Observer
) -> DataSet:
    layout, image_format = survey(folder, observer, size=size, fit=fit, channels=channels)
    needed, free = 2 * len(layout.files) * image_format.bytes, available_memory()
    if free is not None and needed > free:
        raise DataError(
            "{folder} takes {needed:.1f} GB as images of {shape}, but only "
            "{free:.1f} GB of memory are free: make a pack with branchwork data pack {folder}, "
            "and name that as --data",
            folder=typed(folder),
            needed=needed / 1000000000.0,
            shape=times(image_format.shape),
            free=free / 1000000000.0,
        )
    images = np.empty((len(layout.files), *image_format.shape), np.uint8)
    records = []
    for row, (record, image) in enumerate(read_layout(layout, image_format, observer)):
        images[row] = image
        records.append(record)
    usable = select_usable(layout, records, image_format)
    chosen = ", ".join(flag for flag, value in (("--size", size), ("--fit", fit)) if value is None)
    height, width = image_format.size
    words = say(
        "{folder}: {files:,} pictures, as {shape} by {flags} ({chosen} chosen automatically)"
        if chosen
        else "{folder}: {files:,} pictures, as {shape} by {flags}",
        folder=usable.report.folder,
        files=usable.report.files,
        shape=times(image_format.shape),
        flags=f"--size {height}x{width} --fit {image_format.method}",
        chosen=chosen,
    )
    observer.note("\n".join([words, *_left_out_and_held_out(usable.report)]))
    everything = torch.from_numpy(images)
    splits = {split: Split(everything[rows], usable.labels[split]) for split, rows in usable.rows.items()}
    return DataSet(
        name=title_of(folder),
        train=splits["train"],
        test=splits["test"],
        classes=usable.classes,
        mean=usable.mean,
        std=usable.std,
        pictures=image_format.method,
        origin=say("the folder {folder}", folder=printable(folder)),
        validation=splits.get("validation"),
        path=os.path.abspath(folder),
        report=usable.report,
    )


def _left_out_and_held_out(report: FolderReport) -> list[str]:
    lines = []
    # Hidden files are meant to be hidden.
    kinds = Counter(problem.kind for problem in report.problems if problem.left_out and problem.kind != "hidden")
    if kinds:
        counts = ", ".join(f"{say(kind)} {count:,}" for kind, count in kinds.items())
        lines.append(
            say(
                "left out: {counts}; branchwork data {folder} lists each one",
                counts=counts,
                folder=typed(report.folder),
            )
        )
    if report.held_out:
        lines.append(held_out_words(report))
    return lines


def held_out_words(report: FolderReport) -> str:
    return say("there is no test folder: {share:.0%} of each class are held out for testing", share=report.held_out)


def _load_mnist_or_sample(source: Path | None, observer: Observer) -> DataSet:
    try:
        data = _digits("mnist", *fetch(MNIST, source, observer))
    except DataError as reason:
        if source is not None:
            raise
        observer.note(
            say("MNIST is not available, so the 7,000 built-in digits of `sample` are used.\n{reason}", reason=reason)
        )
        return _load_sample()
    observer.note(say("data: MNIST, from {origin}", origin=data.origin))
    return data


def _load_sample() -> DataSet:
    folder = resources.files("branchwork") / "datasets/sample"
    files = {name: lzma.decompress((folder / f"{name}.xz").read_bytes()) for name in MNIST.md5}
    return _digits("sample", files, say("the package itself"))


def _digits(name: str, files: Files, origin: str) -> DataSet:
    train, test = _splits(files)
    # The lecture's constants, which are MNIST's own mean and standard deviation.
    return DataSet(name, train, test, DIGITS, (0.1307,), (0.3081,), "digits", origin)


def _load_cifar10(files: Files, origin: str) -> DataSet:
    train, test = (
        Split(
            torch.from_numpy(records[:, 1:].copy().reshape(-1, 3, 32, 32)),
            torch.from_numpy(records[:, 0].astype(np.int64)),
        )
        for records in (np.frombuffer(files[name], np.uint8).reshape(-1, RECORD) for name in (TRAIN, TEST))
    )
    mean, std = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return DataSet("cifar10", train, test, CLASSES, mean, std, "crop", origin)


def _splits(files: Files) -> tuple[Split, Split]:
    arrays = {name: read_idx(content, name) for name, content in files.items()}
    train, test = (
        # A copy, because torch needs writable memory.
        Split(torch.from_numpy(arrays[f"{prefix}-images-idx3-ubyte"].copy()).unsqueeze(1),
              torch.from_numpy(arrays[f"{prefix}-labels-idx1-ubyte"].astype(np.int64)))
        for prefix in ("train", "t10k")
    )  # fmt: skip
    return train, test
