"""A data set: images with labels, in memory or mapped from a file that may be larger than memory."""

import mmap
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from branchwork.language import mark

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = (mark("train"), mark("validation"), mark("test"))


@dataclass(frozen=True)
class MappedImages:
    """Images uint8 N×C×H×W in a file: the `rows`, int64 N, of the mapped array `base`.

    Indexing reads only the selected images into memory, and moves them to `device`. `checksum` is the checksum of
    `base`, stored so that a file larger than memory can be identified without reading it. `mapping` is the memory
    behind `base`, which holds repeated channels once.
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
        """Return C×H×W for a number, else N×C×H×W."""
        rows = self.rows[index.cpu() if isinstance(index, Tensor) else index].numpy()
        if rows.ndim == 0:
            return torch.from_numpy(np.array(self.base[rows])).to(self.device)
        # Read in the order of the file, which suits a disk best, and return in the order that was asked for.
        order = np.argsort(rows)
        self._prefetch(rows[order])
        # From pinned memory, the copy to a GPU is asynchronous.
        pinned = self.device.type == "cuda"
        images = torch.empty((len(rows), *self.base.shape[1:]), dtype=torch.uint8, pin_memory=pinned)
        places = images.numpy()
        for position in order:
            places[position] = self.base[rows[position]]
        return images.to(self.device, non_blocking=pinned)

    def _prefetch(self, rows: NDArray[np.int64]) -> None:
        """Let the disk begin with all `rows`, in ascending order, at once; image by image it would wait for each."""
        if self.mapping is None or not hasattr(self.mapping, "madvise") or not len(rows):
            return
        size = len(self.mapping) // len(self.base)
        starts = rows * size // mmap.PAGESIZE * mmap.PAGESIZE
        ends = np.minimum(-((rows + 1) * size // -mmap.PAGESIZE) * mmap.PAGESIZE, len(self.mapping))
        # A system call costs as much as copying an image, so neighbours share one.
        gaps = np.flatnonzero(starts[1:] > ends[:-1])
        for start, end in zip(starts[[0, *gaps + 1]].tolist(), ends[[*gaps, -1]].tolist(), strict=True):
            self.mapping.madvise(mmap.MADV_WILLNEED, start, end - start)

    def pick(self, indices: Tensor) -> "MappedImages":
        return replace(self, rows=self.rows[indices])

    def expand(self, channels: int) -> "MappedImages":
        """Return the same grey images with equal `channels`, which are no copies."""
        return replace(self, base=np.broadcast_to(self.base, (len(self.base), channels, *self.base.shape[2:])))

    def to(self, device: torch.device) -> "MappedImages":
        """Return the same images, which arrive on `device` batch by batch."""
        return replace(self, device=device)


Images = Tensor | MappedImages


@dataclass(frozen=True)
class Split:
    """Images uint8 N×C×H×W and their labels int64 N."""

    images: Images
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def index_device(self) -> torch.device:
        """The device on which `pick` wants indices: the CPU for mapped images, so that none is copied from a GPU."""
        return torch.device("cpu") if isinstance(self.images, MappedImages) else self.labels.device

    def pick(self, indices: Tensor) -> "Split":
        images = self.images.pick(indices) if isinstance(self.images, MappedImages) else self.images[indices]
        return Split(images, self.labels[indices])

    def expand(self, channels: int) -> "Split":
        """Return the same grey images with equal `channels`, which are no copies."""
        images = self.images
        return Split(
            images.expand(channels) if isinstance(images, MappedImages) else images.expand(-1, channels, -1, -1),
            self.labels,
        )

    def checksum(self) -> int:
        """Return the CRC-32 of images, order and labels, without reading mapped images."""
        if isinstance(self.images, MappedImages):
            start = zlib.crc32(self.images.rows.numpy().tobytes(), self.images.checksum)
        else:
            start = zlib.crc32(self.images.numpy().tobytes())
        return zlib.crc32(self.labels.numpy().tobytes(), start)


@dataclass(frozen=True)
class FolderProblem:
    """Something wrong with one file or folder: a short `kind`, its `path` within the data, and a sentence.

    Whatever is `left_out` is neither trained nor tested on; otherwise the problem is only worth knowing.
    """

    kind: str
    path: str
    message: str
    left_out: bool = True


@dataclass(frozen=True)
class PictureSizes:
    """Smallest, median and largest width and height of the upright pictures, in pixels."""

    widths: tuple[int, int, int]
    heights: tuple[int, int, int]


@dataclass(frozen=True)
class FolderReport:
    """What decoding every file of a folder of pictures has shown.

    `counts` is usable images by class name for each split. `files` is the number of pictures, `left_out` the number
    of them that are not used. `held_out` is the fraction of every class that was moved from the training to the test
    images, 0 if the folder has test images of its own. `oddities` counts the files that were converted to 8-bit grey
    or RGB, by their kind.
    """

    folder: str
    counts: dict[str, dict[str, int]]
    files: int
    left_out: int
    held_out: float
    sizes: PictureSizes
    oddities: dict[str, int]
    problems: tuple[FolderProblem, ...]


@dataclass(frozen=True)
class DataSet:
    """Training and test images with their labels.

    `mean` and `std` normalise pixels in [0, 1], one number per channel. `pictures` names the method that turns any
    picture into an image like these (one of `placing.METHODS`). `origin` describes where the files came from.
    `path` is the folder or pack of a user's own images, and `report` what was found there. `validation` is None if
    it must be held out of the training images.
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
    report: FolderReport | None = None

    def expand(self, channels: int) -> "DataSet":
        """Return the same data with equal `channels` if they are grey, else as they are."""
        if self.channels != 1 or channels == 1:
            return self
        return replace(
            self,
            train=self.train.expand(channels),
            test=self.test.expand(channels),
            validation=None if self.validation is None else self.validation.expand(channels),
            mean=self.mean * channels,
            std=self.std * channels,
        )

    @property
    def argument(self) -> str:
        """The data argument that loads it again."""
        return self.path or self.name

    @property
    def channels(self) -> int:
        return self.train.images.shape[1]

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width."""
        return self.train.images.shape[2], self.train.images.shape[3]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """The shape of one image, C×H×W."""
        return (self.channels, *self.image_size)
