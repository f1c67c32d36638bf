"""A pack: a data set in one file, which is mapped into memory and may be larger than it.

The file holds, one after the other: the images, uint8 N×C×H×W; the split and the class of each, int32 N×2 (−1 if it is
left out); the header, JSON; the header's length and checksum; and `MAGIC`. The header comes last, so that a file that
was cut off is recognised, and the images can be written before anything is known about all of them.
"""

import json
import math
import mmap
import os
import shutil
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from branchwork.datasets.checking import UsableFiles, read_layout, select_usable, survey
from branchwork.datasets.dataset import SPLITS, DataSet, FolderReport, MappedImages, Split
from branchwork.datasets.folder import FolderLayout, title_of
from branchwork.datasets.placing import METHODS
from branchwork.datasets.reading import ImageFormat
from branchwork.errors import DataError, system_words
from branchwork.files import hold_lock, make_folder, move_together, parse_json, printable, reading
from branchwork.language import mark, say, times
from branchwork.observer import Observer
from branchwork.screen import watch
from branchwork.shown import Shown

SUFFIX = ".pack"
MAGIC = b"BWPACK01"
_END = struct.Struct("<QI8s")
_CHUNK = 1 << 24
_REMEDY = mark("copy it again, or pack its folder again")


@dataclass(frozen=True)
class Packed(Shown):
    """A pack that was written: `images` of them can be used, each of `image_shape`, fitted by `pictures`."""

    file: str
    bytes: int
    images: int
    image_shape: tuple[int, int, int]
    pictures: str
    report: FolderReport


@dataclass(frozen=True)
class _PackHeader:
    name: str
    folder: str
    shape: tuple[int, int, int, int]
    classes: tuple[str, ...]
    pictures: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    images_crc32: int
    index_crc32: int
    report: FolderReport

    def __post_init__(self) -> None:
        channels = self.shape[1]
        in_range = all(0 <= mean <= 1 for mean in self.mean) and all(0 < std <= 1 for std in self.std)
        if channels not in (1, 3) or not len(self.mean) == len(self.std) == channels or not in_range:
            raise ValueError(say("its image size, channels, mean and standard deviation do not match"))
        repeated = len(set(self.classes)) < len(self.classes)
        if len(self.classes) < 2 or repeated or self.pictures not in METHODS:
            raise ValueError(say("its class names are missing or repeated, or its way of placing pictures is unknown"))


def pack(
    folder: str | Path,
    *,
    out: str | Path | None = None,
    size: int | tuple[int, int] | None = None,
    fit: str | None = None,
    progress: bool | Observer = False,
) -> Packed:
    """Decode every file of `folder` once into the pack `out`, by default NAME.pack; the rest is as for `load_data`.

    The pack appears under its name only once it is whole. Raises `DataError` if the folder cannot be used or `out`
    exists, and if the disk has too little space, before anything is written.
    """
    observer = watch(progress)
    path = Path(f"{title_of(Path(folder))}{SUFFIX}") if out is None else Path(out)
    if path.suffix != SUFFIX:
        raise DataError("a pack's name must end in {suffix}, got {path}", suffix=SUFFIX, path=printable(path))
    if os.path.lexists(path):
        raise DataError("{path} already exists: delete it, or choose another --out", path=printable(path))
    layout, image_format = survey(Path(folder), observer, size=size, fit=fit)
    part = path.with_name(f".{path.name}.part")
    with (
        _writing(path),
        hold_lock(
            path.with_name(f".{path.name}.lock"), say("is writing {path}", path=printable(path)), error=DataError
        ),
    ):
        try:
            part.unlink(missing_ok=True)  # a process that was killed has left it
            _check_space(path, len(layout.files) * (image_format.bytes + 8) + 1_000_000)
            usable = _write(part, layout, image_format, observer=observer)
            move_together([(part, path)], error=DataError)
        finally:
            part.unlink(missing_ok=True)
        return Packed(
            file=str(path),
            bytes=path.stat().st_size,
            images=sum(len(rows) for rows in usable.rows.values()),
            image_shape=image_format.shape,
            pictures=image_format.method,
            report=usable.report,
        )


def open_pack(
    path: Path, *, size: int | tuple[int, int] | None = None, fit: str | None = None, channels: int | None = None
) -> DataSet:
    """Return the data set in a pack, with its images mapped. Size, fit and channels must be those of the pack.

    Grey images can also be opened with three equal `channels`. Raises `DataError`, also if the file is cut off or
    damaged at its end; `verify_pack` checks all of it.
    """
    header, index = _read_header(path)
    _, *shape = header.shape
    size = (size, size) if isinstance(size, int) else size
    for flag, wanted, actual in (("--fit", fit, header.pictures), ("--size", size, tuple(shape[1:]))):
        if wanted is not None and wanted != actual:
            raise DataError(
                "{path} was packed with {flag} {actual}, and {wanted} is needed: pack {folder} again with that",
                path=printable(path),
                flag=flag,
                actual=_as_typed(actual),
                wanted=_as_typed(wanted),
                folder=header.folder,
            )
    if channels is not None and channels < shape[0]:
        raise DataError(
            "{path} has colour images, but grey ones are needed: name {folder} itself",
            path=printable(path),
            folder=header.folder,
        )
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), math.prod(header.shape), access=mmap.ACCESS_READ)
    if hasattr(mapped, "madvise"):
        # Images are read in random order: the system would read megabytes ahead that nobody wants.
        mapped.madvise(mmap.MADV_RANDOM)
    base = np.frombuffer(mapped, np.uint8).reshape(header.shape)
    splits = {}
    for number, name in enumerate(SPLITS):
        if name in header.report.counts:
            rows = np.flatnonzero(index[:, 0] == number)
            images = MappedImages(base, torch.from_numpy(rows), header.images_crc32, mapped)
            splits[name] = Split(images, torch.from_numpy(index[rows, 1].astype(np.int64)))
    return DataSet(
        name=header.name,
        train=splits["train"],
        test=splits["test"],
        classes=header.classes,
        mean=header.mean,
        std=header.std,
        pictures=header.pictures,
        origin=say("the pack {path}, made from {folder}", path=printable(path), folder=header.folder),
        validation=splits.get("validation"),
        path=os.path.abspath(path),
        report=header.report,
    ).expand(channels or shape[0])


