"""The only set-up of matplotlib: fonts, file formats, and themes. The colours themselves are in `palette`.

matplotlib is imported where it is needed, since it takes a second.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from branchwork.errors import BranchworkError, RunError
from branchwork.files import check_writable, write_whole
from branchwork.language import language, speaking
from branchwork.palette import DARK, LIGHT, Theme, ThemeName, rgb

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

# The colours of text and lines, and of values that are good or bad, by the names under which `new_figure` gives
# matplotlib those of its theme.
INK, GOOD, BAD, PAPER = "branchwork:ink", "branchwork:good", "branchwork:bad", "branchwork:paper"
# In an HTML page of ours, a drawing takes the page's own colours.
_PAGE_COLOURS = {
    LIGHT.ink: "currentColor",
    LIGHT.good: f"rgb(var(--good, {rgb(LIGHT.good)}))",
    LIGHT.bad: f"rgb(var(--bad, {rgb(LIGHT.bad)}))",
}
_DPI = 150
_ENDINGS = (".svg", ".png", ".jpg", ".jpeg", ".pdf", "")
# How the names of fonts that have Chinese begin, on Linux, Windows and macOS.
_CHINESE_FONTS = (
    "Noto Sans CJK", "Noto Sans SC", "Source Han Sans", "WenQuanYi", "Microsoft YaHei", "SimHei", "PingFang",
    "Hiragino Sans GB", "STHeiti", "Heiti", "Arial Unicode", "Droid Sans Fallback", "Noto Serif CJK",
)  # fmt: skip
# In an SVG, the reader's system chooses.
_SVG_FONTS = "'PingFang SC', 'Microsoft YaHei', 'Noto Sans CJK SC', 'WenQuanYi Micro Hei', sans-serif"


def check_drawing(path: Path, error: type[BranchworkError] = RunError) -> None:
    """Raise `error` unless `save` can write `path`, in the format of its ending. Call it before long work."""
    if path.suffix.lower() not in _ENDINGS:
        raise error(
            "{path}: figures cannot be written as {suffix}. Use .svg, .png, .jpg or .pdf.",
            path=path,
            suffix=path.suffix,
        )
    check_writable(path, error=error)


def chinese_font() -> list[str]:
    """Return the font for Chinese in pictures; nothing if there is none here."""
    from matplotlib import font_manager

    def find() -> list[str]:
        known = sorted(font_manager.get_font_names(), key=lambda name: ("SC" not in name, name))
        return [name for start in _CHINESE_FONTS for name in known if name.startswith(start)][:1]

    if not (found := find()):
        # matplotlib keeps a list, which lacks what was installed later.
        listed = {font.fname for font in font_manager.fontManager.ttflist}
        for path in set(font_manager.findSystemFonts()) - listed:
            with suppress(OSError, RuntimeError):
                font_manager.fontManager.addfont(path)
        found = find()
    return found


def font_missing(path: Path) -> bool:
    """Return whether the words drawn into `path` would be boxes; an SVG is shown in its reader's fonts."""
    return language() == "zh" and path.suffix.lower() != ".svg" and not chinese_font()


@contextmanager
def legible(path: Path) -> Iterator[None]:
    """Speak English where the words that are drawn into `path` could not be read otherwise."""
    with speaking("en") if font_missing(path) else nullcontext():
        yield


