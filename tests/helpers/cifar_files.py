"""CIFAR-10's archives in small, as the official ones are written, with other images."""

import dataclasses
import gzip
import hashlib
import io
import struct
import tarfile
from pathlib import Path

import numpy as np

from branchwork.datasets.cifar import CIFAR10, Cifar

RECORDS = 20
BATCHES = tuple(CIFAR10.md5)


def images_and_labels(seed: int = 0) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """The images uint8 20×3072 and labels of each batch, two of each class."""
    random = np.random.default_rng(seed)
    return {
        batch: (random.integers(0, 256, (RECORDS, 3072), np.uint8), random.permutation(np.arange(RECORDS) % 10))
        for batch in BATCHES
    }


def text(content: bytes) -> bytes:
    """A text of Python 2 in a pickle."""
    if len(content) < 256:
        return b"U" + bytes([len(content)]) + content
    return b"T" + struct.pack("<i", len(content)) + content


def number(value: int) -> bytes:
    if 0 <= value < 256:
        return b"K" + bytes([value])
    return b"M" + struct.pack("<H", value) if 0 <= value < 65536 else b"J" + struct.pack("<i", value)


def python2_pickle(images: np.ndarray, labels: np.ndarray) -> bytes:
    """What Python 2 wrote, opcode by opcode: protocol 2, with texts for bytes."""
    count, width = images.shape
    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x03cnumpy\nndarray\nq\x04" + number(0) + b"\x85q\x05"
        + text(b"b") + b"\x87q\x06Rq\x07(" + number(1) + number(count) + number(width) + b"\x86q\x08"
        + b"cnumpy\ndtype\nq\x09" + text(b"u1") + number(0) + number(1) + b"\x87q\x0aRq\x0b("
        + number(3) + text(b"|") + b"NNN" + number(-1) + number(-1) + number(0) + b"tb\x89"
        + text(images.tobytes()) + b"tb"
    )  # fmt: skip
    numbers = b"]q\x0d(" + b"".join(number(int(label)) for label in labels) + b"e"
    names = b"]q\x0e(" + b"".join(text(f"s_{n:06}.png".encode()) for n in range(count)) + b"e"
    return (
        b"\x80\x02}q\x01(" + text(b"batch_label") + text(b"training batch 1 of 5") + text(b"labels") + numbers
        + text(b"data") + array + text(b"filenames") + names + b"u."
    )  # fmt: skip


def binary(images: np.ndarray, labels: np.ndarray) -> bytes:
    return b"".join(bytes([label]) + image.tobytes() for image, label in zip(images, labels, strict=True))


def files(version: str, batches: dict[str, tuple[np.ndarray, np.ndarray]]) -> dict[str, bytes]:
    """The files of one version, py or bin, by name."""
    if version == "py":
        return {batch: python2_pickle(*both) for batch, both in batches.items()}
    return {f"{batch}.bin": binary(*both) for batch, both in batches.items()}


def archive(version: str, contents: dict[str, bytes]) -> bytes:
    """The archive of one version, with its other files too."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w") as tar:
        folder = tarfile.TarInfo(f"cifar-10-batches-{version}")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for name, content in {"readme.html": b"<html>", **contents}.items():
            member = tarfile.TarInfo(f"cifar-10-batches-{version}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return gzip.compress(raw.getvalue())


def md5(content: bytes) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def toy(
    *mirrors: str, packed: dict[str, bytes], batches: dict[str, bytes] | None = None, system: Path = Path("nowhere")
) -> Cifar:
    """`CIFAR10` with the sums of the archives `packed`, by version, and of the python version's `batches`."""
    archives = tuple(
        dataclasses.replace(known, size=len(content), md5=md5(content))
        for known, content in ((known, packed.get(known.folder[-3:].lstrip("-"), b"")) for known in CIFAR10.archives)
    )
    sums = {batch: md5((batches or {}).get(batch, b"")) for batch in BATCHES}
    return dataclasses.replace(CIFAR10, md5=sums, system=system, mirrors=mirrors, archives=archives, records=RECORDS)
