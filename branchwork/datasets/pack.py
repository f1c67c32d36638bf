"""A pack: a data set in one file, which is mapped into memory and may be larger than it.

The file holds, one after the other: the images as they are, uint8 N×C×H×W; for each of them its part and its class,
int32 N×2 (−1 where it is left out); the header, JSON; the header's length and checksum; and `MAGIC`. The end comes
last, so that a file that was cut off is known, and images can be added while it is written.
"""

import hashlib
import json
import mmap
import os
import shutil
import struct
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

from branchwork.datasets.checking import Judgement, judge, read_layout, survey
from branchwork.datasets.folder import Layout, title_of
from branchwork.datasets.reading import Record, Target
from branchwork.datasets.report import SPLITS, FolderReport, Problem, Sizes
from branchwork.datasets.split import DataSet, Mapped, Split
from branchwork.errors import DataError, Interrupted
from branchwork.files import hold_lock, move_together, printable, read_fields
from branchwork.language import times
from branchwork.observer import Observer

SUFFIX = ".pack"
# Bytes that each image takes beside its pixels while a pack is written: its line in the journal, and in the index.
_BESIDE = 300
MAGIC = b"BWPACK01"
_END = struct.Struct("<QI8s")
# Seconds of packing that a power cut may cost.
_SYNC_SECONDS = 5.0
_CHUNK = 1 << 24


@dataclass(frozen=True)
class Packed:
    """A pack that was written: `images` of them can be used, each of `image_shape`, brought to it by `pictures`."""

    file: str
    bytes: int
    images: int
    image_shape: tuple[int, int, int]
    pictures: str
    report: FolderReport


@dataclass(frozen=True)
class _Header:
    name: str
    folder: str
    shape: tuple[int, int, int, int]
    classes: tuple[str, ...]
    pictures: str
    mean: tuple[float, ...]
    std: tuple[float, ...]
    images_crc32: int
    index_crc32: int
    report: dict[str, Any]


def pack(
    folder: str | Path,
    *,
    out: str | Path | None = None,
    size: int | tuple[int, int] | None = None,
    fit: str | None = None,
    observer: Observer | None = None,
) -> Packed:
    """Decode every file of `folder` once, into the pack `out`, by default NAME.pack; the rest is as for `load_data`.

    It appears under its name only when it is whole. Where packing was stopped in any way, the same call goes on.
    Raises `Interrupted` after Ctrl-C, and `DataError` for a folder that cannot be used, where `out` is there already,
    and where the disk has too little space, before anything is written.
    """
    observer = observer or Observer()
    path = Path(f"{title_of(Path(folder))}{SUFFIX}") if out is None else Path(out)
    if path.suffix != SUFFIX:
        raise DataError(f"{printable(path)} cannot be the pack: name a file that ends in {SUFFIX}")
    if os.path.lexists(path):
        raise DataError(f"{printable(path)} is there already: delete it, or choose another --out")
    layout, target = survey(Path(folder), size, fit, None, observer)
    with _writing(path), _Part(path, _plan(layout, target), target) as part:
        if part.records:
            observer.note(f"{len(part.records):,} of {len(layout.files):,} files are packed already, and it goes on")
        _need_space(path, (len(layout.files) - len(part.records)) * (target.bytes + _BESIDE) + 1_000_000)
        try:
            for record, image in read_layout(layout, target, observer, len(part.records)):
                part.add(record, image.tobytes())
        except KeyboardInterrupt:
            part.sync()
            raise Interrupted(
                f"stopped after {len(part.records):,} of {len(layout.files):,} files: the same command goes on"
            ) from None
        judgement = judge(layout, part.records, target)
        part.finish(_ending(layout, target, judgement, part.checksum))
        file_bytes = path.stat().st_size
    return Packed(
        file=str(path),
        bytes=file_bytes,
        images=sum(len(rows) for rows in judgement.rows.values()),
        image_shape=target.shape,
        pictures=target.pictures,
        report=judgement.report,
    )


