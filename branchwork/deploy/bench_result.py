"""What `bench` measured, and its drawing: a panel for each batch size, a pair of bars for each engine and precision."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from branchwork.deploy.engines import Engine
from branchwork.errors import EngineError
from branchwork.figures import INK, new_figure, plain_axes, save
from branchwork.language import milliseconds, say, times
from branchwork.palette import BLUE
from branchwork.shown import Shown

_WRITTEN, _FUSED = "#b8bec6", BLUE
_BAR = 0.38
_ROW = 0.62  # inches for an engine
_PANEL = 4.2  # inches for a batch size


@dataclass(frozen=True)
class Timing:
    """The time of a batch in one engine, in milliseconds: the median of `runs` runs and both quartiles.

    `macs_per_second` counts the MACs of the net as written, even if the fused net needs fewer. `share` is its fraction
    of the machine's ceiling in this precision, which a fused net may exceed; None in int8, whose ceiling torch cannot
    measure. `difference` is the largest between a logit and that of the net as written in eager float32. `bytes` is the
    size of the file; None for torch's engines, which are given the net itself.
    """

    engine: str
    precision: str
    fused: bool
    batch: int
    milliseconds: float
    quartiles: tuple[float, float]
    runs: int
    images_per_second: float
    macs_per_second: float
    share: float | None
    difference: float
    bytes: int | None


@dataclass(frozen=True)
class Bench(Shown):
    """A net's times on this machine. `macs` are per image, of the net as written.

    `ceilings` are the most MACs per second of torch's product of large matrices, by precision, measured in the same
    rounds. `engines` includes those that could not be timed, with their problem. `latency` is the fastest row at the
    smallest batch size, `throughput` the one with the most images per second.
    """

    net: str
    input_shape: tuple[int, int, int]
    parameters: int
    macs: int
    threads: int
    seconds: float
    loads: int
    engines: tuple[Engine, ...]
    ceilings: dict[str, float]
    rows: tuple[Timing, ...]
    latency: Timing
    throughput: Timing
    machine: str
    versions: dict[str, str]
    commit: str | None


def bench_title(bench: Bench) -> str:
    return say(
        "{net}, {macs:,} MACs per image of {shape}, threads: {threads}",
        shape=times(bench.input_shape),
        **vars(bench),
    )


def engine_words(engine: str, precision: str, *, fused: bool) -> str:
    """Return one way to run a net in words: onnxruntime fp32, fused."""
    return say(
        "{engine} {precision}, fused" if fused else "{engine} {precision}, as written",
        engine=engine,
        precision=precision,
    )


def draw_bench(bench: Bench, path: Path) -> None:
    """Draw the medians with both quartiles to `path`. Raises `EngineError` if it cannot be written."""
    from matplotlib.patches import Patch

    engines = list(dict.fromkeys((row.engine, row.precision) for row in bench.rows))
    sizes = list(dict.fromkeys(row.batch for row in bench.rows))
    with new_figure(1.2 + _PANEL * len(sizes), 1.9 + _ROW * len(engines)) as figure:
        panels = figure.subplots(1, len(sizes), sharey=True, squeeze=False)[0]
        for axes, size in zip(panels, sizes, strict=True):
            _draw_panel(axes, [row for row in bench.rows if row.batch == size], engines)
            axes.set_title(say("batch size {size:,}", size=size), fontsize=11, loc="left")
            axes.set_xlabel(say("milliseconds per batch (median, quartiles)"))
        panels[0].set_yticks(range(len(engines)), [f"{engine} {precision}" for engine, precision in engines])
        panels[0].invert_yaxis()
        title = bench_title(bench)
        figure.suptitle(title, x=0.01, ha="left")
        figure.legend(
            handles=[Patch(color=_WRITTEN, label=say("as written")), Patch(color=_FUSED, label=say("fused"))],
            loc="outside lower right",
            ncols=2,
            frameon=False,
        )
        save(figure, path, title, error=EngineError)


def _draw_panel(axes: Any, rows: list[Timing], engines: list[tuple[str, str]]) -> None:
    longest, fastest = max(row.quartiles[1] for row in rows), min(row.milliseconds for row in rows)
    for row in rows:
        y = engines.index((row.engine, row.precision)) + (_BAR / 2 if row.fused else -_BAR / 2)
        low, high = row.quartiles
        axes.barh(y, row.milliseconds, _BAR, color=_FUSED if row.fused else _WRITTEN)
        axes.plot([low, high], [y, y], color=INK, linewidth=1.2, solid_capstyle="butt")
        axes.text(
            max(high, row.milliseconds) + 0.02 * longest,
            y,
            milliseconds(row.milliseconds),
            va="center",
            fontsize=9,
            fontweight="bold" if row.milliseconds == fastest else "normal",
        )
    axes.set_xlim(0, 1.2 * longest)
    plain_axes(axes, "x")
