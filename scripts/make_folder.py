"""Write a folder of image files for trials: garments of Fashion-MNIST as PNG and JPEG, a dozen of them damaged.

    python scripts/make_folder.py FOLDER [COUNT]

COUNT, 3,000 by default, is how many pictures the ten classes have together. `BAD` says what is wrong with the dozen.
"""

import struct
import sys
import zlib
from pathlib import Path

from PIL import Image

from branchwork.datasets.load import load_data


def enlarged(png: bytes) -> bytes:
    """Return a PNG that claims to have 65,536 × 65,536 pixels, with a valid checksum."""
    header = b"IHDR" + struct.pack(">II", 65_536, 65_536) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


# By file extension: functions from the bytes of a valid file to those of a damaged one.
BAD = {
    "empty.png": lambda content: b"",
    "text.png": lambda content: b"this is no picture\n",
    "page.jpg": lambda content: b"<!DOCTYPE html><title>404 Not Found</title>",
    "head.png": lambda content: content[:20],
    "half.png": lambda content: content[: len(content) // 2],
    "half.jpg": lambda content: content[: len(content) // 2],
    "tail.png": lambda content: content[:-30],
    "zeros.png": lambda content: content[:100] + bytes(len(content) - 100),
    "zeros.jpg": lambda content: bytes(len(content)),
    "flipped.png": lambda content: content[:60] + bytes([content[60] ^ 0xFF]) + content[61:],
    "script.jpg": lambda content: b"#!/bin/sh\n" + content,
    "huge.png": lambda content: enlarged(content),
}


def main(folder: Path, count: int = 3000) -> None:
    data = load_data("fashion-mnist")
    each = count // len(data.classes)
    for label, name in enumerate(data.classes):
        place = folder / name.replace("/", " or ").lower()
        place.mkdir(parents=True)
        for index in (data.train.labels == label).nonzero()[:each, 0].tolist():
            picture = Image.fromarray(data.train.images[index, 0].numpy())
            # Half of them as a camera would save them.
            if index % 2:
                picture.save(place / f"{index:05}.jpg", quality=92)
            else:
                picture.save(place / f"{index:05}.png")
    places = sorted(path for path in folder.iterdir())
    for number, (name, damage) in enumerate(BAD.items()):
        place = places[number % len(places)]
        sound = sorted(place.glob(f"*{name[-4:]}"))[0]
        (place / f"bad-{name}").write_bytes(damage(sound.read_bytes()))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *map(int, sys.argv[2:]))
