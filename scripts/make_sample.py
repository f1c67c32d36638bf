"""Select the embedded `sample` from MNIST: 6,000 training and 1,000 test digits, equally many per class.

Run it as `python scripts/make_sample.py`; it writes the four files of branchwork/datasets/sample, the same bytes
each time. Images keep the order that they have in MNIST.
"""

import lzma
from pathlib import Path

import numpy as np

from branchwork.datasets.load import load_data

FOLDER = Path(__file__).parents[1] / "branchwork/datasets/sample"
SEED = 11


def to_idx(array: np.ndarray) -> bytes:
    """Return unsigned bytes in the IDX format: two zero bytes, type, rank, big-endian sizes, then the numbers."""
    return bytes((0, 0, 0x08, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


def draw(labels: np.ndarray, per_class: int, generator: np.random.Generator) -> np.ndarray:
    chosen = [generator.permutation(np.flatnonzero(labels == digit))[:per_class] for digit in range(10)]
    return np.sort(np.concatenate(chosen))


def main(folder: Path = FOLDER) -> None:
    mnist = load_data("mnist")
    generator = np.random.Generator(np.random.PCG64(SEED))
    for prefix, split, per_class in (("train", mnist.train, 600), ("t10k", mnist.test, 100)):
        images, labels = split.images.numpy()[:, 0], split.labels.numpy().astype(np.uint8)
        chosen = draw(labels, per_class, generator)
        for kind, array in (("images-idx3", images[chosen]), ("labels-idx1", labels[chosen])):
            path = folder / f"{prefix}-{kind}-ubyte.xz"
            # A container without time, name or check: the same bytes on every machine.
            path.write_bytes(lzma.compress(to_idx(array), preset=9 | lzma.PRESET_EXTREME))
            print(f"{path.name}: {len(chosen):,} images, {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
