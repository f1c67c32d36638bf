"""How the verbs show a value: as a table for people, as JSON for programs."""

import dataclasses
import io
import json
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import rich.box
import rich.table
from rich.cells import cell_len
from rich.text import Text

from branchwork.cli.parameters import STDOUT
from branchwork.errors import BranchworkError, RunError
from branchwork.files import check_writable, write_whole
from branchwork.language import CLOSING, HAN, WORDS, say, wrapped

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Column

    from branchwork.training.result import Result


def deliver(value: Any, json_file: Path | None, show: Callable[[], None]) -> None:
    """Show `value` to people, and write its JSON to `json_file`. Only one of both goes to standard output."""
    if json_file is not None:
        fields = [dataclasses.asdict(v) for v in value] if isinstance(value, tuple) else dataclasses.asdict(value)
        write_text(json.dumps(fields, indent=2, ensure_ascii=False) + "\n", json_file)
    if json_file != STDOUT:
        show()


def write_text(text: str, path: Path) -> None:
    """Write `text` in UTF-8 to a file, or to standard output, whatever its encoding, if `path` is `-`."""
    if path != STDOUT:
        write_whole(path, text)
    elif isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.flush()
        sys.stdout.buffer.write(text.encode())
    elif sys.stdout is None:
        raise BranchworkError("the standard output is closed: write to a file instead of -")
    else:
        sys.stdout.write(text)


def complain(message: str) -> None:
    """Print `message` to standard error, if that can be written to."""
    with suppress(OSError, ValueError):
        print(f"branchwork: {message}", file=sys.stderr)


class Table(rich.table.Table):
    """A table, and the headers of its columns that a narrow terminal leaves out, the first of them first."""

    spare: Sequence[str] = ()


# What a verb shows of its value, on a terminal and in a notebook: a table, or lines of text.
Part: TypeAlias = Table | str


