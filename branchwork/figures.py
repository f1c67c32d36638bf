"""The only set-up of matplotlib: fonts, file formats, and the palette of every drawing.

matplotlib is imported where it is needed, since it takes a second.
"""

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from branchwork.errors import BranchworkError, RunError
from branchwork.files import write_whole

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# Okabe and Ito's colours, which the colour-blind can tell apart, as fills so light that ink is legible on them.
COLOURS = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#D55E00", "#0072B2", "#F0E442")
# The colours of text and lines, and of values that are good or bad. In an SVG they follow the page, light or dark.
INK, GOOD, BAD = "#1c1c1c", "#1f6fb2", "#c44536"
_PAGE_COLOURS = {INK: "currentColor", GOOD: "rgb(var(--good, 31, 111, 178))", BAD: "rgb(var(--bad, 196, 69, 54))"}
# With the colour scheme, a drawing that is opened on its own is on a dark ground in dark mode.
_STYLE = (
    f".branchwork{{color-scheme:light dark;color:{INK}}}"
    "@media(prefers-color-scheme:dark){.branchwork{color:#e8e8e8}}"
)
_DPI = 150
_ENDINGS = (".svg", ".png", ".jpg", ".jpeg", ".pdf", "")
# Fonts for the scripts that matplotlib's own font lacks.
_FONTS = (
    "Noto Sans CJK SC",
    "Source Han Sans SC",
    "WenQuanYi Micro Hei",
    "Microsoft YaHei",
    "PingFang SC",
    "Noto Sans",
)


def check_ending(path: Path, error: type[BranchworkError] = RunError) -> None:
    """Raise `error` unless `save` knows the format that the ending of `path` stands for."""
    if path.suffix.lower() not in _ENDINGS:
        raise error(
            "{path}: figures cannot be written as {suffix}. Use .svg, .png, .jpg or .pdf.",
            path=path,
            suffix=path.suffix,
        )


@contextmanager
def new_figure(
    width: float, height: float, *, font_size: float = 10, layout: Literal["constrained"] | None = "constrained"
) -> Iterator["Figure"]:
    """Yield an empty figure of this size in inches, to be drawn on and saved within the context."""
    import matplotlib
    from matplotlib import font_manager
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    known = set(font_manager.get_font_names())
    inked = ("text.color", "axes.labelcolor", "axes.titlecolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: Any = {
        **dict.fromkeys(inked, INK),
        "font.family": [*matplotlib.rcParams["font.family"], *(family for family in _FONTS if family in known)],
        "font.size": font_size,
        "svg.fonttype": "none",  # text stays text, in the reader's fonts
        "svg.hashsalt": "branchwork",  # the same drawing gives the same file
        "text.parse_math": False,  # names may hold dollar signs
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # Text in a script that no font here has is drawn as boxes, except in an SVG.
        warnings.filterwarnings("ignore", "Glyph")
        figure = Figure(figsize=(width, height), layout=layout)
        FigureCanvasAgg(figure)
        yield figure


def save(figure: "Figure", path: Path, title: str, *, error: type[BranchworkError] = RunError) -> None:
    """Write `figure` to `path` in the format of its ending, or without one as PNG.

    An SVG has no background, and its ink follows light and dark; the other formats are on white. Raises `error` for an
    ending that `check_ending` refuses, and where the file cannot be written.
    """
    check_ending(path, error)
    form = path.suffix.lower().removeprefix(".") or "png"
    if form == "svg":
        drawing = inline_svg(figure, title)
        drawing = drawing.replace("<svg ", f'<svg class="branchwork" role="img" aria-label="{escape(title)}" ', 1)
        write_whole(path, drawing.replace("<defs>", f"<style>{_STYLE}</style>\n <defs>", 1), error=error)
    else:
        write_whole(path, _rendered(figure, form, title), error=error)


def inline_svg(figure: "Figure", title: str = "") -> str:
    """Return `figure` as an SVG element whose colours are those of the HTML page around it."""
    drawing = _rendered(figure, "svg", title).decode()
    for colour, page_colour in _PAGE_COLOURS.items():
        drawing = drawing.replace(colour, page_colour)
    return drawing[drawing.index("<svg ") :]


def _rendered(figure: "Figure", form: str, title: str) -> bytes:
    # Without dates, so that the same drawing gives the same file.
    dates: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    content = io.BytesIO()
    figure.savefig(
        content,
        format=form,
        dpi=_DPI,
        facecolor="none" if form == "svg" else "white",
        metadata={"Title": title, **dates[form]} if form in dates else None,  # JPEG has none
    )
    return content.getvalue()


def plain_axes(axes: "Axes", grid: Literal["both", "x"] = "both") -> None:
    """Leave two spines and a faint grid; for horizontal bars, grid `x`, one spine and vertical lines."""
    bars = grid == "x"
    axes.set_facecolor("none")
    axes.spines[["top", "right", "left"] if bars else ["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=INK, alpha=0.12, linewidth=0.7)
    axes.set_axisbelow(True)
    if bars:
        axes.tick_params(length=0)


def plain_log_ticks(axis: "Axis") -> None:
    """Label a log axis with plain numbers, such as 0.6, instead of formulas."""
    from matplotlib.ticker import LogFormatter

    class PlainNumbers(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return f"{x:g}" if super().__call__(x, pos) else ""

    axis.set_major_formatter("{x:g}")
    # If the axis spans less than a decade, only the minor ticks carry numbers.
    axis.set_minor_formatter(PlainNumbers(labelOnlyBase=False))
