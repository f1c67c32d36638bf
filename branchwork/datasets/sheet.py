"""Sheets of small images with captions, written as PNG, JPEG, SVG or PDF by the file's ending."""

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from branchwork.errors import RunError
from branchwork.files import check_writable, write_whole

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Fonts with the scripts that matplotlib's own font lacks.
_FONTS = (
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Noto Sans",
)
# More characters in a caption's line would push the images apart.
_LONGEST_LINE = 24
# Inches: the side of an image, and the height of the title.
_SIDE, _TITLE = 1.4, 0.45
# Points.
_CAPTION_SIZE, _TITLE_SIZE = 8.5, 11.0


def check_sheet(path: Path) -> None:
    """Raise `RunError` if no sheet can be drawn into `path`, so that it is said before the work."""
    if path.suffix.lower() not in ("", ".png", ".jpg", ".jpeg", ".svg", ".pdf"):
        raise RunError(f"{path}: no picture can be written in this format. Take .png, .jpg, .svg or .pdf.")
    check_writable(path)


def draw_sheet(path: Path, images: Tensor, captions: Sequence[str], title: str, columns: int = 8) -> None:
    """Draw uint8 images N×C×H×W in a grid, each with its caption below, under one title.

    Raises `RunError` if `check_sheet` would.
    """
    import matplotlib
    from matplotlib import font_manager

    check_sheet(path)
    captions = ["\n".join(map(shorten, caption.split("\n"))) for caption in captions]
    known = set(font_manager.get_font_names())
    families = [*matplotlib.rcParams["font.family"], *(family for family in _FONTS if family in known)]
    content = io.BytesIO()
    with matplotlib.rc_context({"font.family": families}), warnings.catch_warnings():
        # A script that no installed font has is drawn as boxes: the names are in the table too.
        warnings.filterwarnings("ignore", "Glyph")
        figure = _lay_out(images, captions, title, min(columns, max(1, len(images))))
        figure.savefig(content, format=path.suffix[1:].lower() or "png", dpi=130)
    write_whole(path, content.getvalue())


def shorten(text: str, most: int = _LONGEST_LINE) -> str:
    """Return at most `most` characters of `text`."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _lay_out(images: Tensor, captions: Sequence[str], title: str, columns: int) -> "Figure":
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
    figure = Figure(figsize=(width, height))
    # One pair of axes for all images, in inches from the top: a pair for each takes ten times as long.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.text(width / 2, _TITLE / 2, title, fontsize=_TITLE_SIZE, ha="center", va="center", parse_math=False)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(index, columns)
        x = width / 2 + (column + 0.5 - columns / 2) * across
        y = _TITLE + row * down + _SIDE / 2
        h, w = (0.47 * _SIDE * side / max(image.shape[1:]) for side in image.shape[1:])
        axes.imshow(
            image.permute(1, 2, 0).numpy(),
            cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto", extent=(x - w, x + w, y + h, y - h),
        )  # fmt: skip
        axes.text(x, y + h + 0.03 * _SIDE, caption, fontsize=_CAPTION_SIZE, ha="center", va="top", parse_math=False)
    axes.set(xlim=(0, width), ylim=(height, 0))
    return figure
