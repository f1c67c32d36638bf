"""The IDX format of MNIST: two zero bytes, a type, a rank, big-endian sizes, then the numbers."""

import numpy as np
from numpy.typing import NDArray

from branchwork.errors import DataError

_UNSIGNED_BYTE = 0x08


def from_idx(content: bytes, name: str, rank: int) -> NDArray[np.uint8]:
    """The array in `content`, which must hold unsigned bytes of the given `rank` (3 for images, 1 for labels).

    Raises `DataError` that tells for the file called `name` what was expected and what was found.
    """
    needed = bytes((0, 0, _UNSIGNED_BYTE, rank))
    if content[:4] != needed:
        raise DataError(
            f"{name} is no IDX file of unsigned bytes in {rank} dimensions: expected it to begin with "
            f"{needed.hex(' ')}, found {content[:4].hex(' ') or 'an empty file'}. Fetch it again."
        )
    header = 4 + 4 * rank
    if len(content) < header:
        raise DataError(
            f"{name} is truncated: expected a header of {header} bytes, found {len(content)}. Fetch it again."
        )
    shape = tuple(int(n) for n in np.frombuffer(content, ">u4", count=rank, offset=4))
    expected = header + int(np.prod(shape, dtype=np.int64))
    if len(content) != expected:
        what = "truncated" if len(content) < expected else "too long"
        raise DataError(
            f"{name} is {what}: its header says {'×'.join(map(str, shape))}, so {expected:,} bytes were expected "
            f"and {len(content):,} found. Fetch it again."
        )
    return np.frombuffer(content, np.uint8, offset=header).reshape(shape)


def rank_of(name: str) -> int:
    """The rank that a file of MNIST has by its name, such as `t10k-images-idx3-ubyte`."""
    return 3 if "-idx3-" in name else 1


def to_idx(array: NDArray[np.uint8]) -> bytes:
    return bytes((0, 0, _UNSIGNED_BYTE, array.ndim)) + np.array(array.shape, ">u4").tobytes() + array.tobytes()