def verify_pack(path: Path, observer: Observer) -> None:
    """Read the whole pack, with bounded memory. Raises `DataError` if its images are not those that were packed."""
    header, _ = _read_header(path)
    left = total = math.prod(header.shape)
    checksum = 0
    title = say("verifying {name}, in MB", name=printable(path.name))
    try:
        with reading(path, error=DataError, remedy=_REMEDY), open(path, "rb") as file:
            while chunk := file.read(min(_CHUNK, left)):
                checksum, left = zlib.crc32(chunk, checksum), left - len(chunk)
                observer.count(title, (total - left) // 1_000_000, total // 1_000_000)
            if checksum != header.images_crc32:
                raise ValueError(say("its images are not those that were packed"))
    finally:
        observer.count_end()


def _write(part: Path, layout: FolderLayout, image_format: ImageFormat, *, observer: Observer) -> UsableFiles:
    records, checksum = [], 0
    with part.open("wb") as file:
        for record, image in read_layout(layout, image_format, observer):
            file.write(image.tobytes())
            checksum = zlib.crc32(image.tobytes(), checksum)
            records.append(record)
        usable = select_usable(layout, records, image_format)
        index = np.full((len(layout.files), 2), -1, np.int32)
        for split, rows in usable.rows.items():
            index[rows.numpy(), 0] = SPLITS.index(split)
            index[rows.numpy(), 1] = usable.labels[split].numpy()
        header = _PackHeader(
            name=title_of(layout.folder),
            folder=printable(os.path.abspath(layout.folder)),
            shape=(len(layout.files), *image_format.shape),
            classes=usable.classes,
            pictures=image_format.method,
            mean=usable.mean,
            std=usable.std,
            images_crc32=checksum,
            index_crc32=zlib.crc32(index.tobytes()),
            report=usable.report,
        )
        text = json.dumps(asdict(header), ensure_ascii=False).encode()
        file.write(index.tobytes() + text + _END.pack(len(text), zlib.crc32(text), MAGIC))
    return usable


def _read_header(path: Path) -> tuple[_PackHeader, NDArray[np.int32]]:
    """Return the header, and the split and class of each image. Raises `DataError`."""
    with reading(path, error=DataError, remedy=_REMEDY), open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _END.size))
        end = file.read(_END.size)
        if len(end) < _END.size or not end.endswith(MAGIC):
            raise DataError(
                "{path} is not a pack, or was cut off: copy it again, or make one with branchwork data pack FOLDER",
                path=printable(path),
            )
        length, checksum, _ = _END.unpack(end)
        file.seek(max(0, size - _END.size - length))
        text = file.read(min(length, size))
        if zlib.crc32(text) != checksum:
            raise ValueError(say("the checksum of its header is wrong"))
        header = parse_json(text, _PackHeader, path, error=DataError, remedy=_REMEDY)
        count = header.shape[0]
        start = math.prod(header.shape)
        if min(header.shape) < 1 or start + 8 * count + length + _END.size != size:
            shape = times(header.shape)
            raise ValueError(say("it has {size:,} bytes, but its header says {shape} images", size=size, shape=shape))
        file.seek(start)
        content = file.read(8 * count)
        if zlib.crc32(content) != header.index_crc32:
            raise ValueError(say("the checksum of its labels is wrong"))
        index = np.frombuffer(content, np.int32).reshape(count, 2)
        _check_index(header, index)
    return header, index


def _check_index(header: _PackHeader, index: NDArray[np.int32]) -> None:
    """Raise `ValueError` unless the splits and classes in `index` are those that the header counts."""
    report, classes = header.report, header.classes
    splits, labels = index[index[:, 0] != -1].T
    counts = {}
    if (np.isin(splits, range(len(SPLITS))) & np.isin(labels, range(len(classes)))).all():
        for number in np.unique(splits):
            count = np.bincount(labels[splits == number], minlength=len(classes)).tolist()
            counts[SPLITS[number]] = dict(zip(classes, count, strict=True))
    if (counts, len(index), len(index) - len(splits)) != (report.counts, report.files, report.left_out):
        raise ValueError(say("its labels are not those that its header counts"))
    if not {"train", "test"} <= counts.keys() or 0 in counts["train"].values():
        raise ValueError(say("a class has no training image, or no class has one to test on"))


def _check_space(path: Path, needed: int) -> None:
    free = shutil.disk_usage(path.absolute().parent).free
    if free < needed:
        raise DataError(
            "{path} takes {needed:,.0f} MB, but only {free:,.0f} MB are free there: free some "
            "space, choose another --out, or a smaller --size",
            path=printable(path),
            needed=needed / 1000000.0,
            free=free / 1000000.0,
        )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Make the folder of `path`; turn what the system refuses there into a `DataError`."""
    try:
        make_folder(path.absolute().parent)
        yield
    except OSError as reason:
        raise DataError(
            "cannot write {path}: {strerror}. Free some space, or choose another --out",
            path=printable(path),
            strerror=system_words(reason),
        ) from reason


def _as_typed(value: str | tuple[int, ...]) -> str:
    return value if isinstance(value, str) else "x".join(map(str, value))
