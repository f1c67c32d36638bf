"""What a training asks of the machine."""

import ctypes
import sys

import pytest
import torch
from conftest import in_a_process

from branchwork.training.infer import pick_device

CODE = """
import resource
import torch
from branchwork.training.machine import keeping_freed_memory

def cleared_pages() -> int:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(10_000_000).sum()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(40_000_000 // resource.getpagesize(), cleared_pages())
with keeping_freed_memory():
    print(min(cleared_pages() for _ in range(6)))  # the first still fill what is kept
print(cleared_pages())
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not hasattr(ctypes.CDLL(None), "mallopt"), reason="takes Linux with glibc"
)
def test_freed_memory_is_kept_within_a_training_and_not_after_it():
    # In a process of its own, since where blocks come from depends on all that was freed before.
    done = in_a_process("-c", CODE, words=(sys.executable,))
    pages, before, within, after = map(int, done.stdout.split())
    assert before > 4 * pages and after > 4 * pages, done.stdout
    assert within < 1.5 * pages, done.stdout


def test_mps_is_taken_only_where_it_is_named(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", lambda *size, device: None)  # as on a machine that has it
    assert pick_device("auto").type == "cpu" and pick_device("mps").type == "mps"
