"""What the reports share: one HTML file that opens anywhere, offline, in light and dark, with its drawings inside."""

import io
import warnings
from collections.abc import Callable, Mapping, Sequence
from html import escape
from importlib import resources
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# matplotlib knows no style sheet: these stand for its colours, and are replaced in the finished drawing.
_STAND_INS = {"#010203": "currentColor", "#010204": "rgb(var(--good))", "#010205": "rgb(var(--bad))"}
INK, GOOD, BAD = _STAND_INS


def page(title: str, parts: Sequence[str], language: str = "en") -> str:
    """The file: `parts` are HTML in `language`."""
    style = (resources.files("branchwork") / "training/report.css").read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="{language}"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head>\n<body>\n"
        + "\n".join(parts)
        + "\n</body></html>\n"
    )


def cards(*figures: tuple[str, str, str]) -> str:
    """A card for each name, value and remark."""
    inside = "".join(
        f"<div><span>{name}</span><b>{value}</b><span>{more}</span></div>" for name, value, more in figures
    )
    return f'<div class="figures">{inside}</div>'


def facts(named: Mapping[str, Any]) -> str:
    rows = "".join(f"<tr><th>{escape(str(k))}</th><td>{escape(str(v))}</td></tr>" for k, v in named.items())
    return f'<table class="facts"><tbody>{rows}</tbody></table>'


def drawing(paint: "Callable[[Figure], None]", width: float, height: float) -> str:
    """What `paint` draws on a figure of these inches, as SVG whose text and colours are those of the page."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    named = dict.fromkeys(("text.color", "axes.labelcolor", "xtick.color", "ytick.color", "axes.edgecolor"), INK)
    style: Any = {**named, "svg.fonttype": "none", "svg.hashsalt": "branchwork", "font.size": 10}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # The reader's own fonts draw the text, so that matplotlib's need no Chinese.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure = Figure(figsize=(width, height), layout="constrained", facecolor="none")
        FigureCanvasSVG(figure)
        paint(figure)
        content = io.StringIO()
        figure.savefig(content, format="svg", metadata={"Date": None})
    drawn = content.getvalue()
    for stand_in, colour in _STAND_INS.items():
        drawn = drawn.replace(stand_in, colour)
    return drawn[drawn.index("<svg") :]


def plain_axes(axes: "Axes") -> None:
    """Two spines and a faint grid."""
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color=INK, alpha=0.12, linewidth=0.7)
