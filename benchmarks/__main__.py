"""python -m benchmarks: measure all candidates alternately, and show the aims and what was reached."""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Annotated, Literal

from cyclopts import App, Parameter
from cyclopts.validators import Number
from rich.console import Console

from benchmarks.gpu import gpu
from benchmarks.measure import Measurement, MeasuringError, Settings, measure, place, run_probe
from benchmarks.results import Results
from benchmarks.rows import CANDIDATES, GOALS, PROBES, Candidate, Row
from benchmarks.summary import compare_with_goals, summarise
from benchmarks.tables import describe, goals, seconds, trainings
from branchwork.cli.output import show

app = App(name="python -m benchmarks", help_format="plaintext", result_action="return_value")
app.command(gpu)


def plan(only: Sequence[str], seeds: int | None, full: bool) -> list[tuple[str, int]]:
    """Return (candidate, seed) pairs that alternate, so that the machine's drift affects all alike; then the probes.

    Without `only`, these are all rows; long ones need `full`.
    """
    chosen = {
        name: replace(candidate, seeds=seeds or candidate.seeds)
        for name, candidate in CANDIDATES.items()
        if (set(candidate.rows) & set(only) if only else full or not candidate.long)
    }
    most = max((candidate.seeds for candidate in chosen.values()), default=0)
    turns = [(name, seed) for seed in range(most) for name, candidate in chosen.items() if seed < candidate.seeds]
    return turns + [(row, 0) for row in PROBES if row in only or not only]


def expected(name: str, full: bool) -> float:
    """Return the seconds that one measurement takes on two cores."""
    if name in PROBES:
        return PROBES[name].seconds
    candidate = CANDIDATES[name]
    return candidate.full_seconds or candidate.seconds if full else candidate.seconds


def time_left(turns: Sequence[tuple[str, int]], took: dict[str, list[float]], full: bool) -> float:
    """Estimate the seconds for `turns` from earlier ones of the same name, else as expected at this machine's pace."""
    expected_so_far = sum(expected(name, full) * len(times) for name, times in took.items())
    pace = sum(map(sum, took.values())) / expected_so_far if expected_so_far else 1.0
    return sum(statistics.mean(took[name]) if name in took else pace * expected(name, full) for name, _ in turns)


def take_turns(
    turns: Sequence[tuple[str, int]], settings: Settings, results: Results, path: Path, console: Console
) -> None:
    """Measure everything in `turns`, and write `path` after each. A failure is recorded and not tried again."""
    full = settings.steps is None
    took: dict[str, list[float]] = {}
    for number, (name, seed) in enumerate(turns, 1):
        if name in results.failures:
            continue
        left = round(time_left(turns[number - 1 :], took, full))
        title = f"{number}/{len(turns)} {_title(name, seed)}"
        began = monotonic()
        with console.status(f"{title}, {left // 60}:{left % 60:02} left"):
            try:
                outcome = _measure_once(name, seed, settings, results)
            except MeasuringError as reason:
                results.failures[name] = outcome = f"failed: {reason}"
        took.setdefault(name, []).append(monotonic() - began)
        results.write(path)
        left = round(time_left(turns[number:], took, full))
        console.print(f"{title}: {outcome}, {left // 60}:{left % 60:02} left", markup=False)


def _measure_once(name: str, seed: int, settings: Settings, results: Results) -> str:
    """Measure once and return a summary in words."""
    if name in PROBES:
        timings = run_probe(PROBES[name], settings)
        results.timings |= timings
        compared = [key for goal in GOALS for key in (goal.slow, goal.quick) if key in timings]
        return ", ".join(f"{key} {1000 * statistics.median(timings[key]):.3g} ms" for key in compared)
    measurement = measure(name, CANDIDATES[name], seed, settings)
    results.measurements.append(measurement)
    return _outcome(measurement)


def _title(name: str, seed: int) -> str:
    if name in PROBES:
        return name
    candidate: Candidate = CANDIDATES[name]
    return f"{candidate.net}: {describe(candidate.method, candidate.flags)}, seed {seed}"


def _outcome(measurement: Measurement) -> str:
    estimated = " estimated" if measurement.estimated else ""
    accuracy = "" if measurement.test_accuracy is None else f", {measurement.test_accuracy:.2%}"
    return f"{seconds(measurement.train_seconds)} s{estimated}{accuracy}"


@app.default
def main(
    *,
    full: Annotated[
        bool, Parameter(negative="", help="Train the script to its end, and include the long rows.")
    ] = False,
    only: Annotated[
        tuple[Row, ...], Parameter(negative="", help="Measure only this row; may be given several times.")
    ] = (),
    seeds: Annotated[
        int | None, Parameter(validator=Number(gte=1), help="Use this many seeds for every candidate.")
    ] = None,
    steps: Annotated[
        int, Parameter(validator=Number(gte=1), help="Steps of the script to measure and extrapolate from.")
    ] = 150,
    data: Annotated[Literal["mnist", "sample"], Parameter(help="sample (7,000 digits) is for quick trials.")] = "mnist",
    device: Annotated[Literal["cpu", "cuda"], Parameter(help="Where the trainings run.")] = "cpu",
    out: Annotated[
        Path | None, Parameter(help="The file of results; by default benchmarks/results/DATE-MACHINE.json.")
    ] = None,
) -> int:
    """Train the lecture's script, a public recipe and Branchwork alternately, in 8 to 25 minutes."""
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    settings = Settings(data, device, None if full else steps)
    turns = plan(only, seeds, full)
    results = Results(f"python -m benchmarks {' '.join(sys.argv[1:])}".strip(), data, device, settings.steps, place())
    path = out or results.free_path()
    console.print(f"{results.place['machine']}; {len(turns)} measurements, written to {path}")
    interrupted = False
    try:
        take_turns(turns, settings, results, path, console)
    except KeyboardInterrupt:
        interrupted = True
        console.print(f"interrupted; the measurements so far are in {path}")
    show(trainings(summarise(results.measurements)), goals(compare_with_goals(results.measurements, results.timings)))
    show(*(f"{name} {reason}" for name, reason in results.failures.items()), f"results: {path}")
    return 130 if interrupted else 1 if results.failures else 0


if __name__ == "__main__":
    sys.exit(app())
