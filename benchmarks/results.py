"""The file of one run: the machine, every measurement, and their summary."""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.measure import Measurement
from benchmarks.summary import compare_with_goals, summarise
from branchwork.files import write_json

FOLDER = Path(__file__).parent / "results"


@dataclass
class Results:
    """All results of one run: `place` is the machine, threads, versions and commit; `timings` the probes' seconds.

    `steps` of the script were measured and extrapolated; None if it was trained to its end. `failures` maps what could
    not be measured to the reason.
    """

    command: str
    data: str
    device: str
    steps: int | None
    place: Mapping[str, Any]
    started: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    measurements: list[Measurement] = field(default_factory=list)
    timings: dict[str, list[float]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the results with their summary and goals, which `read` computes again."""
        summary = [asdict(s) for s in summarise(self.measurements)]
        goals = [asdict(outlook) for outlook in compare_with_goals(self.measurements, self.timings)]
        write_json(path, {**asdict(self), "summary": summary, "goals": goals})

    def free_path(self) -> Path:
        """Return an unused file name made of date and machine."""
        processor, threads = (part.strip() for part in self.place["machine"].split(",")[:2])
        words = [self.started[:10], processor, threads, self.device, *(["full"] if self.steps is None else [])]
        stem = re.sub(r"[^a-z0-9]+", "-", " ".join(words).lower())
        names = [f"{stem}.json", *(f"{stem}-{number}.json" for number in range(2, 1000))]
        return next(FOLDER / name for name in names if not (FOLDER / name).exists())


def read(path: Path) -> Results:
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for made in ("summary", "goals"):
        del fields[made]
    return Results(**fields | {"measurements": [Measurement(**m) for m in fields["measurements"]]})
