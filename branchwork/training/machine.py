"""The machine that figures are measured on, and the threads and memory of this process."""

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from branchwork.files import read_kilobytes
from branchwork.language import say
from branchwork.version import __version__


def versions() -> dict[str, str]:
    return {
        "branchwork": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
    }


def machine() -> str:
    """Return processor, threads and system in one line, and the GPU if there is one."""
    threads = torch.get_num_threads()
    counted = say("1 thread") if threads == 1 else say("{threads} threads", threads=threads)
    words = [processor(), counted, platform.system(), platform.machine()]
    if torch.cuda.is_available():
        words.insert(0, torch.cuda.get_device_name())
    return ", ".join(words)


def commit() -> str | None:
    """Return the commit that this package runs from; None outside a checkout."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists():
        return None
    try:
        done = subprocess.run(
            ["git", "rev-parse", "--verify", "HEAD"], cwd=folder, capture_output=True, text=True, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def compiler_problem(device: torch.device) -> str | None:
    """Return why torch.compile cannot work on `device`; None if it can."""
    if device.type == "cuda":
        return None if find_spec("triton") else say("torch.compile needs triton on a GPU: pip install triton")
    if any(map(shutil.which, (os.environ.get("CXX", "g++"), "g++", "clang++", "cl"))):
        return None
    return say("torch.compile needs a C++ compiler, but none was found: install g++ or clang++")


@contextmanager
def using_threads(count: int | None) -> Iterator[None]:
    """Let torch use `count` threads, and afterwards as many as before; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def keeping_freed_memory() -> Iterator[None]:
    """Keep freed memory in this process until the end, if the C library is glibc.

    Otherwise the large tensors of each step go back to the system, which clears every page again for the next step:
    some hundredths of the time with images of 224 pixels (docs/experiments/hardware.md).
    """
    libc: Any = ctypes.CDLL(None) if sys.platform == "linux" else None
    if not hasattr(libc, "mallopt"):  # musl has none
        yield
        return
    for what, least in _ALWAYS.items():
        libc.mallopt(what, least)
    try:
        yield
    finally:
        for what, least in _USUAL.items():
            libc.mallopt(what, least)
        libc.malloc_trim(0)


# glibc's M_MMAP_THRESHOLD and M_TRIM_THRESHOLD: blocks of at least so many bytes are mapped by themselves, and so many
# free bytes are given back. The usual values are the largest that glibc adapts itself to.
_ALWAYS = {-3: 2**30, -1: 2**31 - 1}
_USUAL = {-3: 2**25, -1: 2**26}


def is_out_of_memory(reason: BaseException) -> bool:
    """Return whether torch failed to allocate memory. On a CPU, torch has no error class for that."""
    words = ("can't allocate memory", "bad_alloc", "not enough memory")
    return isinstance(reason, torch.OutOfMemoryError | MemoryError) or any(word in str(reason) for word in words)


def resident_memory() -> int | None:
    """Return the memory of this process in bytes; None except on Linux."""
    return read_kilobytes(Path("/proc/self/status"), "VmRSS:")


def reset_peak_memory(device: torch.device) -> None:
    """Reset the peak of a GPU. On a CPU, the system counts from the start of the process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory(device: torch.device) -> int | None:
    """Return the peak in bytes: of GPU memory taken by tensors, or on a CPU of this process's resident size so far.

    None on Windows, where Python cannot ask for it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if sys.platform == "win32":
        return None
    status = Path("/proc/self/status")
    if status.exists():
        # Not getrusage: on Linux it starts from the size of the parent process.
        return read_kilobytes(status, "VmHWM:")
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def processor() -> str:
    """Return the name of the processor."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or "processor unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


@contextmanager
def process_settings(threads: int | None, device: torch.device) -> Iterator[None]:
    """Use `threads` threads and keep freed memory; afterwards restore both and torch's random state."""
    with (
        using_threads(threads),
        keeping_freed_memory(),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        yield
