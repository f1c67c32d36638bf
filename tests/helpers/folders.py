"""Folders of random pictures, and the shortest training on them."""

import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

import branchwork as bw

GENERATOR = np.random.default_rng(5)
SHORT = {"epochs": 1, "batch_size": 8, "validation": 0.0}


def train(**options):
    """As few seconds as a training can take beside others."""
    return bw.train("residual", options=bw.Options(threads=1, execute="written"), **options)


def noise(height: int = 20, width: int = 20, channels: int = 3) -> Image.Image:
    """A picture that no other is like."""
    shape = (height, width) if channels == 1 else (height, width, channels)
    return Image.fromarray(GENERATOR.integers(0, 256, shape, dtype=np.uint8))


def bomb(width: int, height: int) -> bytes:
    """A PNG of some hundred bytes that claims a size."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 1000))
        + chunk(b"IEND", b"")
    )


def fill(folder: Path, count: int = 10, **kind: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        noise(**kind).save(folder / f"{index}.png")
    return folder


def two_classes(root: Path, **kind: int) -> Path:
    fill(root / "cat", **kind)
    fill(root / "dog", **kind)
    return root
