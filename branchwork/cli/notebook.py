"""What a notebook shows of a value: the parts that the command prints, as HTML in the notebook's own colours."""

from collections.abc import Iterator, Sequence
from html import escape
from importlib import import_module
from itertools import groupby
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from branchwork.pages import cards, plot, snippet

# By the name of a value's class: the file here, and the function in it, that says how the command shows it.
PARTS = {
    "Result": ("output", "result_parts"),
    "SeedsResult": ("train", "seeds_parts"),
    "FoldsResult": ("train", "folds_parts"),
    "Evaluation": ("evaluate", "parts"),
    "Prediction": ("predict", "parts"),
    "Comparison": ("compare", "parts"),
    "NetSize": ("nets", "parts"),
    "Inspection": ("inspect", "parts"),
    "Reduction": ("inspect", "reduction_parts"),
    "Explanation": ("explain", "parts"),
    "PictureExplanation": ("explain", "picture_parts"),
    "Selection": ("select", "parts"),
    "StudyResult": ("study", "parts"),
    "Exported": ("export", "parts"),
    "Bench": ("bench", "parts"),
    "Installation": ("doctor", "parts"),
    "DataSummary": ("data", "parts"),
    "Packed": ("data", "packed_parts"),
}
# Values that are shown together where there are several.
_TOGETHER = ("Result", "Prediction", "NetSize", "PictureExplanation")


def render(value: Any) -> str:
    """Return `value`, or the values in a tuple, as HTML: what the command prints, below the drawing if it has one."""
    values = value if isinstance(value, tuple) else (value,)
    if not values:
        return snippet([])
    name = type(values[0]).__name__
    file, function = PARTS[name]
    parts = getattr(import_module(f"branchwork.cli.{file}"), function)(values if name in _TOGETHER else value)
    drawing = _drawing(value)
    return snippet([*([plot(drawing)] if drawing else []), *_html(parts)])


def _drawing(value: Any) -> str:
    if type(value).__name__ == "Explanation":
        from branchwork.explaining.explain_plots import inline_contributions

        return inline_contributions(value)
    return str(getattr(value, "drawing", ""))


def _html(parts: Sequence[Table | str]) -> Iterator[str]:
    for are_lines, group in groupby(parts, lambda part: isinstance(part, str)):
        if are_lines:
            yield f'<p class="lines">{escape(chr(10).join(map(str, group)).strip(chr(10)))}</p>'
        else:
            yield from (_table(table) for table in group if isinstance(table, Table))


def _table(table: Table) -> str:
    """Return a table; one of a single row, if each of its columns has a header, as a card for each cell."""
    heads = [str(column.header).replace("\n", " ") for column in table.columns]
    rows = list(zip(*(column.cells for column in table.columns), strict=True))
    if len(rows) == 1 and all(heads) and table.title is None:
        return cards(*(_card(head, str(cell)) for head, cell in zip(heads, rows[0], strict=True)))
    body = ""
    for row, look in zip(rows, table.rows, strict=True):
        kinds = " ".join(kind for kind, holds in (("bold", look.style), ("end", look.end_section)) if holds)
        body += f'<tr class="{kinds}">' if kinds else "<tr>"
        body += "".join(map(_cell, table.columns, row)) + "</tr>"
    head = "".join(_cell(column, head, "th") for column, head in zip(table.columns, heads, strict=True))
    title = "" if table.title is None else f"<caption>{escape(str(table.title))}</caption>"
    whole = f'<table class="lined">{title}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{whole}</div>'


def _card(head: str, cell: str) -> tuple[str, str, str]:
    """Return a card's name, value and remark: what stands in brackets after the value."""
    value, _, remark = cell.partition(" (")
    return head, value, remark.removesuffix(")")


def _cell(column: Column, cell: Any, tag: str = "td") -> str:
    text = _text(cell) if isinstance(cell, Text) else escape(str(cell))
    return f'<{tag} class="left">{text}</{tag}>' if column.justify == "left" else f"<{tag}>{text}</{tag}>"


def _text(text: Text) -> str:
    """Return text with its colours."""
    text, pieces = text.copy(), ""
    text.stylize(text.style)  # as a part of it, which rendering heeds
    for piece in text.render(Console(), end=""):
        style = piece.style.get_html_style() if piece.style else ""
        pieces += f'<span style="{style}">{escape(piece.text)}</span>' if style else escape(piece.text)
    return pieces
