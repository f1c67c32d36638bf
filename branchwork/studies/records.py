"""The records of a study's trainings, by net and seed, and the figures made of them."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from branchwork.errors import StudyError
from branchwork.language import say
from branchwork.studies.statistics import Comparison, Mean, holm, mean_interval, paired

if TYPE_CHECKING:
    from branchwork.studies.design import Arm
    from branchwork.studies.trainings import Record


def measure_name(measure: str) -> str:
    names = {
        "train_error": say("training error", "训练误差"),
        "validation_error": say("validation error", "验证误差"),
        "test_error": say("test error", "测试误差"),
        "seconds": say("seconds of training", "训练秒数"),
        "macs": say("MACs an image", "每张图的 MAC 数"),
        "parameters": say("parameters", "参数量"),
        "gain": say("gain", "作用"),
    }
    return names[measure]


def percent_name(measure: str) -> str:
    """What stands at an axis of it."""
    return say(f"{measure_name(measure)}, %", f"{measure_name(measure)}（%）")


@dataclass(frozen=True)
class Records:
    """`found` has a record for each arm's label and seed. A training that diverged has no errors and no seconds."""

    arms: "tuple[Arm, ...]"
    seeds: tuple[int, ...]
    found: "Mapping[tuple[str, int], Record]"

    def of(self, label: str) -> "list[Record]":
        """The trained records of an arm, by ascending seed."""
        records = [self.found[label, seed] for seed in self.seeds]
        return [record for record in records if record["outcome"] == "trained"]

    def any_of(self, label: str) -> "Record":
        """A record of an arm, for what does not depend on the seed."""
        return self.found[label, self.seeds[0]]

    def diverged(self, label: str) -> int:
        return len(self.seeds) - len(self.of(label))

    def values(self, label: str, measure: str) -> dict[int, float]:
        """By seed, without the trainings that diverged."""
        return {record["job"]["seed"]: record[measure] for record in self.of(label)}

    def mean(self, label: str, measure: str) -> Mean | None:
        """None where all trainings of the arm diverged."""
        values = self.values(label, measure).values()
        return mean_interval(values) if values else None

    def compare(self, pairs: Sequence[tuple[str, str]], measure: str) -> list[Comparison | None]:
        """Each pair of labels, seed by seed, corrected for all of them together; None where none trained with both."""
        return holm([paired(self.values(a, measure), self.values(b, measure), (a, b), measure) for a, b in pairs])


def read_record(path: Path) -> "Record | None":
    """The record of a finished training; None where there is none. Raises `StudyError` where it is damaged."""
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if record["outcome"] not in ("trained", "diverged"):
            raise ValueError(f"its outcome is {record['outcome']!r:.60}")
        return record
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError, KeyError, RecursionError) as reason:
        raise StudyError(f"{path} is damaged ({reason}): delete it, and this training is run again") from reason
