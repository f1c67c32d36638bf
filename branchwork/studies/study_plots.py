"""The figures of the studies as SVG: every mean with its 95% interval, and a dot for each seed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from branchwork.figures import BAD, GOOD, INK, inline_svg, new_figure, plain_axes, plain_log_ticks
from branchwork.language import say
from branchwork.training.statistics import Mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 9.6  # inches
_TICKS = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)


@dataclass(frozen=True)
class Curve:
    """A labelled line through the values at each x; None where there is no value."""

    label: str
    points: Mapping[int, Mean | None]
    good: bool
    dashed: bool = False


def error_curves(panels: Sequence[tuple[str, Sequence[Curve]]], below: str) -> str:
    """Draw panels of errors, in percent, over an axis labelled `below`; each has a title and its curves."""
    with new_figure(_WIDTH, 3.4) as figure:
        every = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, (title, curves) in zip(every, panels, strict=True):
            for curve in curves:
                points = {x: mean for x, mean in curve.points.items() if mean is not None}
                values, widths = _percent(list(points.values()))
                for x, mean in points.items():
                    _seeds(axes, [x] * len(mean.values), mean, colour=GOOD if curve.good else BAD, across=False)
                axes.errorbar(
                    list(points), values, yerr=widths, color=GOOD if curve.good else BAD, linewidth=1.5, marker="o",
                    capsize=3, label=curve.label,
                )  # fmt: skip
            axes.set(title=title, xlabel=below, xticks=sorted({x for curve in curves for x in curve.points}))
            axes.set_ylim(bottom=0)
            plain_axes(axes)
        every[0].set_ylabel(say("error, percent"))
        every[0].legend(frameon=False)
        return inline_svg(figure)


def norm_curves(panels: Sequence[tuple[str, Sequence[Curve]]]) -> str:
    """Draw panels of norms over the number of the layer, on a log axis; missing values leave a gap."""
    with new_figure(_WIDTH, 3.4) as figure:
        every = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (title, curves) in zip(every, panels, strict=True):
            for curve in curves:
                norms = [float("nan") if mean is None else mean.mean for mean in curve.points.values()]
                axes.plot(
                    list(curve.points), norms, color=GOOD if curve.good else BAD, linewidth=1.5,
                    linestyle="--" if curve.dashed else "-", label=curve.label,
                )  # fmt: skip
            axes.set(title=title, xlabel=say("layer"), yscale="log")
            plain_log_ticks(axes.yaxis)
            plain_axes(axes)
        every[0].set_ylabel(say("norm of the gradient"))
        every[0].legend(frameon=False)
        return inline_svg(figure)


def error_dots(rows: Sequence[str], columns: Sequence[tuple[str, Sequence[Mean | None]]]) -> str:
    """Draw a row for each label and a panel for each column of errors, in percent; the smallest is highlighted."""
    with new_figure(_WIDTH, 0.9 + 0.34 * len(rows)) as figure:
        every = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
        for axes, (title, means) in zip(every, columns, strict=True):
            _dots(axes, rows, title=title, means=means)
        return inline_svg(figure)


def dots_words() -> str:
    """Return the sentence above figures of dots."""
    return say("Means over the seeds with their 95% intervals; the lowest is highlighted.")


def cost_and_error(costs: Sequence[tuple[str, int, Mean | None]], errors: str) -> str:
    """Draw a row for each label, MACs and error, the cheapest first: MACs as a bar, and the error in percent."""
    costs = sorted(costs, key=lambda cost: cost[1])
    rows = [label for label, _, _ in costs]
    with new_figure(_WIDTH, 0.9 + 0.34 * len(rows)) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        left.barh(range(len(rows)), [macs / 1e6 for _, macs, _ in costs], 0.6, color=INK, alpha=0.35)
        left.set(xlabel=say("MACs per image, millions"))
        plain_axes(left)
        _dots(right, rows, title=errors, means=[error for _, _, error in costs])
        return inline_svg(figure)


def gain_bars(rows: Sequence[tuple[str, Mean]], beside: str) -> str:
    """Draw a bar for each label, in points, with its interval."""
    with new_figure(_WIDTH, 0.9 + 0.42 * len(rows)) as figure:
        axes = figure.subplots()
        for y, (_, gain) in enumerate(rows):
            axes.barh(y, 100 * gain.mean, 0.6, color=GOOD if gain.mean >= 0 else BAD, alpha=0.75)
            if gain.low is not None and gain.high is not None:
                axes.plot([100 * gain.low, 100 * gain.high], [y, y], color=INK, linewidth=1.4)
            _seeds(axes, [y] * len(gain.values), gain, colour=INK)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set_xlabel(beside)
        _name_rows(axes, [label for label, _ in rows])
        return inline_svg(figure)


def _dots(axes: "Axes", rows: Sequence[str], *, title: str, means: Sequence[Mean | None]) -> None:
    known = [100 * mean.mean for mean in means if mean is not None]
    for y, mean in enumerate(means):
        if mean is None:
            axes.text(0.02, y, say("diverged"), va="center", transform=axes.get_yaxis_transform())
            continue
        values, widths = _percent([mean])
        colour = GOOD if values[0] == min(known) else INK
        axes.errorbar(values, [y], xerr=widths, color=colour, marker="o", capsize=3, linestyle="")
        _seeds(axes, [y] * len(mean.values), mean, colour=colour)
    if known and 0 < 4 * min(known) < max(known):  # a net that fails would squeeze all others into a corner
        low, high = axes.get_xlim()
        axes.set_xscale("log")
        axes.set_xlim(max(low, min(known) / 1.5), high)
        axes.set_xticks([tick for tick in _TICKS if low <= tick <= high])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    axes.set_xlabel(title)
    _name_rows(axes, rows)


def _seeds(axes: "Axes", places: Sequence[int], mean: Mean, *, colour: str, across: bool = True) -> None:
    """Draw a dot for the value of each seed, in percent: along the x axis, or else along the y axis."""
    values = [100 * value for value in mean.values]
    axes.plot(*(values, places) if across else (places, values), ".", color=colour, alpha=0.4, markersize=4)


def _name_rows(axes: "Axes", rows: Sequence[str]) -> None:
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), list(map(say, rows)))
    plain_axes(axes)


def _percent(means: Sequence[Mean]) -> tuple[list[float], list[list[float]]]:
    """Return means in percent, and the widths of their intervals below and above; 0 without an interval."""
    below = [0 if mean.low is None else 100 * (mean.mean - mean.low) for mean in means]
    above = [0 if mean.high is None else 100 * (mean.high - mean.mean) for mean in means]
    return [100 * mean.mean for mean in means], [below, above]
