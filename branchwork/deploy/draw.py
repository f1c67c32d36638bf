"""The picture of a bench: a panel for each batch size, a pair of bars for each engine and precision."""

import io
from pathlib import Path
from typing import Any

from branchwork.deploy.figures import Bench, Timing
from branchwork.errors import EngineError
from branchwork.files import write_whole
from branchwork.language import milliseconds, times

_WRITTEN, _FUSED, _INK, _FAINT = "#b8bec6", "#0072B2", "#1c1c1c", "#d9d9d9"
_BAR = 0.38
_ROW = 0.62  # inches for an engine
_PANEL = 4.2  # inches for a batch size


def check_picture(path: Path) -> None:
    """Raises `EngineError` for an ending that no picture of a bench can have."""
    if path.suffix.lower() not in (".svg", ".png"):
        raise EngineError(f"{path}: no picture of times can be written in this format. Take .svg or .png.")


def draw_bench(bench: Bench, path: Path) -> None:
    """Draw the medians, with both quartiles, to `path`. Raises `EngineError` where it cannot be written."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    check_picture(path)
    engines = list(dict.fromkeys((row.engine, row.precision) for row in bench.rows))
    sizes = list(dict.fromkeys(row.batch for row in bench.rows))
    style: Any = {
        "svg.fonttype": "none", "svg.hashsalt": "branchwork", "text.parse_math": False,
        "font.size": 10, "text.color": _INK, "axes.edgecolor": _FAINT, "xtick.color": _INK, "ytick.color": _INK,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        figure = Figure(figsize=(1.2 + _PANEL * len(sizes), 1.9 + _ROW * len(engines)), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
        for axes, size in zip(panels, sizes, strict=True):
            rows = [row for row in bench.rows if row.batch == size]
            _panel(axes, rows, engines)
            axes.set_title(f"{size:,} image{'s' if size > 1 else ''} a batch", fontsize=11, loc="left")
            axes.set_xlabel("milliseconds a batch (median, quartiles)")
        panels[0].set_yticks(range(len(engines)), [f"{engine} {precision}" for engine, precision in engines])
        panels[0].invert_yaxis()
        shape, threads = times(bench.input_shape), f"{bench.threads} thread{'s' if bench.threads > 1 else ''}"
        figure.suptitle(f"{bench.net}, {bench.macs:,} MACs an image of {shape}, {threads}", x=0.01, ha="left")
        figure.legend(
            handles=[Patch(color=_WRITTEN, label="as written"), Patch(color=_FUSED, label="fused")],
            loc="outside lower right", ncols=2, frameon=False,
        )  # fmt: skip
        content = io.BytesIO()
        form = path.suffix.lower().removeprefix(".")
        figure.savefig(content, format=form, dpi=130, metadata={"Date": None} if form == "svg" else None)
    write_whole(path, content.getvalue(), error=EngineError)


def _panel(axes: Any, rows: list[Timing], engines: list[tuple[str, str]]) -> None:
    widest = max(row.quartiles[1] for row in rows)
    for row in rows:
        place = engines.index((row.engine, row.precision)) + (_BAR / 2 if row.fused else -_BAR / 2)
        low, high = row.quartiles
        axes.barh(place, row.milliseconds, _BAR, color=_FUSED if row.fused else _WRITTEN)
        axes.plot([low, high], [place, place], color=_INK, linewidth=1.2, solid_capstyle="butt")
        fastest = row.milliseconds == min(other.milliseconds for other in rows)
        axes.text(
            max(high, row.milliseconds) + 0.02 * widest, place, milliseconds(row.milliseconds),
            va="center", fontsize=9, fontweight="bold" if fastest else "normal",
        )  # fmt: skip
    axes.set_xlim(0, 1.2 * widest)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(length=0)
    axes.grid(axis="x", color=_FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
