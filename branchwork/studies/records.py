"""The trainings of a study: what each depends on, and its record, which is kept in a file."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from branchwork.catalogue.resolve import short_name
from branchwork.errors import StudyError
from branchwork.files import read_json, reading
from branchwork.language import mark, say
from branchwork.training.options import Execute

# The gradient is measured on this many images, the same throughout a training.
GRADIENT_IMAGES = 128
# The largest norm of a gradient that a record can hold: float32 ends at 3.4e38.
_LARGEST_NORM = 1e50


@dataclass(frozen=True)
class Job:
    """Everything that a training of a study depends on; it can be sent to any machine.

    `data`, with `size` and `fit`, must have training images of this `checksum`. At most `images` of them are used,
    drawn by the seed; with `side`, squares of pixels are averaged, so that the shorter side is about `side` pixels.
    With `gradients`, the norms of the gradients are measured layer by layer.
    """

    net: str
    data: str
    checksum: int
    size: tuple[int, int] | None
    fit: str | None
    recipe: Mapping[str, Any]
    seed: int
    threads: int
    device: str
    execute: Execute
    images: int | None
    side: int | None
    gradients: bool

    @property
    def key(self) -> str:
        """The name of its record; it changes with anything that changes the training's result."""
        content = json.dumps(asdict(self), sort_keys=True).encode()
        return f"{short_name(self.net)}-seed-{self.seed}-{hashlib.sha256(content).hexdigest()[:12]}"


@dataclass(frozen=True)
class GradientNorms:
    """The L2 norm of the gradient of each kernel and matrix after `epoch` epochs; None if not finite."""

    epoch: int
    norms: dict[str, float | None]


@dataclass(frozen=True)
class Record:
    """One training: its outcome, and everything that was measured.

    Errors are fractions, in eval mode on images without augmentation. The fields after `gradients` are None if the
    training `diverged`, for the reason in `message`; `validation_error` also if no images were held out.
    `whole_seconds` is the time from loading the data to the end of the test.
    """

    job: Job
    parameters: int
    macs: int
    machine: str
    versions: dict[str, str]
    outcome: Literal["trained", "diverged"]
    message: str | None
    whole_seconds: float
    gradients: tuple[GradientNorms, ...]
    train_error: float | None = None
    train_loss: float | None = None
    test_error: float | None = None
    validation_error: float | None = None
    train_images: int | None = None
    image_size: tuple[int, int] | None = None
    seconds: float | None = None
    images_per_second: float | None = None
    peak_memory_bytes: int | None = None
    epochs: tuple[dict[str, float | None], ...] | None = None
    branches: dict[str, dict[str, float]] | None = None
    device: str | None = None
    precision: str | None = None
    execution: str | None = None


def read_record(path: Path, job: Job) -> Record | None:
    """Return the record of `job`; None if there is no file. Raises `StudyError` if it is damaged."""
    if not path.exists():
        return None
    remedy = mark("delete it, and this training will run again")
    record = read_json(path, Record, error=StudyError, remedy=remedy)
    with reading(path, error=StudyError, remedy=remedy):
        _check(record, job)
    return record


def _check(record: Record, job: Job) -> None:
    """Raise `ValueError` unless the values are those of a training of `job`."""
    if record.job.key != job.key:
        raise ValueError(say("it is the record of another training"))
    if job.gradients and not (record.gradients and all(moment.norms for moment in record.gradients)):
        raise ValueError(say("it has no gradients"))
    norms = [norm for moment in record.gradients for norm in moment.norms.values() if norm is not None]
    if not all(0 <= norm <= _LARGEST_NORM for norm in norms):
        raise ValueError(say("the norm of a gradient is impossible"))
    if record.outcome == "diverged":
        return
    errors = {"train_error": record.train_error, "test_error": record.test_error}
    if job.recipe["validation"]:
        errors["validation_error"] = record.validation_error
    for name, error in errors.items():
        if error is None or not 0 <= error <= 1:
            raise ValueError(say("{name} must be from 0 to 1, got {error}", name=name, error=error))
    if record.seconds is None or record.branches is None:
        raise ValueError(say("it has no seconds or no branches"))
