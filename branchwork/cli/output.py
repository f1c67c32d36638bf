"""What the verbs share in showing a value: as a table for people, as JSON for programs."""

import dataclasses
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import Parameter

from branchwork.errors import DataError, NetError
from branchwork.files import write_whole

if TYPE_CHECKING:
    from rich.table import Column, Table

    from branchwork.training.train import Result


def _need_file(_: object, path: Path | None) -> None:
    # A lone hyphen is the standard output; what else begins with one is a flag whose file was forgotten.
    if path is not None and path.name.startswith("-") and path != STDOUT:
        raise ValueError(f"needs a file, or - for the standard output, and {path} is a flag")
    if path is not None and os.path.isdir(path):
        raise ValueError(f"needs a file, and {path} is a folder")


STDOUT = Path("-")
FILE = Parameter(allow_leading_hyphen=True, validator=_need_file)
Json = Annotated[
    Path | None, FILE, Parameter(name="--json", help="Write the figures into this file as JSON; - shows them.")
]
Source = Annotated[Path | None, Parameter(help="A folder that holds the files of MNIST or Fashion-MNIST.")]
Size = Annotated[
    str | None, Parameter(help="Of a folder's images: one side, or height and width as 48x64; chosen by default.")
]
Fit = Annotated[
    Literal["crop", "pad", "stretch"] | None,
    Parameter(help="How a folder's pictures are brought to that size: crop (the default), pad with black, or stretch."),
]
DATA = "mnist, fashion-mnist, sample (7,000 digits of MNIST that come along), a folder or pack of images, or auto"

Shortcut = Annotated[
    Literal["identity", "scale", "conv", "gated", "gate-only", "dropout", "none"] | None,
    Parameter(help="Of the residual nets' blocks that keep their shape; net[shortcut=…] is the same.", group="Net"),
]
Stem = Annotated[
    Literal["auto", "small", "large"] | None,
    Parameter(help="small is for images of up to 96 pixels, and taken for them by itself.", group="Net"),
]


def deliver(value: Any, json_file: Path | None, show: Callable[[], None]) -> None:
    """Show `value` as people read it, unless its JSON goes to the standard output."""
    if json_file is not None:
        plain = [dataclasses.asdict(v) for v in value] if isinstance(value, tuple) else dataclasses.asdict(value)
        write_text(json.dumps(plain, indent=2, ensure_ascii=False) + "\n", json_file)
    if json_file != STDOUT:
        show()


def write_text(text: str, path: Path) -> None:
    """Into a file, or to the standard output where `path` is `-`."""
    if path == STDOUT:
        sys.stdout.write(text)
    else:
        write_whole(path, text)


def make_table(*columns: str, title: str | None = None) -> "Table":
    """A table whose first column is text and whose others are numbers."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    for index, column in enumerate(columns):
        table.add_column(column, justify="right" if index else "left", no_wrap=index > 0, overflow="fold")
    return table


# Words are folded behind so many letters before a column is lost.
FOLDED = 16


def show(*parts: "Table | str") -> None:
    """Print tables and lines of text. Paths stay in one piece, so that they can be copied.

    A table that is too wide for the terminal loses columns from the right, and says which. A file is as wide as its
    tables.
    """
    from rich.console import Console

    console = Console(highlight=False, emoji=False, markup=False)
    if not console.is_terminal:
        console.width = max([200, *(_width(part) for part in parts if not isinstance(part, str))])
    for part in parts:
        if isinstance(part, str):
            console.print(part, soft_wrap=True)
            continue
        lost: list[str] = []
        left = _width(part, FOLDED) - console.width
        while len(part.columns) > 2 and left > 0:
            left -= _size(part.columns[-1], FOLDED) + _gap(part)
            lost.insert(0, str(part.columns.pop().header))
        console.print(part)
        if lost:
            which = ", ".join(lost) if len(lost) < 10 and all(lost) else f"{len(lost)} more columns"
            console.print(f"this terminal is too narrow for: {which}")


def _width(table: "Table", folded: int | None = None) -> int:
    """Letters that a line of `table` has where no number is cut, and words are folded behind so many."""
    # Not rich's own measure, which takes seconds for a hundred classes.
    return sum(_size(column, folded) for column in table.columns) + (len(table.columns) - 1) * _gap(table) + 2


def _size(column: "Column", folded: int | None) -> int:
    from rich.cells import cell_len

    size = max(map(cell_len, map(str, (column.header, *column.cells))))
    return size if column.no_wrap or folded is None else min(size, folded)


def _gap(table: "Table") -> int:
    """Between two columns, in the box that `make_table` gives."""
    _, right, _, left = table.padding
    return right + 1 + left


def show_results(results: "tuple[Result, ...]") -> None:
    """One row for each trained net, and where the reports are."""
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
    about = f"on {first.data}, {first.threads} threads, {first.device}, {first.precision}"
    show(table, about, *(f"report: {result.report}" for result in results))


def interval(bounds: tuple[float, float]) -> str:
    return f"{100 * bounds[0]:.2f}–{100 * bounds[1]:.2f}"


def parse_shape(text: str, flag: str) -> tuple[int, ...]:
    """`1x28x28` as numbers. Raises `NetError` for anything else than numbers above 0."""
    numbers = re.split("[x×]", text)
    if not all(number.isdecimal() and int(number) for number in numbers):
        raise NetError(f"{flag} is {text!r}, and channels, height and width are needed, as 1x28x28")
    return tuple(map(int, numbers))


def parse_size(text: str | None) -> tuple[int, int] | None:
    """`64` or `48x64` as height and width. Raises `DataError` for anything else than one or two whole numbers."""
    if text is None:
        return None
    sides = re.split("[x×]", text)
    if len(sides) > 2 or not all(side.isdecimal() and len(side) < 10 for side in sides):
        raise DataError(f"--size is {text!r}, and one side is needed, or height and width, as 48x64")
    return int(sides[0]), int(sides[-1])
