"""Sheets of small images with captions."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from branchwork.figures import new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# More characters in a caption's line would push the images apart.
_LONGEST_LINE = 24
# Inches: the side of an image, the height of the title, and the side of a diagram with its labels.
_SIDE, _TITLE, _DIAGRAM = 1.4, 0.45, 3.4
# Points.
_CAPTION_SIZE, _TITLE_SIZE = 8.5, 11.0


def draw_sheet(
    path: Path,
    images: Tensor,
    captions: Sequence[str],
    *,
    title: str,
    columns: int = 8,
    beside: "Callable[[Axes], None] | None" = None,
) -> None:
    """Draw uint8 images N×C×H×W in a grid, each with its caption below, under one title.

    `beside` draws a diagram to the right of the grid. Raises `RunError` if the file cannot be written.
    """
    captions = ["\n".join(map(shorten, caption.split("\n"))) for caption in captions]
    with new_figure(1, 1, layout=None) as figure:
        _lay_out(figure, images, captions, title=title, columns=min(columns, max(1, len(images))))
        if beside is not None:
            beside(_widen(figure))
        save(figure, path, title)


def _widen(figure: "Figure") -> "Axes":
    """Return axes for a diagram in a strip that is added to the right of all that is drawn."""
    (grid,), (width, before) = figure.axes, figure.get_size_inches()
    whole, height, side = width + _DIAGRAM, max(before, _DIAGRAM), _DIAGRAM - 0.9
    figure.set_size_inches(whole, height)
    grid.set_position((0, 1 - before / height, width / whole, before / height))
    return figure.add_axes(((width + 0.7) / whole, 1 - (_TITLE + side) / height, side / whole, side / height))


def shorten(text: str, most: int = _LONGEST_LINE) -> str:
    """Return at most `most` characters of `text`."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _lay_out(figure: "Figure", images: Tensor, captions: Sequence[str], *, title: str, columns: int) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties

    renderer = FigureCanvasAgg(Figure(dpi=72)).get_renderer()  # type: ignore[no-untyped-call]  # its pixels are points

    def inches(text: str, size: float) -> float:
        return float(renderer.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0]) / 72

    lines = {line for caption in captions for line in caption.split("\n")}
    across = max([_SIDE, *(0.1 + inches(line, _CAPTION_SIZE) for line in lines)])
    down = _SIDE + 0.05 + 0.16 * max((caption.count("\n") + 1 for caption in captions), default=0)
    width = max(across * columns, 0.2 + inches(title, _TITLE_SIZE))
    height = _TITLE + down * max(1, math.ceil(len(images) / columns))
    figure.set_size_inches(width, height)
    # One pair of axes for all images, in inches from the top: a pair for each takes ten times as long.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.text(width / 2, _TITLE / 2, title, fontsize=_TITLE_SIZE, ha="center", va="center")
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(index, columns)
        x = width / 2 + (column + 0.5 - columns / 2) * across
        y = _TITLE + row * down + _SIDE / 2
        h, w = (0.47 * _SIDE * side / max(image.shape[1:]) for side in image.shape[1:])
        axes.imshow(
            image.permute(1, 2, 0).numpy(),
            cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto", extent=(x - w, x + w, y + h, y - h),
        )  # fmt: skip
        axes.text(x, y + h + 0.03 * _SIDE, caption, fontsize=_CAPTION_SIZE, ha="center", va="top")
    axes.set(xlim=(0, width), ylim=(height, 0))
