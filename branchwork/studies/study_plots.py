"""The pictures of the studies: SVG that follows the page's colours, every mean with its 95% interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from branchwork.figures import BAD, GOOD, INK, inline_svg, new_figure, plain_axes
from branchwork.language import say
from branchwork.studies.statistics import Mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WIDTH = 9.6
_ROUND = (0.1, 0.2, 0.3, 0.5, 0.7, 1, 1.5, 2, 3, 5, 7, 10, 15, 20, 30, 50, 70, 100)


@dataclass(frozen=True)
class Line:
    """Points in a panel of several lines: means, by their place on the axis below."""

    label: str
    points: Mapping[float, Mean | None]
    good: bool = True
    dashed: bool = False


@dataclass(frozen=True)
class Panel:
    title: str
    lines: tuple[Line, ...]


def error_lines(panels: Sequence[Panel], below: str) -> str:
    """Errors, in percent, over what `below` says, a panel beside the other."""
    with new_figure(_WIDTH, 3.4) as figure:
        every = figure.subplots(1, len(panels), squeeze=False)[0]
        for axes, panel in zip(every, panels, strict=True):
            for line in panel.lines:
                points = {place: mean for place, mean in line.points.items() if mean is not None}
                _errorbar(axes, list(points), list(points.values()), _line_style(line) | {"marker": "o", "capsize": 3})
            places = sorted({place for line in panel.lines for place in line.points})
            axes.set(title=panel.title, xlabel=below, xticks=places)
            axes.set_ylim(bottom=0)
            plain_axes(axes)
        every[0].set_ylabel(say("error, percent", "误差（%）"))
        every[0].legend(frameon=False)
        return inline_svg(figure)


def norm_lines(panels: Sequence[tuple[str, Sequence[tuple[Line, Sequence[float]]]]]) -> str:
    """Norms over the number of the layer, on a log axis: each panel has a title, and lines with their values."""
    with new_figure(_WIDTH, 3.4) as figure:
        every = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
        for axes, (title, lines) in zip(every, panels, strict=True):
            for line, values in lines:
                shown = [value if value > 0 else float("nan") for value in values]
                axes.plot(range(1, len(shown) + 1), shown, **_line_style(line))
            axes.set(title=title, xlabel=say("layer", "层"), yscale="log")
            plain_axes(axes)
        every[0].set_ylabel(say("norm of the gradient", "梯度的范数"))
        every[0].legend(frameon=False)
        return inline_svg(figure)


def dots(rows: Sequence[str], columns: Sequence[tuple[str, Sequence[Mean | None]]]) -> str:
    """A row for each label, a panel for each column of errors, in percent; the least has a colour."""
    with new_figure(_WIDTH, 0.9 + 0.34 * len(rows)) as figure:
        every = figure.subplots(1, len(columns), squeeze=False, sharey=True)[0]
        for axes, (title, means) in zip(every, columns, strict=True):
            _dot_panel(axes, rows, title, means)
        return inline_svg(figure)


def cost_and_error(points: Sequence[tuple[str, float, Mean | None]], costs: tuple[str, float], errors: str) -> str:
    """A row for each label, the cheapest first: its cost as a bar, and its error, in percent, beside it.

    `costs` are what the cost is called, and what it is divided by.
    """
    name, scale = costs
    points = sorted(points, key=lambda point: point[1])
    rows = [label for label, _, _ in points]
    with new_figure(_WIDTH, 0.9 + 0.34 * len(rows)) as figure:
        left, right = figure.subplots(1, 2, sharey=True)
        left.barh(range(len(rows)), [cost / scale for _, cost, _ in points], 0.6, color=INK, alpha=0.35)
        left.set(xlabel=name)
        plain_axes(left)
        _dot_panel(right, rows, errors, [mean for _, _, mean in points])
        return inline_svg(figure)


def _dot_panel(axes: "Axes", rows: Sequence[str], title: str, means: Sequence[Mean | None]) -> None:
    known = [100 * mean.mean for mean in means if mean is not None]
    for place, mean in enumerate(means):
        if mean is None:
            axes.text(0.02, place, say("diverged", "发散"), va="center", transform=axes.get_yaxis_transform())
            continue
        colour = GOOD if 100 * mean.mean == min(known) else INK
        _errorbar(axes, [mean], [place], {"color": colour, "marker": "o", "capsize": 3, "linestyle": ""}, across=True)
    if known and 0 < 4 * min(known) < max(known):  # else one that fails squeezes all others into a corner
        low, high = axes.get_xlim()
        axes.set_xscale("log")
        axes.set_xlim(max(low, min(known) / 1.5), high)
        axes.set_xticks([tick for tick in _ROUND if low <= tick <= high])
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("")
    axes.set(xlabel=title, ylim=(len(rows) - 0.5, -0.5))
    axes.set_yticks(range(len(rows)), rows)
    plain_axes(axes)


def gain_bars(rows: Sequence[tuple[str, Mean]], beside: str) -> str:
    """A bar for each label, in points, with its interval."""
    with new_figure(_WIDTH, 0.9 + 0.42 * len(rows)) as figure:
        axes = figure.subplots()
        for place, (_, gain) in enumerate(rows):
            axes.barh(place, 100 * gain.mean, 0.6, color=GOOD if gain.mean >= 0 else BAD, alpha=0.75)
            if gain.low is not None and gain.high is not None:
                axes.plot([100 * gain.low, 100 * gain.high], [place, place], color=INK, linewidth=1.4)
        axes.axvline(0, color=INK, linewidth=0.8)
        axes.set(xlabel=beside, ylim=(len(rows) - 0.5, -0.5))
        axes.set_yticks(range(len(rows)), [label for label, _ in rows])
        plain_axes(axes)
        return inline_svg(figure)


def _line_style(line: Line) -> dict[str, Any]:
    return {
        "color": GOOD if line.good else BAD,
        "linestyle": "--" if line.dashed else "-",
        "linewidth": 1.5,
        "label": line.label,
    }


def _errorbar(
    axes: "Axes", first: Sequence[Any], second: Sequence[Any], style: Mapping[str, Any], across: bool = False
) -> None:
    """Means in percent against places: the means are `second`, or with `across` `first`."""
    means: Sequence[Mean] = first if across else second
    values = [100 * mean.mean for mean in means]
    # Without an interval there is no bar.
    below = [0 if mean.low is None else 100 * (mean.mean - mean.low) for mean in means]
    above = [0 if mean.high is None else 100 * (mean.high - mean.mean) for mean in means]
    if across:
        axes.errorbar(values, second, xerr=[below, above], **style)
    else:
        axes.errorbar(first, values, yerr=[below, above], **style)