@contextmanager
def new_figure(
    width: float,
    height: float,
    *,
    font_size: float = 10,
    layout: Literal["constrained"] | None = "constrained",
    theme: ThemeName = "light",
) -> Iterator["Figure"]:
    """Yield an empty figure of this size in inches, to be drawn on and saved within the context.

    Its paper and ink are those of `theme`; `auto`, which `save` then needs too, is drawn as light.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.colors import get_named_colors_mapping
    from matplotlib.figure import Figure

    colours = DARK if theme == "dark" else LIGHT
    for name, colour in ((INK, colours.ink), (GOOD, colours.good), (BAD, colours.bad), (PAPER, colours.card)):
        get_named_colors_mapping()[name] = colour  # one by one: `update` would leave the old ones in its cache
    inked = ("text.color", "axes.labelcolor", "axes.titlecolor", "axes.edgecolor", "xtick.color", "ytick.color")
    style: Any = {
        **dict.fromkeys(inked, INK),
        "axes.facecolor": "none",
        "font.family": [*matplotlib.rcParams["font.family"], *chinese_font()],
        "font.size": font_size,
        "svg.fonttype": "none",  # text stays text, in the reader's fonts
        "svg.hashsalt": "branchwork",  # the same drawing gives the same file
        "text.parse_math": False,  # names may hold dollar signs
    }
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # Text in a script that no font here has is drawn as boxes, except in an SVG.
        warnings.filterwarnings("ignore", "Glyph")
        figure = Figure(figsize=(width, height), layout=layout, facecolor=PAPER)
        FigureCanvasAgg(figure)
        yield figure


def save(
    figure: "Figure",
    path: Path,
    title: str,
    *,
    error: type[BranchworkError] = RunError,
    theme: ThemeName = "light",
) -> None:
    """Write `figure` to `path` in the format of its ending, or without one as PNG, on paper of its own.

    In an SVG of theme `auto`, paper and ink both follow the reader's system; other formats are light then. Raises
    `error` where `check_drawing` would.
    """
    check_drawing(path, error)
    form = path.suffix.lower().removeprefix(".") or "png"
    content = _rendered(figure, form, title)
    if form == "svg":
        drawing = content.decode()
        drawing = drawing[drawing.index("<svg ") :]
        drawing = drawing.replace("<svg ", f'<svg class="branchwork" role="img" aria-label="{escape(title)}" ', 1)
        content = (_following(drawing) if theme == "auto" else drawing).encode()
    write_whole(path, content, error=error)


def _following(drawing: str) -> str:
    """Return a light SVG whose paper and ink follow the reader's system."""

    def variables(theme: Theme) -> str:
        return f".branchwork{{--card:{theme.card};--ink:{theme.ink};--good:{theme.good};--bad:{theme.bad}}}"

    for name in ("card", "ink", "good", "bad"):
        drawing = drawing.replace(getattr(LIGHT, name), f"var(--{name})")
    style = f"{variables(LIGHT)}@media(prefers-color-scheme:dark){{{variables(DARK)}}}"
    return drawing.replace("<defs>", f"<style>{style}</style>\n <defs>", 1)


def inline_svg(figure: "Figure", title: str = "") -> str:
    """Return `figure` as an SVG element without paper, whose colours are those of the HTML page around it."""
    drawing = _rendered(figure, "svg", title, paper="none").decode()
    for colour, page_colour in _PAGE_COLOURS.items():
        drawing = drawing.replace(colour, page_colour)
    return drawing[drawing.index("<svg ") :]


def _rendered(figure: "Figure", form: str, title: str, *, paper: str = PAPER) -> bytes:
    # Without dates, so that the same drawing gives the same file.
    dates: dict[str, dict[str, Any]] = {"png": {}, "svg": {"Date": None}, "pdf": {"CreationDate": None}}
    content = io.BytesIO()
    figure.savefig(
        content,
        format=form,
        dpi=_DPI,
        facecolor=paper,
        metadata={"Title": title, **dates[form]} if form in dates else None,  # JPEG has none
    )
    if form == "svg" and re.search("[\u4e00-\u9fff]", drawing := content.getvalue().decode()):
        return re.sub(r"('DejaVu Sans')[^;\"]*", rf"\1, {_SVG_FONTS}", drawing).encode()
    return content.getvalue()


def plain_axes(axes: "Axes", grid: Literal["both", "x"] = "both") -> None:
    """Leave two spines and a faint grid; for horizontal bars, grid `x`, one spine and vertical lines."""
    bars = grid == "x"
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
