"""What a data set is: images with labels, in memory or mapped from a file that may be larger than memory."""

import mmap
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:
    from branchwork.datasets.report import FolderReport


@dataclass(frozen=True)
class Mapped:
    """Images uint8 N×C×H×W that lie in a file: those `rows`, int64 N, of the mapped array `base`.

    Indexing reads the images that are asked for, and no others, into memory and onto `device`. `checksum` is that of
    `base`, kept beside it, so that a file larger than memory need not be read to be known. `mapping` is what `base`
    fills; channels that repeat lie there once.
    """

    base: NDArray[np.uint8]
    rows: Tensor
    checksum: int
    mapping: mmap.mmap | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.rows), *self.base.shape[1:]))

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | slice | Tensor | Sequence[int]) -> Tensor:
        """A tensor C×H×W for a number, else N×C×H×W."""
        rows = self.rows[index.cpu() if isinstance(index, Tensor) else index].numpy()
        if rows.ndim == 0:
            return torch.from_numpy(np.array(self.base[rows])).to(self.device)
        # In the order of the file, which is how a disk reads best, and into the order that was asked for.
        order = np.argsort(rows)
        self._announce(rows[order])
        images = np.empty((len(rows), *self.base.shape[1:]), np.uint8)
        for place in order:
            images[place] = self.base[rows[place]]
        return torch.from_numpy(images).to(self.device)

    def _announce(self, rows: NDArray[np.int64]) -> None:
        """Let the disk begin with all `rows`, which ascend, at once: image by image, it would wait for each."""
        if self.mapping is None or not hasattr(self.mapping, "madvise") or not len(rows):
            return
        size = len(self.mapping) // len(self.base)
        starts = rows * size // mmap.PAGESIZE * mmap.PAGESIZE
        ends = np.minimum(-((rows + 1) * size // -mmap.PAGESIZE) * mmap.PAGESIZE, len(self.mapping))
        # Each call to the system costs as much as copying an image: neighbours go into one.
        gaps = np.flatnonzero(starts[1:] > ends[:-1])
        for start, end in zip(starts[[0, *gaps + 1]].tolist(), ends[[*gaps, -1]].tolist(), strict=True):
            self.mapping.madvise(mmap.MADV_WILLNEED, start, end - start)

    def pick(self, indices: Tensor) -> "Mapped":
        return replace(self, rows=self.rows[indices])

    def to(self, device: torch.device) -> "Mapped":
        """The same images, which arrive on `device` batch by batch."""
        return replace(self, device=device)


Images = Tensor | Mapped


@dataclass(frozen=True)
class Split:
    """Images uint8 N×C×H×W and their labels int64 N."""

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def pick(self, indices: Tensor) -> "Split":
        images = self.images.pick(indices) if isinstance(self.images, Mapped) else self.images[indices]
        return Split(images, self.labels[indices])

    def checksum(self) -> int:
        """Of images, order and labels; mapped images are not read for it."""
        if isinstance(self.images, Mapped):
            start = zlib.crc32(self.images.rows.numpy().tobytes(), self.images.checksum)
        else:
            start = zlib.crc32(self.images.numpy().tobytes())
        return zlib.crc32(self.labels.numpy().tobytes(), start)


@dataclass(frozen=True)
class DataSet:
    """A data set in memory, or in a mapped file.

    `mean` and `std` normalise pixels that lie in [0, 1], one number a channel. `pictures` names the way by which a
    picture from elsewhere becomes an image like these (one of `images.WAYS`). `origin` says in words where the files
    came from. `path` is the folder or pack that people's own images came from, and `report` what was found there.
    `validation` is None where it is to be taken from the training images.
    """

    name: str
    train: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    pictures: str
    origin: str
    validation: Split | None = None
    path: str | None = None
    report: "FolderReport | None" = None

    @property
    def argument(self) -> str:
        """What `load_data` is given to load it again."""
        return self.path or self.name

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        return self.train.images.shape[2], self.train.images.shape[3]
