"""How the verbs show a value: as a table for people, as JSON for programs."""

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from branchwork.cli.parameters import STDOUT
from branchwork.files import write_whole
from branchwork.language import say

if TYPE_CHECKING:
    from rich.table import Column, Table

    from branchwork.training.training_run import Result


def deliver(value: Any, json_file: Path | None, show: Callable[[], None]) -> None:
    """Show `value` to people, and write its JSON to `json_file`. Only one of both goes to standard output."""
    if json_file is not None:
        fields = [dataclasses.asdict(v) for v in value] if isinstance(value, tuple) else dataclasses.asdict(value)
        write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", json_file)
    if json_file != STDOUT:
        show()


def write_text(text: str, path: Path) -> None:
    """Write `text` to a file, or to standard output if `path` is `-`."""
    if path == STDOUT:
        sys.stdout.write(text)
    else:
        write_whole(path, text)


def make_table(*columns: str, names: Sequence[str] = (), title: str | None = None) -> "Table":
    """Make a table whose first column is text and whose other columns are numbers.

    `columns` are messages, which are said here; `names`, such as those of classes, are the headers of further columns.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for index, column in enumerate((*map(say, columns), *names)):
        table.add_column(column, justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
    return table


# Words are folded after this many letters before a column is dropped.
FOLDED = 16


def show(*parts: "Table | str") -> None:
    """Print tables and lines of text. Lines are not wrapped, so that paths can be copied.

    A table that is too wide for the terminal loses columns on the right, and a line names them. Output to a file is as
    wide as its tables.
    """
    from rich.console import Console

    console = Console(highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = max([200, *(_width(part) for part in parts if not isinstance(part, str))])
    for part in parts:
        if isinstance(part, str):
            console.print(part, soft_wrap=True)
            continue
        dropped: list[str] = []
        excess = _width(part, FOLDED) - console.width
        while len(part.columns) > 2 and excess > 0:
            excess -= _column_width(part.columns[-1], FOLDED) + _gap(part)
            dropped.insert(0, str(part.columns.pop().header))
        console.print(part)
        if dropped:
            names = ", ".join(dropped) if len(dropped) < 10 and all(dropped) else f"{len(dropped)} more columns"
            console.print(f"this terminal is too narrow for: {names}")


def _width(table: "Table", folded: int | None = None) -> int:
    """Return the width of `table` with every number in full, and words folded after `folded` letters."""
    # Not by rich, whose measurement takes seconds for a hundred classes.
    return sum(_column_width(column, folded) for column in table.columns) + (len(table.columns) - 1) * _gap(table) + 2


def _column_width(column: "Column", folded: int | None) -> int:
    from rich.cells import cell_len

    width = max(map(cell_len, map(str, (column.header, *column.cells))))
    return width if column.no_wrap or folded is None else min(width, folded)


def _gap(table: "Table") -> int:
    """Return the space between two columns, in the box of `make_table`."""
    _, right, _, left = table.padding
    return right + 1 + left


def show_results(results: "tuple[Result, ...]") -> None:
    """Show a row for each trained net, and where the reports are."""
    from branchwork.nets.resolve import short_name

    table = make_table("network", "parameters", "MACs", "epochs", "train s", "test accuracy (95%)")
    for result in results:
        table.add_row(
            short_name(result.net),
            f"{result.parameters:,}",
            f"{result.macs:,}",
            str(result.epochs),
            f"{result.train_seconds:.1f}",
            f"{result.test_accuracy:.2%} ({interval(result.test_interval)})",
        )
    first = results[0]
    settings = say(
        "on {data}; threads: {threads}; {device}, {precision}",
        data=first.data,
        threads=first.threads,
        device=first.device,
        precision=first.precision,
    )
    show(table, settings, *(say("report: {file}", file=result.report) for result in results))


def interval(bounds: tuple[float, float]) -> str:
    """Write an interval of fractions in percent: 97.12–98.03."""
    return f"{100 * bounds[0]:.2f}–{100 * bounds[1]:.2f}"
