import struct

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from branchwork.datasets.idx import from_idx, to_idx
from branchwork.errors import DataError

IMAGES = struct.pack(">IIII", 2051, 2, 3, 2) + bytes(range(12))


def test_a_file_written_by_hand_is_read():
    # 2051 is the magic number of image files (LeCun's page): 0x00000803.
    assert np.array_equal(from_idx(IMAGES, "x", 3), np.arange(12).reshape(2, 3, 2))
    assert np.array_equal(from_idx(struct.pack(">II", 2049, 3) + b"\1\2\3", "x", 1), [1, 2, 3])


@given(st.lists(st.integers(0, 5), min_size=1, max_size=3), st.randoms(use_true_random=False))
def test_what_is_written_is_read_again(shape, random):
    array = np.array(random.choices(range(256), k=int(np.prod(shape))), np.uint8).reshape(shape)
    assert np.array_equal(from_idx(to_idx(array), "x", len(shape)), array)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (IMAGES[:-1], "x is truncated: its header says 2×3×2, so 28 bytes were expected and 27 found"),
        (IMAGES + b"\0", "too long"),
        (IMAGES[:9], "header of 16 bytes, found 9"),
        (b"", "found an empty file"),
        (b"<html>404</html>", "expected it to begin with 00 00 08 03, found 3c 68 74 6d"),
        (struct.pack(">II", 2049, 3) + b"\1\2\3", "found 00 00 08 01"),  # labels where images were expected
        (struct.pack(">IIII", 2051, 2**32 - 1, 2**32 - 1, 2**32 - 1), "truncated"),
    ],
)
def test_what_was_expected_and_what_was_found_is_said(content, words):
    with pytest.raises(DataError) as caught:
        from_idx(content, "x", 3)
    assert words in str(caught.value)
