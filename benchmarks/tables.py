"""The results on a terminal."""

import math
from collections.abc import Sequence

from benchmarks.rows import Goal
from benchmarks.summary import Outlook, Summary
from branchwork.cli.output import Table, make_table

METHODS = {
    "script": "lecture's script",
    "memory": "the same in memory",
    "public": "train_mnist_fast",
    "branchwork": "Branchwork",
}

MET = {True: "yes", False: "no", None: "–"}


def describe(method: str, flags: str) -> str:
    return f"{METHODS[method]} {flags or '(default)' * (method == 'branchwork')}".strip()


def seconds(value: float) -> str:
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"


def percent(accuracy: float | None, deviation: float | None) -> str:
    if accuracy is None:
        return "–"
    return f"{100 * accuracy:.2f}" + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def times(ratio: float | None) -> str:
    if ratio is None:
        return "–"
    digits = 2 if ratio < 10 else 1 if ratio < 100 else 0
    # Rounded down, so that a value below its aim never looks like the aim.
    return f"{math.floor(ratio * 10**digits) / 10**digits:.{digits}f}×"


def trainings(summaries: Sequence[Summary]) -> Table:
    """Return the table of trainings: what a narrow terminal can drop comes last, Branchwork's flags stand below."""
    table = make_table("net", "train s", "faster", "test %", "whole s", "seeds", "MB", "min–max")
    flags = list(dict.fromkeys(summary.flags for summary in summaries if summary.flags))
    for summary in summaries:
        spread = summary.train_seconds
        method = describe(summary.method, f"({flags.index(summary.flags) + 1})" if summary.flags else "")
        table.add_row(
            f"{summary.net}\n  {method}{', estimated' * summary.estimated}",
            seconds(spread.median),
            times(summary.times_as_fast),
            percent(summary.accuracy, summary.deviation),
            seconds(summary.total_seconds.median),
            str(summary.seeds),
            f"{summary.peak_memory_bytes / 1e6:.0f}",
            f"{seconds(spread.low)}–{seconds(spread.high)}",
        )
    table.caption = "\n".join(f"({number}) {text}" for number, text in enumerate(flags, start=1)) or None
    table.caption_justify = "left"
    return table


def goals(outlooks: Sequence[Outlook]) -> Table:
    table = make_table("what", "asked", "reached", "met")
    for outlook in outlooks:
        table.add_row(outlook.goal.what, asked(outlook.goal), reached(outlook), MET[outlook.met])
    return table


def asked(goal: Goal) -> str:
    ratio = "" if goal.ratio is None else times(goal.ratio)
    accuracy = "" if goal.accuracy is None else f"{percent(goal.accuracy, None)}%"
    return ", ".join(filter(None, (ratio, accuracy)))


def reached(outlook: Outlook) -> str:
    if outlook.ratio is None and outlook.accuracy is None:
        return "not measured"
    goal = outlook.goal
    ratio = "" if goal.ratio is None else times(outlook.ratio) + " estimated" * outlook.estimated
    accuracy = "" if outlook.accuracy is None else f"{percent(outlook.accuracy, None)}%"
    few = f"{outlook.seeds} of {goal.seeds} seeds" if outlook.seeds < goal.seeds else ""
    return ", ".join(filter(None, (ratio, accuracy, few)))
