"""What a training asks of the machine."""

import ctypes
import sys

import pytest
import torch

from branchwork.training.machine import keeping_freed_memory


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="takes Linux with glibc"
)
def test_freed_memory_is_kept_within_a_training_and_given_back_after_it():
    import resource

    def cleared_pages() -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(5):
            torch.ones(10_000_000).sum()
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    pages = 40_000_000 // resource.getpagesize()
    usual = cleared_pages()
    with keeping_freed_memory():
        kept = cleared_pages()
    assert usual > 4 * pages and cleared_pages() > 4 * pages
    assert kept < 1.5 * pages
