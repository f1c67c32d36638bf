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


def draw_sheet(path: Path, images: Tensor, captions: Sequence[str], title: str, columns: int = 8) -> None:
    """Draw uint8 images N×C×H×W in a grid, each with its caption below, under one title.

    Raises `RunError` where `path` ends in something else than .png, .jpg, .svg or .pdf.
    """
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, max(1, len(images)))
    captions = ["\n".join(map(_short, caption.split("\n"))) for caption in captions]
    longest = max((len(line) for caption in captions for line in caption.split("\n")), default=0)
    rows = max(1, math.ceil(len(images) / columns))
    width = max(
        max(1.35, 0.07 * longest) * columns, 0.085 * len(title)
    )  # a title of n letters needs about 0.085 inches each
    figure = Figure(figsize=(width, 1.75 * rows + 0.5), layout="constrained")
    FigureCanvasAgg(figure)
    form = path.suffix.removeprefix(".").lower() or "png"
    if form not in ("png", "jpg", "jpeg", "svg", "pdf"):
        raise RunError(f"{path}: no picture can be written in this format. Take .png, .jpg, .svg or .pdf.")
    figure.suptitle(title, fontsize=11, parse_math=False)
    for index in range(rows * columns):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.axis("off")
        if index < len(images):
            pixels = images[index].permute(1, 2, 0).numpy()
            axes.imshow(pixels.squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
            axes.text(
                0.5, -0.05, captions[index],
                fontsize=8.5, ha="center", va="top", transform=axes.transAxes, parse_math=False,
            )  # fmt: skip
    content = io.BytesIO()
    known = set(font_manager.get_font_names())
    families = [*matplotlib.rcParams["font.family"], *(family for family in _FONTS if family in known)]
    with matplotlib.rc_context({"font.family": families}), warnings.catch_warnings():
        # A script that no font here has is drawn as boxes: its name stands in the table.
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(content, format=form, dpi=130)
    write_whole(path, content.getvalue())


def _short(line: str) -> str:
    return line if len(line) <= _LINE else f"{line[: _LINE - 1]}…"
