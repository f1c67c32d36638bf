"""The result of a training, and how it is read from its run folder."""

from dataclasses import dataclass
from pathlib import Path

from branchwork.files import read_json
from branchwork.shown import Shown
from branchwork.training.run import RESULT


@dataclass(frozen=True)
class Result(Shown):
    """The result of a training, stored as `result.json`.

    Accuracies are fractions; `test_interval` is the 95% Wilson interval of the test accuracy. `train_seconds` runs from
    the first batch to the last validation and includes collapsing the net, but not loading data, testing or reporting;
    `capture_seconds` is the part of it in which steps were recorded as CUDA graphs. `images_per_second` covers the
    optimiser steps alone. `epochs` is how many were trained, `best_epoch` the one whose weights were kept. `execution`
    is `written` or `collapsed`, and `report` None if none was asked for.
    """

    net: str
    data: str
    seed: int
    parameters: int
    macs: int
    epochs: int
    best_epoch: int
    train_images: int
    train_seconds: float
    images_per_second: float
    validation_accuracy: float | None
    test_accuracy: float
    test_interval: tuple[float, float]
    peak_memory_bytes: int | None
    device: str
    threads: int
    precision: str
    execution: str
    data_origin: str
    versions: dict[str, str]
    machine: str
    commit: str | None
    folder: str
    report: str | None = None
    capture_seconds: float = 0.0


def read_result(folder: Path) -> Result:
    """Return the result of a finished run. Raises `RunError` if it is damaged."""
    return read_json(folder / RESULT, Result, remedy="train again into another folder")
