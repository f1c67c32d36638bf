"""The scaffolding of all HTML reports: one file that opens anywhere, offline, in light and dark mode."""

import base64
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from branchwork.language import language
from branchwork.palette import css_variables

if TYPE_CHECKING:
    from torch import Tensor


def page(title: str, parts: Iterable[str]) -> str:
    """Return the whole file; `parts` are HTML in the user's language."""
    code = "zh-Hans" if language() == "zh" else "en"
    style = css_variables() + _read_style("pages.css")
    return (
        f'<!doctype html>\n<html lang="{code}"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>\n"
        + "\n".join([f"<h1>{escape(title)}</h1>", *parts])
        + "\n</body></html>\n"
    )


def snippet(parts: Iterable[str]) -> str:
    """Return `parts`, HTML, for someone else's page, such as a notebook: in its fonts, on its paper, in its ink."""
    style = _read_style("pages.css") + _read_style("notebook.css")
    return f'<div class="branchwork"><style>.branchwork {{ {style} }}</style>{"".join(parts)}</div>'


def _read_style(name: str) -> str:
    return (resources.files("branchwork") / name).read_text(encoding="utf-8")


def section(title: str, words: str, content: str = "") -> str:
    """Return a heading, a paragraph, and the HTML `content` below them."""
    return f"<h2>{escape(title)}</h2>\n{paragraph(words)}\n{content}"


def paragraph(words: str) -> str:
    """Return a paragraph of plain text."""
    return f"<p>{escape(words)}</p>"


def details(title: str, content: str) -> str:
    """Return a heading that opens the HTML `content` below it."""
    return f"<details><summary>{escape(title)}</summary>\n{content}\n</details>"


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


def plot(svg: str, least: float = 0.66) -> str:
    """Return the element that holds a drawing of `figures.inline_svg`.

    Where there is no room for this share of its size, as on a phone, it moves sideways, so that it stays legible.
    """
    width = 96 / 72 * float(re.findall(r'width="([\d.]+)pt"', svg)[0])  # pixels
    style = f'style="width: 100%; max-width: {1.07 * width:.0f}px; min-width: {least * width:.0f}px"'
    return f'<div class="scroll">{svg.replace("<svg", f"<svg {style}", 1)}</div>'


def side_by_side(*drawings: str) -> str:
    """Return the element that holds drawings beside each other, on a phone one below the other."""
    return f'<div class="beside">{"".join(drawings)}</div>'


@dataclass(frozen=True)
class Bar:
    """A value with its interval, what is written beside it, and the colour of its bar; `group` is its heading."""

    group: str
    name: str
    value: float
    interval: tuple[float, float]
    words: str
    colour: str


def bars(rows: Sequence[Bar]) -> str:
    """Return a horizontal bar for each row, all on one scale, with a heading before each group."""
    low = min(0.0, *(row.interval[0] for row in rows))
    span = max(0.0, *(row.interval[1] for row in rows)) - low or 1.0

    def between(start: float, end: float) -> str:
        start, end = sorted((start, end))
        return f"left: {(start - low) / span:.2%}; width: {(end - start) / span:.2%}"

    parts, group = [], None
    for row in rows:
        if row.group != group:
            group = row.group
            parts.append(f"<h3>{escape(group)}</h3>")
        parts.append(
            f"<span>{escape(row.name)}</span><div>"
            f'<i style="{between(0, row.value)}; background: {row.colour}"></i><s style="{between(*row.interval)}"></s>'
            f'<em style="{between(0, 0)}"></em></div><b>{escape(row.words)}</b>'
        )
    return f'<div class="bars">{"".join(parts)}</div>'


def image_grid(images: Iterable[tuple[NDArray[np.uint8], str, str]], *, small: bool = False) -> str:
    """Return a grid of images H×W, H×W×3 or H×W×4, each with an alternative text and an HTML caption."""
    cells = [
        f'<figure><img alt="{escape(alt)}" src="{_png_url(pixels)}"><figcaption>{caption}</figcaption></figure>'
        for pixels, alt, caption in images
    ]
    wide, narrow = (_columns(len(cells), most) for most in ((16, 8) if small else (10, 4)))
    kind = "images small" if small else "images"
    return f'<div class="{kind}" style="--wide: {wide}; --narrow: {narrow}">{"".join(cells)}</div>'


def pixels_of(image: "Tensor") -> NDArray[np.uint8]:
    """Return an image uint8 C×H×W as `image_grid` wants it."""
    return (image[0] if image.shape[0] == 1 else image.permute(1, 2, 0)).numpy()


def _columns(count: int, most: int) -> int:
    """Return how many columns, about `most`, leave the last row as full as can be, and no image alone in it."""
    if count <= most:
        return max(1, count)
    return min(range(most + 1, most // 2, -1), key=lambda columns: (count % columns == 1, -count % columns))


def _png_url(pixels: NDArray[np.uint8]) -> str:
    from PIL import Image

    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(content.getvalue()).decode()
