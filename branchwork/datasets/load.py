"""From a data argument to a data set in memory."""

import lzma
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import torch
from torch import Tensor

from branchwork.datasets.idx import from_idx, rank_of
from branchwork.datasets.sources import FASHION_MNIST, MNIST, Bytes, Source, fetch
from branchwork.errors import DataError, nearest
from branchwork.observer import Observer

DIGITS = tuple("0123456789")
GARMENTS = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


@dataclass(frozen=True)
class Split:
    """Images uint8 N×C×H×W and their labels int64 N."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def pick(self, indices: Tensor) -> "Split":
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class DataSet:
    """A data set in memory.

    `mean` and `std` normalise pixels that lie in [0, 1], one number a channel. `pictures` names the way by which a
    picture from elsewhere becomes an image like these (see `placing.py`). `origin` says in words where the files
    came from.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pictures: str
    origin: str

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        return self.train.images.shape[2], self.train.images.shape[3]


def load_data(name: str = "auto", *, source: Path | None = None, observer: Observer | None = None) -> DataSet:
    """Load `mnist`, `fashion-mnist`, `sample` (7,000 digits of MNIST that come with the package), or `auto`.

    `auto` is MNIST if it can be had, else `sample`; `observer` is told which. `source` is a folder that holds the
    files of MNIST or Fashion-MNIST, and must then serve. Raises `DataError`.
    """
    observer = observer or Observer()
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
        f"there is no data set called {name!r}.{nearest(name, ('auto', 'mnist', 'fashion-mnist', 'sample'))}"
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
