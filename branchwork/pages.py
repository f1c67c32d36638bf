"""The scaffolding of all HTML reports: one file that opens anywhere, offline, in light and dark mode."""

import base64
import io
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import Any

import numpy as np
from numpy.typing import NDArray


def page(title: str, parts: Iterable[str], language: str = "en") -> str:
    """Return the whole file; `parts` are HTML in `language`."""
    style = (resources.files("branchwork") / "pages.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="{language}"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>\n"
        + "\n".join([f"<h1>{escape(title)}</h1>", *parts])
        + "\n</body></html>\n"
    )


def section(title: str, words: str, content: str = "") -> str:
    """Return a heading, a paragraph, and the HTML `content` below them."""
    return f"<h2>{escape(title)}</h2>\n{paragraph(words)}\n{content}"


def paragraph(words: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(words)}</p>"


def footer(words: str) -> str:
    """Return the last line of a page, from plain text."""
    return f"<footer>{escape(words)}</footer>"


def cards(*values: tuple[str, str, str]) -> str:
    """Return a card for each name, value and remark."""
    inside = "".join(
        f"<div><span>{escape(name)}</span><b>{escape(value)}</b><span>{escape(remark)}</span></div>"
        for name, value, remark in values
    )
    return f'<div class="cards">{inside}</div>'


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column names the rows."""
    cells = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join(
        f"<tr><th>{escape(first)}</th>{''.join(f'<td>{escape(cell)}</td>' for cell in others)}</tr>"
        for first, *others in rows
    )
    return (
        f'<div class="scroll"><table class="lined"><thead><tr>{cells}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def facts(values: Mapping[str, Any]) -> str:
    """Return a table of names and values."""
    rows = "".join(f"<tr><th>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>" for k, v in values.items())
    return f'<table class="lined facts"><tbody>{rows}</tbody></table>'


def plot(svg: str) -> str:
    """Return the element that holds a drawing of `figures.inline_svg`."""
    return f'<div class="plot">{svg}</div>'


def image_grid(images: Iterable[tuple[NDArray[np.uint8], str, str]], *, small: bool = False) -> str:
    """Return a grid of images H×W or H×W×3, each with an alternative text and an HTML caption."""
    cells = "".join(
        f'<figure><img alt="{escape(alt)}" src="{_png_url(pixels)}"><figcaption>{caption}</figcaption></figure>'
        for pixels, alt, caption in images
    )
    return f'<div class="images{" small" if small else ""}">{cells}</div>'


def _png_url(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