def open_pack(path: Path, size: object = None, fit: str | None = None, channels: int | None = None) -> DataSet:
    """The data set in a pack, with its images mapped. What is asked for must be what it was packed as.

    Grey images are had with three `channels`, too, which are equal. Raises `DataError`, also where the file is cut off
    or damaged at its end; `verify_pack` looks at all of it.
    """
    header, index = _read_ending(path)
    count, *shape = header.shape
    asked = {"--fit": (fit, header.pictures), "--size": (size, tuple(shape[1:]))}
    for what, (wanted, has) in asked.items():
        square = (wanted, wanted) if what == "--size" and isinstance(wanted, int) else wanted
        if wanted is not None and square != has:
            raise DataError(
                f"{printable(path)} was packed with {what} {_words(has)}, and {_words(wanted)} is needed: "
                f"pack {header.folder} again with that"
            )
    if channels is not None and channels < shape[0]:
        raise DataError(f"{printable(path)} has colour images, and grey ones are needed: name {header.folder} itself")
    repeats = 1 if channels is None else channels // shape[0]
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), count * int(np.prod(shape)), access=mmap.ACCESS_READ)
    if hasattr(mapped, "madvise"):
        # Images come in random order: what the system reads ahead would be megabytes that nobody wants.
        mapped.madvise(mmap.MADV_RANDOM)
    base = np.frombuffer(mapped, np.uint8).reshape(header.shape)
    base = np.broadcast_to(base, (count, repeats * shape[0], *shape[1:]))
    splits: list[Split | None] = []
    for number, name in enumerate(SPLITS):
        rows = torch.from_numpy(np.flatnonzero(index[:, 0] == number))
        labels = torch.from_numpy(index[rows.numpy(), 1].astype(np.int64))
        is_there = name in header.report["counts"]
        splits.append(Split(Mapped(base, rows, header.images_crc32, mapped), labels) if is_there else None)
    train, validation, test = splits
    assert train is not None and test is not None, "judge gives both"
    return DataSet(
        name=header.name,
        train=train,
        test=test,
        classes=header.classes,
        mean=repeats * header.mean,
        std=repeats * header.std,
        pictures=header.pictures,
        origin=f"the pack {printable(path)}, made from {header.folder}",
        validation=validation,
        path=os.path.abspath(path),
        report=_report(header.report),
    )


def verify_pack(path: Path, observer: Observer) -> None:
    """Read the whole pack, with bounded memory. Raises `DataError` where its images are not those that were packed."""
    header, _ = _read_ending(path)
    left = total = int(np.prod(header.shape))
    checksum = 0
    try:
        with open(path, "rb") as file:
            while left:
                chunk = file.read(min(_CHUNK, left))
                checksum, left = zlib.crc32(chunk, checksum), left - len(chunk)
                observer.count(
                    f"verifying {printable(path.name)}, in MB", (total - left) // 1_000_000, total // 1_000_000
                )
    finally:
        observer.count_end()
    if checksum != header.images_crc32:
        raise DataError(
            f"{printable(path)} is damaged: its images are not those that were packed. Pack {header.folder} again."
        )


