"""Measure one process from start to end: its time and its peak memory."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks.rows import Candidate, Probe

ROOT = Path(__file__).parents[1]


class MeasuringError(Exception):
    """A measured process failed; the message is the end of its output."""


@dataclass(frozen=True)
class Process:
    seconds: float
    peak_memory_bytes: int
    output: str


@dataclass(frozen=True)
class Measurement:
    """One training. `total_seconds` is the whole process; if `estimated`, both times are extrapolated from a part."""

    candidate: str
    method: str
    net: str
    flags: str
    seed: int
    train_seconds: float
    total_seconds: float
    test_accuracy: float | None
    peak_memory_bytes: int
    estimated: bool
    command: str


@dataclass(frozen=True)
class Settings:
    """How to measure. `steps` of the script are measured and extrapolated; None trains it to its end."""

    data: str = "mnist"
    device: str = "cpu"
    steps: int | None = 150


def run_process(words: Sequence[str]) -> Process:
    """Run `python WORDS` from this checkout and wait for its end. Raises `MeasuringError`."""
    before = os.environ.get("PYTHONPATH")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *([before] if before else [])])}
    with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
        began = perf_counter()
        process = subprocess.Popen(
            [sys.executable, *words],
            cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            process.terminate()
            process.wait()
            raise
        seconds = perf_counter() - began
        process.returncode = os.waitstatus_to_exitcode(status)
        output.seek(0)
        said = output.read().strip()
    if process.returncode != 0:
        raise MeasuringError(said.splitlines()[-1] if said else f"exit code {process.returncode}")
    peak = usage.ru_maxrss if sys.platform == "darwin" else usage.ru_maxrss * 1024  # Linux counts in KiB
    return Process(seconds, peak, said)


def words_of(candidate: Candidate, seed: int, settings: Settings) -> list[str]:
    """Return the arguments of `python` that train `candidate`, without those for its results."""
    if candidate.method == "branchwork":
        words = ["-m", "branchwork", "train", candidate.net, *candidate.flags.split()]
    elif candidate.method == "public":
        words = ["-m", "benchmarks.public"]
    else:
        words = ["-m", "benchmarks.lecture", candidate.method, candidate.net]
        if settings.steps is not None:
            words += ["--steps", str(settings.steps)]
    return [*words, "--data", settings.data, "--seed", str(seed), "--device", settings.device]


def measure(name: str, candidate: Candidate, seed: int, settings: Settings) -> Measurement:
    """Train `candidate` once and return the measurement. Raises `MeasuringError`."""
    words = words_of(candidate, seed, settings)
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        out = ["--out", f"{folder}/run"] if candidate.method == "branchwork" else []
        process = run_process([*words, *out, "--json", str(result)])
        outcome: dict[str, Any] = json.loads(result.read_text(encoding="utf-8"))
    return Measurement(
        candidate=name,
        method=candidate.method,
        net=candidate.net,
        flags=candidate.flags,
        seed=seed,
        train_seconds=outcome["train_seconds"],
        total_seconds=process.seconds + outcome.get("extra_seconds", 0.0),
        test_accuracy=outcome["test_accuracy"],
        peak_memory_bytes=process.peak_memory_bytes,
        estimated=outcome.get("estimated", False),
        command=f"python {' '.join(words)}",
    )


def run_probe(probe: Probe, settings: Settings) -> dict[str, list[float]]:
    """Run a probe and return its seconds by name. Raises `MeasuringError`."""
    device = ["--device", settings.device] if probe.on_device else []
    with tempfile.TemporaryDirectory() as folder:
        result = Path(folder) / "result.json"
        run_process(["-m", probe.module, *device, "--json", str(result)])
        timings: dict[str, list[float]] = json.loads(result.read_text(encoding="utf-8"))
    return timings


def place() -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(run_process(["-m", "benchmarks.place"]).output.splitlines()[-1])
    return facts
