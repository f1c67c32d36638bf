"""Summarise measurements and compare them with the goals. Pure functions: equal figures give equal tables."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from benchmarks.measure import Measurement
from benchmarks.rows import GOALS, Goal

Timings = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class Spread:
    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class Summary:
    """One candidate over its seeds. `deviation` is the sample standard deviation, None with one seed.

    `times_as_fast` compares median training seconds with the script's on the same net; None without it.
    """

    candidate: str
    method: str
    net: str
    flags: str
    seeds: int
    train_seconds: Spread
    total_seconds: Spread
    accuracy: float | None
    deviation: float | None
    peak_memory_bytes: int
    times_as_fast: float | None
    estimated: bool


@dataclass(frozen=True)
class Outlook:
    """A goal and what was reached; None if not measured, or not required.

    `seeds` is the smaller count of those compared; `met` is None if it is too small or something was not measured.
    """

    goal: Goal
    ratio: float | None
    accuracy: float | None
    train_seconds: float | None
    seeds: int
    estimated: bool
    met: bool | None


def summarise(measurements: Sequence[Measurement]) -> list[Summary]:
    """Summarise each candidate, in the order of their first measurements."""
    summaries = []
    for name in dict.fromkeys(m.candidate for m in measurements):
        runs = _of(name, measurements)
        first = runs[0]
        train_seconds = Spread.of([m.train_seconds for m in runs])
        script = [m for m in measurements if m.method == "script" and m.net == first.net]
        accuracies = [m.test_accuracy for m in runs if m.test_accuracy is not None]
        summaries.append(
            Summary(
                candidate=name,
                method=first.method,
                net=first.net,
                flags=first.flags,
                seeds=len(runs),
                train_seconds=train_seconds,
                total_seconds=Spread.of([m.total_seconds for m in runs]),
                accuracy=statistics.mean(accuracies) if accuracies else None,
                deviation=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
                peak_memory_bytes=max(m.peak_memory_bytes for m in runs),
                times_as_fast=_median_seconds(script) / train_seconds.median if script else None,
                estimated=any(m.estimated for m in runs),
            )
        )
    return summaries


def compare_with_goals(measurements: Sequence[Measurement], timings: Timings) -> list[Outlook]:
    """Compare every goal with what was measured."""
    return [_compare(goal, measurements, timings) for goal in GOALS]


def _compare(goal: Goal, measurements: Sequence[Measurement], timings: Timings) -> Outlook:
    quick = _of(goal.quick, measurements)
    slow = _of(goal.slow, measurements) if goal.slow else []
    ratio = None
    if quick and slow:
        ratio = _median_seconds(slow) / _median_seconds(quick)
    elif goal.slow is not None and goal.slow in timings and goal.quick in timings:
        ratio = statistics.median(timings[goal.slow]) / statistics.median(timings[goal.quick])
    accuracies = [m.test_accuracy for m in quick if m.test_accuracy is not None]
    accuracy = statistics.mean(accuracies) if accuracies else None
    train_seconds = _median_seconds(quick) if quick else None
    seeds = min(len(quick), len(slow)) if goal.slow else len(quick)
    measured = (goal.ratio is None or ratio is not None) and (goal.accuracy is None or accuracy is not None)
    met = (
        (ratio or 0) >= (goal.ratio or 0)
        and (accuracy or 0) >= (goal.accuracy or 0)
        and (train_seconds or 0) <= goal.most_seconds
    )
    return Outlook(
        goal=goal,
        ratio=ratio,
        accuracy=accuracy,
        train_seconds=train_seconds,
        seeds=seeds,
        estimated=any(m.estimated for m in (*quick, *slow)),
        met=met if measured and seeds >= goal.seeds else None,
    )


def _of(name: str, measurements: Sequence[Measurement]) -> list[Measurement]:
    return [m for m in measurements if m.candidate == name]


def _median_seconds(measurements: Sequence[Measurement]) -> float:
    return statistics.median(m.train_seconds for m in measurements)