def make_table(*columns: str, names: Sequence[str] = (), title: str | None = None, spare: Sequence[str] = ()) -> Table:
    """Make a table whose first column is text and whose other columns are numbers.

    `columns` are messages, which are said here; `names`, such as those of classes, are the headers of further columns.
    `spare` are the columns that a narrow terminal leaves out, the first of them first.
    """
    table = Table(box=rich.box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    table.spare = [say(column) for column in spare]
    for index, column in enumerate((*map(say, columns), *names)):
        table.add_column(column, justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
    return table


# Columns of words are folded to this width, if need be, before a column of numbers is left out.
FOLDED = 12
# A header is broken at spaces alone.
_SPACES = re.compile(r" *\S+")
# Names that are too long for a column may be broken after a dot and the like.
_INSIDE = "._/+=@-"
_NAMES = re.compile(rf" *(?:[{HAN}]|[^ {HAN}{_INSIDE}]*[{_INSIDE}]|[^ {HAN}{_INSIDE}]+)[{CLOSING}]*")


def show(*parts: Part) -> None:
    """Print tables and lines of text.

    On a terminal, lines are wrapped between words, and paths stay whole, so that they can be copied. A table that is
    too wide moves its columns together, then leaves out its spare ones, then folds words and names, then loses columns
    on the right; a line says which. Output to a file is plain and as wide as its tables.
    """
    console = _console()
    if not console.is_terminal:
        console.width = max([200, *(_width(part) for part in parts if not isinstance(part, str))])
    for part in parts:
        if isinstance(part, str):
            _print(console, part)
            continue
        if part.title:  # not by rich, which would wrap it to the width of the table
            _print(console, str(part.title), style="bold")
            part.title = None
        left_out = _fit(part, console.width)
        for column in part.columns:
            column._cells = [_finished(cell) for cell in column.cells]
        console.print(part)
        if left_out:
            columns = ", ".join(left_out) if len(left_out) < 10 else say("{n} more columns", n=len(left_out))
            show(say("this terminal is too narrow for: {columns}", columns=columns))


def _print(console: "Console", text: str, style: str | None = None) -> None:
    for line in lines_of(text, console.width) if console.is_terminal else [text]:
        console.print(line, style=style, soft_wrap=True)


def fits(table: Table, *, without: Sequence[str] = ()) -> bool:
    """Return whether `table` fits on the terminal without some of its columns; into a file every table does."""
    console = _console()
    widths = [
        max(map(_cell_width, (_narrow(column), *column.cells)))
        for column in table.columns
        if column.header not in without
    ]
    return not console.is_terminal or sum(widths) + len(widths) + 1 <= console.width


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False, emoji=False, markup=False)


def _fit(table: Table, width: int) -> list[str]:
    """Make `table` no wider than `width`, and return the headers of the columns that are left out."""
    columns = list(table.columns)
    if _width(table) > width:
        table.padding = (0, 0, 0, 0)
    if _width(table) > width:
        for column in table.columns:
            column.header = _narrow(column)
    for header in table.spare:
        if _width(table) > width:
            table.columns = [column for column in table.columns if _words(column) != header]
    for header in reversed(table.spare):  # beside what is left, some may have room after all
        before, kept = table.columns, set(map(id, table.columns))
        table.columns = [column for column in columns if id(column) in kept or _words(column) == header]
        if _width(table) > width:
            table.columns = before
    while _width(table, folded=FOLDED) > width and len(table.columns) > 2:
        table.columns.pop()
    excess = _width(table) - width
    foldable = [column for column in table.columns if not column.no_wrap]
    widths = [_column_width(column) for column in foldable]
    while excess > 0 and max(widths) > 4:
        widths[widths.index(max(widths))] -= 1
        excess -= 1
    for column, room in zip(foldable, widths, strict=True):
        if room < _column_width(column):
            column._cells = [_folded(cell, room) for cell in column.cells]
    kept = set(map(id, table.columns))
    return [_words(column) for column in columns if column.header and id(column) not in kept]


def _narrow(column: "Column") -> str:
    """Return the header of a column in as many lines as its cells are narrow."""
    cells = max((4, *map(_cell_width, column.cells)))
    return "\n".join(part for line in str(column.header).split("\n") for part in wrapped(line, cells, _SPACES))


def _words(column: "Column") -> str:
    return str(column.header).replace("\n", " ")


def lines_of(text: str, width: int) -> Iterable[str]:
    """Yield the lines of `text`, those that are too long in several, each as far indented as its first."""
    for line in text.split("\n"):
        words = line.lstrip(" ")
        indent = line[: len(line) - len(words)]
        yield from (indent + part for part in wrapped(words, width - len(indent), WORDS))


def _folded(cell: Any, width: int) -> Any:
    """Return a cell in lines of `width`, those after the first indented as the name in it is."""
    text = str(cell)
    mark = text[: len(text) - len(text.lstrip(" ├│╰▌"))]
    room = width - len(mark)
    lines = wrapped(text[len(mark) :], room, WORDS)
    if max(map(_cell_width, lines)) > room:
        lines = wrapped(text[len(mark) :], room, _NAMES)
    words = f"\n{' ' * len(mark)}".join(lines)
    return mark + words if isinstance(cell, str) else type(cell)(mark + words, style=cell.style)


def _finished(cell: Any) -> Any:
    """Return a cell as it is printed: a zero is muted, and a space that holds words together is a space."""
    if cell == "·":
        return Text(cell, style="dim")
    return cell.replace("\u00a0", " ") if isinstance(cell, str) else cell


def _width(table: Table, *, folded: int | None = None) -> int:
    """Return the width of `table` with every number in full, and words folded after `folded` letters."""
    # Not by rich, whose measurement takes seconds for a hundred classes.
    _, right, _, left = table.padding
    gaps = (len(table.columns) - 1) * (right + 1 + left)  # in the box of `make_table`
    return sum(_column_width(column, folded) for column in table.columns) + gaps + 2


def _column_width(column: "Column", folded: int | None = None) -> int:
    width = max(map(_cell_width, (column.header, *column.cells)))
    return width if column.no_wrap or folded is None else min(width, folded)


def _cell_width(cell: Any) -> int:
    return max(map(cell_len, str(cell).split("\n")))


def result_parts(results: "tuple[Result, ...]") -> list[Part]:
    """Return a row for each trained net, and where the reports are."""
    from branchwork.catalogue.resolve import short_name

    table = make_table(
        "network", "parameters", "MACs", "epochs", "train s", "test accuracy (95%)", spare=("epochs", "parameters")
    )
    for result in results:
        table.add_row(
            short_name(result.net),
            f"{result.parameters:,}",
            f"{result.macs:,}",
            str(result.epochs),
            f"{result.train_seconds:.1f}",
            f"{result.test_accuracy:.2%} ({interval(result.test_interval)})",
        )
    settings = say("on {data}; threads: {threads}; {device}, {precision}", **vars(results[0]))
    reports = (say("report: {file}", file=result.report) for result in results if result.report)
    return [table, settings, *reports]


def drawn_beside(run: Path, name: str) -> tuple[Path | None, list[str]]:
    """Return the file `name` in a run folder; where it cannot be written, None and what to say about that."""
    if not os.path.isdir(run):
        return None, []
    try:
        check_writable(run / name)
    except RunError as reason:
        return None, [say("{name} is not drawn: {reason}", name=name, reason=reason)]
    return run / name, []


def where_drawn(message: str, file: Path | None) -> list[str]:
    """Return what to say about a drawing, if there is one: where it is, and where its words had to be English, why."""
    if file is None:
        return []
    from branchwork.figures import font_missing

    hint = say(
        "No installed font has Chinese characters, so its words are English. Install one, such as Noto Sans CJK."
    )
    return [say(message, file=file), *([hint] if font_missing(file) else [])]


def bar(part: float, cells: int = 6) -> str:
    """Return a bar for a fraction of `cells` letters, in eighths: ▇▇▍. Whatever is above 0 shows."""
    eighths = max(1, round(part * cells * 8)) if part > 0 else 0
    return "▇" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def interval(bounds: tuple[float, float]) -> str:
    """Write an interval of fractions in percent: 97.12–98.03."""
    return f"{100 * bounds[0]:.2f}–{100 * bounds[1]:.2f}"
