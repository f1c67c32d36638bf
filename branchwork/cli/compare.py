"""branchwork compare"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from branchwork.cli.output import Part, Table, deliver, interval, make_table, show, where_drawn
from branchwork.cli.parameters import DATA, FILE, Json, Source
from branchwork.language import mark, milliseconds, say

if TYPE_CHECKING:
    from branchwork.comparing.comparison import Comparison

# Classes in the table: those in which the nets differ most.
MOST_CLASSES = 10


def compare(
    *runs: Annotated[Path, Parameter(help="Run folders, two or more, or folders of several seeds.")],
    data: Annotated[str | None, Parameter(help=f"{DATA}; by default what the runs were trained on.")] = None,
    draw: Annotated[
        Path | None, Parameter(help="Draw into this file the pictures that one net gets right and another does not.")
    ] = None,
    out: Annotated[Path | None, FILE, Parameter(help="Write the comparison as an HTML page to this file.")] = None,
    source: Source = None,
    json_file: Json = None,
) -> None:
    """Compare trained nets on the same test images: accuracy, McNemar's test, classes, cost, and where they disagree.

    Folders of several seeds, made by train --seeds, are compared seed by seed.
    """
    import branchwork

    comparison = branchwork.compare(runs, data=data, source=source, draw=draw, out=out, progress=True)
    deliver(comparison, json_file, lambda: show(*parts(comparison, draw, out)))


def parts(comparison: "Comparison", draw: Path | None = None, out: Path | None = None) -> list[Part]:
    from branchwork.comparing.compare_report import class_rows
    from branchwork.comparing.pairs import TESTS, verdict

    head, rows = class_rows(comparison)
    classes = make_table(head[0], names=head[1:])
    for row in rows[:MOST_CLASSES]:
        classes.add_row(*row)
    tests = dict.fromkeys(TESTS[pair.test] for pair in comparison.pairs)
    said: list[Part] = [
        _entries(comparison),
        *(f"{entry.label}: {entry.folder}" for entry in comparison.entries),
        _pairs(comparison),
        *map(verdict, comparison.pairs),
        *(say("the test: {test}", test=say(test)) for test in tests),
        classes,
        say(
            "{images:,} test images of {data}; the nets disagree on {count:,}",
            **vars(comparison),
            count=len(comparison.disagreements),
        ),
    ]
    if draw is not None and comparison.disagreements:
        said += where_drawn("pictures that one net gets right and another does not: {file}", draw)
    if out is not None:
        said.append(say("page: {out}", out=out))
    return said


def _entries(comparison: "Comparison") -> Table:
    table = make_table("net", "accuracy, % (95%)", "parameters", "MACs", "ms", "train s")
    table.padding = (0, 1, 0, 0)
    for entry in comparison.entries:
        seeds = (
            say("{net}, {count} seeds", net=entry.net, count=len(entry.seeds)) if len(entry.seeds) > 1 else entry.net
        )
        table.add_row(
            f"{entry.label} {seeds}",
            f"{100 * entry.accuracy:.2f} ({interval(entry.interval)})",
            f"{entry.parameters:,}",
            f"{entry.macs:,}",
            milliseconds(entry.milliseconds),
            "–" if entry.train_seconds is None else f"{entry.train_seconds:.1f}",
        )
    return table


def _pairs(comparison: "Comparison") -> Table:
    from branchwork.comparing.compare_report import pair_rows

    corrected = [mark("after Holm")] if len(comparison.pairs) > 1 else []
    table = make_table("pair", "points (95%)", "p value", *corrected, "only 1st", "only 2nd")
    table.padding = (0, 1, 0, 0)
    for row in pair_rows(comparison):
        table.add_row(*row)
    return table
