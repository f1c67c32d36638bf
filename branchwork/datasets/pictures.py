"""Sheets of small images with captions, written as PNG, JPEG, SVG or PDF by the file's ending."""

import io
import math
import warnings
from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from branchwork.errors import RunError
from branchwork.files import write_whole

# Fonts with the scripts that matplotlib's own one lacks.
_FONTS = (
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Noto Sans",
)

# More letters in a line would push the images aside.
_LINE = 24

# Inches: the square that an image has, and the line of the title.
_SIDE, _TITLE = 1.4, 0.45


def draw_sheet(path: Path, images: Tensor, captions: Sequence[str], title: str, columns: int = 8) -> None:
    """Draw uint8 images N×C×H×W in a grid, each with its caption below, under one title.

    Raises `RunError` where `path` ends in something else than .png, .jpg, .svg or .pdf.
    """
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    form = path.suffix.removeprefix(".").lower() or "png"
    if form not in ("png", "jpg", "jpeg", "svg", "pdf"):
        raise RunError(f"{path}: no picture can be written in this format. Take .png, .jpg, .svg or .pdf.")
    columns = min(columns, max(1, len(images)))
    captions = ["\n".join(map(shorten, caption.split("\n"))) for caption in captions]
    longest = max((len(line) for caption in captions for line in caption.split("\n")), default=0)
    lines = max((caption.count("\n") + 1 for caption in captions), default=0)
    # In inches: a letter of a caption needs 0.07, one of the title 0.085.
    across, down = max(_SIDE, 0.07 * longest), _SIDE + 0.05 + 0.16 * lines
    width = max(across * columns, 0.085 * len(title))
    height = _TITLE + down * max(1, math.ceil(len(images) / columns))
    figure = Figure(figsize=(width, height))
    FigureCanvasAgg(figure)
    # Axes in inches from the top for all images: to have some for each takes ten times as long.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.text(width / 2, _TITLE / 2, title, fontsize=11, ha="center", va="center", parse_math=False)
    for index, (image, caption) in enumerate(zip(images, captions, strict=True)):
        row, column = divmod(index, columns)
        x = width / 2 + (column + 0.5 - columns / 2) * across
        y = _TITLE + row * down + _SIDE / 2
        h, w = (0.47 * _SIDE * side / max(image.shape[1:]) for side in image.shape[1:])
        axes.imshow(
            image.permute(1, 2, 0).numpy(),
            cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto", extent=(x - w, x + w, y + h, y - h),
        )  # fmt: skip
        axes.text(x, y + h + 0.03 * _SIDE, caption, fontsize=8.5, ha="center", va="top", parse_math=False)
    axes.set(xlim=(0, width), ylim=(height, 0))
    content = io.BytesIO()
    known = set(font_manager.get_font_names())
    families = [*matplotlib.rcParams["font.family"], *(family for family in _FONTS if family in known)]
    with matplotlib.rc_context({"font.family": families}), warnings.catch_warnings():
        # A script that no font here has is drawn as boxes: its name stands in the table.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(content, format=form, dpi=130)
    write_whole(path, content.getvalue())


def shorten(text: str, most: int = _LINE) -> str:
    """At most so many letters of `text`."""
    return text if len(text) <= most else f"{text[: most - 1]}…"