class _Part:
    """A pack in the making, beside its place: images so far, and a journal with a line for each, which comes after.

    The journal's first line is the plan: another plan begins anew.
    """

    def __init__(self, path: Path, plan: str, target: Target) -> None:
        self.path, self.plan, self.target = path, plan, target
        self.images = path.with_name(f".{path.name}.part")
        self.journal = path.with_name(f".{path.name}.part.jsonl")
        self.records: list[Record] = []
        self.checksum = 0
        self.lines: list[str] = []  # of images that are written, and not yet synced

    def __enter__(self) -> "_Part":
        with _disk(self.path):
            self._load()
            self.file: BinaryIO = open(self.images, "r+b" if self.records else "wb")
            self.file.seek(len(self.records) * self.target.bytes)
            # Written anew, so that a torn last line is gone.
            lines = [self.plan, *map(self._line, self.records)]
            with open(self.journal, "w", encoding="utf-8") as journal:
                journal.writelines(f"{line}\n" for line in lines)
        self.synced = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        with _disk(self.path):
            self.file.close()

    def _load(self) -> None:
        """Take over what another process has left, as far as both files go."""
        if not os.path.isfile(self.journal) or not os.path.isfile(self.images):
            return
        plan, *lines = self.journal.read_text(encoding="utf-8", errors="replace").split("\n")
        if plan != self.plan:
            return
        for line in lines[: os.path.getsize(self.images) // self.target.bytes]:
            try:
                self.records.append(read_fields(Record, json.loads(line)))
            except (ValueError, TypeError):
                break
        with open(self.images, "rb") as file:
            left = len(self.records) * self.target.bytes
            while left:
                chunk = file.read(min(_CHUNK, left))
                self.checksum, left = zlib.crc32(chunk, self.checksum), left - len(chunk)

    @staticmethod
    def _line(record: Record) -> str:
        return json.dumps(asdict(record))

    def add(self, record: Record, image: bytes) -> None:
        with _disk(self.path):
            self.file.write(image)
        self.checksum = zlib.crc32(image, self.checksum)
        self.records.append(record)
        self.lines.append(self._line(record))
        if time.monotonic() - self.synced > _SYNC_SECONDS:
            self.sync()

    def sync(self) -> None:
        """The images first: a line in the journal says that its image is there."""
        with _disk(self.path):
            self.file.flush()
            os.fsync(self.file.fileno())
            with open(self.journal, "a", encoding="utf-8") as journal:
                journal.writelines(f"{line}\n" for line in self.lines)
                journal.flush()
                os.fsync(journal.fileno())
        self.lines.clear()
        self.synced = time.monotonic()

    def finish(self, ending: bytes) -> None:
        self.sync()
        with _disk(self.path):
            self.file.write(ending)
            self.file.truncate()  # what a process left that was stopped after this
            self.file.flush()
        move_together([(self.images, self.path)], error=DataError)
        self.journal.unlink()


def _plan(layout: Layout, target: Target) -> str:
    """One line that is another where the files, or what becomes of them, are others."""
    files = hashlib.blake2b(digest_size=16)
    for file in layout.files:
        try:
            status = os.stat(file.path)
            files.update(f"{file.shown}\0{status.st_size} {status.st_mtime_ns}\n".encode())
        except OSError:
            files.update(f"{file.shown}\n".encode())
    return json.dumps(
        {"folder": os.path.abspath(printable(layout.folder)), "files": files.hexdigest(), **asdict(target)}
    )


def _ending(layout: Layout, target: Target, judgement: Judgement, checksum: int) -> bytes:
    index = np.full((len(layout.files), 2), -1, np.int32)
    for number, split in enumerate(SPLITS):
        if split in judgement.rows:
            index[judgement.rows[split].numpy()] = np.stack(
                [np.full(len(judgement.rows[split]), number), judgement.labels[split].numpy()], 1
            )
    header = _Header(
        name=title_of(layout.folder),
        folder=printable(os.path.abspath(layout.folder)),
        shape=(len(layout.files), *target.shape),
        classes=judgement.classes,
        pictures=target.pictures,
        mean=judgement.mean,
        std=judgement.std,
        images_crc32=checksum,
        index_crc32=zlib.crc32(index.tobytes()),
        report=asdict(judgement.report),
    )
    text = json.dumps(asdict(header), ensure_ascii=False).encode()
    return index.tobytes() + text + _END.pack(len(text), zlib.crc32(text), MAGIC)


def _read_ending(path: Path) -> tuple[_Header, np.ndarray[Any, np.dtype[np.int32]]]:
    shown = printable(path)
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _END.size))
            end = file.read(_END.size)
            if len(end) < _END.size or not end.endswith(MAGIC):
                raise DataError(
                    f"{shown} is no pack, or was cut off: copy it again, or make one with branchwork data pack FOLDER"
                )
            length, checksum, _ = _END.unpack(end)
            file.seek(max(0, size - _END.size - length))
            text = file.read(min(length, size))
            if zlib.crc32(text) != checksum:
                raise ValueError("the checksum of its header is wrong")
            header = read_fields(_Header, json.loads(text))
            count = header.shape[0]
            start = int(np.prod(header.shape, dtype=object))
            if min(header.shape) < 1 or start + 8 * count + length + _END.size != size:
                raise ValueError(f"it has {size:,} bytes, and its header speaks of {times(header.shape)} images")
            file.seek(start)
            content = file.read(8 * count)
            if zlib.crc32(content) != header.index_crc32:
                raise ValueError("the checksum of its labels is wrong")
            _report(header.report)
            return header, np.frombuffer(content, np.int32).reshape(count, 2)
    except OSError as reason:
        raise DataError(f"{shown} cannot be read: {reason.strerror}") from reason
    except (ValueError, TypeError, LookupError, RecursionError) as reason:
        raise DataError(f"{shown} is damaged ({reason}): copy it again, or pack its folder again") from reason


def _report(fields: dict[str, Any]) -> FolderReport:
    problems = tuple(read_fields(Problem, problem) for problem in fields["problems"])
    whole = {**fields, "sizes": read_fields(Sizes, fields["sizes"]), "problems": problems}
    return FolderReport(**whole)


def _need_space(path: Path, needed: int) -> None:
    with _disk(path):
        free = shutil.disk_usage(path.absolute().parent).free
    if free < needed:
        raise DataError(
            f"{printable(path)} takes {needed / 1e6:,.0f} MB more, and {free / 1e6:,.0f} MB are free there: free some "
            "space, choose another --out, or a smaller --size"
        )


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raises `DataError` where another process writes this pack."""
    try:
        path.absolute().parent.mkdir(parents=True, exist_ok=True)
    except OSError as reason:
        raise DataError(f"cannot write {printable(path)}: {reason.strerror}. Choose another --out") from reason
    with hold_lock(path.with_name(f".{path.name}.lock"), f"writes {printable(path)}", error=DataError):
        yield


@contextmanager
def _disk(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as reason:
        raise DataError(
            f"cannot write {printable(path)}: {reason.strerror or reason}. What is packed is kept: free some space and "
            "repeat the command, or choose another --out"
        ) from reason


def _words(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, Sequence) and not isinstance(value, str) else str(value)
