"""The figures of `explain`: worth and cost of each branch, and what in a picture supports a class."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from branchwork.datasets.reading import read_picture
from branchwork.datasets.sheet import shorten
from branchwork.errors import ExplainError
from branchwork.explaining.results import Contribution, Explanation, PictureExplanation
from branchwork.figures import INK, inline_svg, new_figure, plain_axes, save
from branchwork.files import printable
from branchwork.language import say, times, wrapped
from branchwork.palette import ThemeName, colours_by_join

_ROW = 0.27  # inches for a branch
_SIDE, _PANEL = 2.0, 3.3  # inches for a map, and for the panel that it stands in
# More rows would make a picture that no program opens.
MOST_DRAWN = 10


def draw_contributions(explanation: Explanation, path: Path, theme: ThemeName = "light") -> None:
    """Draw a row for each branch to `path`: what is lost without it, what it costs, and the size of its weights."""
    with _sheet(path, _size(explanation), _title(explanation), theme=theme) as figure:
        _contributions(figure, explanation)


def inline_contributions(explanation: Explanation) -> str:
    """Return the same drawing for an HTML page, without its title."""
    with new_figure(*_size(explanation), font_size=9) as figure:
        _contributions(figure, explanation)
        return inline_svg(figure, _title(explanation))


def _title(explanation: Explanation) -> str:
    return say(
        "{net}: what each branch is worth, and what it costs ({images})",
        net=explanation.net,
        images=explanation.measured_on,
    )


def _size(explanation: Explanation) -> tuple[float, float]:
    return 12.5, 1.6 + _ROW * _branch_rows(explanation)[-1].place


def _branch_rows(explanation: Explanation) -> "list[_Row]":
    return _rows([(branch.join, branch) for branch in explanation.branches])


def _contributions(figure: Any, explanation: Explanation) -> None:
    rows = _branch_rows(explanation)
    panels = figure.subplots(1, 4, sharey=True, width_ratios=(2.2, 1, 1, 1))
    for axes in panels:
        plain_axes(axes, "x")
        axes.xaxis.get_major_locator().set_params(nbins=4)
    worth, macs, milliseconds, weights = panels
    for row in rows:
        branch: Contribution = row.value
        low, high = (100 * bound for bound in branch.lost_by_mean_interval)
        worth.barh(row.place, 100 * branch.lost_by_mean, 0.6, color=row.colour)
        worth.plot([low, high], [row.place, row.place], color=INK, linewidth=1.2, solid_capstyle="butt")
        worth.plot(100 * branch.lost_by_zero, row.place, "o", markerfacecolor="none", markeredgecolor=INK, markersize=5)
        macs.barh(row.place, 100 * branch.macs / max(1, explanation.macs), 0.6, color=row.colour)
        milliseconds.barh(row.place, branch.milliseconds, 0.6, color=row.colour)
        if branch.weight_rms is not None:
            weights.barh(row.place, branch.weight_rms, 0.6, color=row.colour)
    _name_rows(worth, rows)
    worth.set_xlabel(
        say("points of accuracy lost without it (line: 95% interval)")
        + "\n"
        + say("bar: replaced by its mean · ○ replaced by zeros")
    )
    worth.axvline(0, color=INK, linewidth=0.8)
    macs.set_xlabel(say("share of the MACs, percent"))
    milliseconds.set_xlabel(say("milliseconds for {count} images", count=explanation.timed_batch))
    weights.set_xlabel(say("size of its weights") + "\n" + say("(root mean square)"))


def draw_evidence(
    explanations: Sequence[PictureExplanation],
    pictures: Sequence[tuple[Path, Tensor]],
    path: Path,
    *,
    theme: ThemeName = "light",
) -> None:
    """Draw what supports the class of each picture: over its pixels, and over the branches of each join.

    `pictures` are the files, and what the net received, uint8 C×H×W. No more than the first `MOST_DRAWN` are drawn, and
    the title then says so.
    """
    title = say("What supports the class? A score is the net's output for a class (its logit), before the softmax.")
    if len(explanations) > MOST_DRAWN:
        title += say(" The first {shown} of {count} pictures.", shown=MOST_DRAWN, count=len(explanations))
        explanations, pictures = explanations[:MOST_DRAWN], pictures[:MOST_DRAWN]
    rows = max([0, *(sum(len(join.branches) + 1 for join in each.joins) for each in explanations)])
    upper = max(_SIDE, 0.8 + 0.8 * _ROW * rows)
    size = (3 * _PANEL, 0.4 + (upper + _SIDE + 1.6) * len(explanations))
    with _sheet(path, size, title, theme=theme) as figure:
        sheets = figure.subfigures(len(explanations), 1, squeeze=False)[:, 0]
        for sheet, explanation, (file, image) in zip(sheets, explanations, pictures, strict=True):
            sheet.set_facecolor("none")
            grid = sheet.add_gridspec(2, 3, height_ratios=(upper, _SIDE + 0.4))
            places = [sheet.add_subplot(grid[row, column]) for row in range(2) for column in range(3)]
            _pictures(places[0], places[1], explanation, file=file, image=image)
            _branches(places[2], explanation)
            _maps(places[3:], explanation, image)


def _pictures(original: Any, received: Any, explanation: PictureExplanation, *, file: Path, image: Tensor) -> None:
    """Show the picture beside what the net got of it."""
    picture = read_picture(file)
    size = times(picture.size)
    picture.thumbnail((400, 400))
    original.imshow(np.asarray(picture), cmap="gray", vmin=0, vmax=255)
    _ask(original, say("your picture {name}, {size} pixels", name=shorten(printable(Path(file.name)), 28), size=size))
    received.imshow(image.permute(1, 2, 0).numpy().squeeze(), cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    got = times(reversed(image.shape[1:]))
    values = {"size": got, "predicted": explanation.predicted, "target": explanation.target}
    _ask(
        received,
        say("what the net got of it, {size} pixels: it reads '{predicted}' ({share:.0%})",
            **values, share=explanation.probability)
        if explanation.target == explanation.predicted
        else say("what the net got of it, {size} pixels: it reads '{predicted}'; here: what supports '{target}'",
                 **values),
    )  # fmt: skip
    for place in (original, received):
        place.axis("off")


def _maps(places: Sequence[Any], explanation: PictureExplanation, image: Tensor) -> None:
    """Show three maps over the picture, each with its question and a colour bar."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    target = shorten(explanation.target, 28)
    patch = say(
        "hide a {window} patch: how much does the score of '{target}' fall?",
        window=times(explanation.window),
        target=target,
    )
    pixels = say("which pixels raise the score of '{target}' (red), which lower it (blue)?", target=target)
    cam = explanation.cam if np.any(explanation.cam or 0) else None
    maps = (
        (patch, explanation.occlusion, say("points of the score")),
        (pixels, explanation.gradients, say("points of the score, for each pixel")),
        (_where(explanation, target), cam, say("the more, the redder; no unit")),
    )
    # So pale that both colours show on black and on white alike.
    pale = 165 + 0.35 * image.float().mean(0).numpy()
    for place, (question, numbers, unit) in zip(places, maps, strict=True):
        _ask(place, question)
        place.axis("off")
        if numbers is None:
            continue
        place.imshow(pale, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        values = np.asarray(numbers)
        most = float(np.abs(values).max()) or 1.0
        colours = ScalarMappable(Normalize(-most, most), "RdBu_r")
        # Clear where it says nothing, so that the picture shows through.
        strength = np.clip(np.abs(values) / most, 0, 1) ** 0.6
        place.imshow(values, norm=colours.norm, cmap=colours.cmap, alpha=0.85 * strength, interpolation="nearest")
        scale = place.figure.colorbar(colours, ax=place, orientation="horizontal", fraction=0.05, pad=0.03)
        least = -most if values.min() < 0 else 0
        scale.ax.set_xlim(least, most)
        scale.set_ticks([least, 0, most], labels=[f"{tick:.2g}".replace("-", "−") for tick in (least, 0, most)])
        scale.set_label(unit, fontsize=8)
        scale.outline.set_visible(False)


def _where(explanation: PictureExplanation, target: str) -> str:
    """Return the question that Grad-CAM answers, or why it does not."""
    if explanation.cells is None:
        return say("Grad-CAM is left out: no operation of this net has height and width")
    cells = times(explanation.cells)
    if not np.any(explanation.cam or 0):
        return say("Grad-CAM is left out: none of the {cells} cells of {layer} supports '{target}'",
                   cells=cells, layer=explanation.layer, target=target)  # fmt: skip
    return say("where does {layer} find '{target}'? Coarse, only {cells} cells (Grad-CAM)",
               cells=cells, layer=explanation.layer, target=target)  # fmt: skip


def _branches(axes: Any, explanation: PictureExplanation) -> None:
    if not explanation.joins:
        axes.axis("off")
        return
    target = shorten(explanation.target, 28)
    rows = _rows([(join.join, branch) for join in explanation.joins for branch in join.branches])
    plain_axes(axes, "x")
    for row in rows:
        axes.barh(row.place, row.value.share, 0.6, color=row.colour)
        axes.plot(row.value.lost_blind, row.place, "o", markerfacecolor="none", markeredgecolor=INK, markersize=4)
    axes.axvline(0, color=INK, linewidth=0.8)
    _name_rows(axes, rows)
    _ask(axes, say("how much does each branch add to the score of '{target}'?", target=target))
    axes.set_xlabel(
        say("bar: what it adds") + "\n" + say("○ lost if it alone sees a black picture"), fontsize=8, loc="left"
    )


def _ask(axes: Any, question: str) -> None:
    axes.set_title("\n".join(wrapped(question, 42)), fontsize=9)


@dataclass(frozen=True)
class _Row:
    join: str
    value: Any
    place: float
    colour: str
    first: bool


def _rows(values: Sequence[tuple[str, Any]]) -> list[_Row]:
    """Return a line for each value, with a line for the name of the join before its first value."""
    rows: list[_Row] = []
    colours = colours_by_join((join, value.branch) for join, value in values)
    place = 0.0
    for index, (join, value) in enumerate(values):
        first = index == 0 or values[index - 1][0] != join
        place += 2.0 if first else 1.0
        rows.append(_Row(join, value, place, colours[join, value.branch], first))
    return rows


def _name_rows(axes: Any, rows: Sequence[_Row]) -> None:
    axes.set_yticks([row.place for row in rows], [shorten(row.value.branch, 28) for row in rows])
    axes.set_ylim(rows[-1].place + 0.7, 0.3)
    for row in rows:
        if row.first:
            axes.annotate(
                shorten(row.join, 28), (0, row.place - 1), xycoords=("axes fraction", "data"), xytext=(-6, 0),
                textcoords="offset points", ha="right", va="center", fontweight="bold", annotation_clip=False,
            )  # fmt: skip


@contextmanager
def _sheet(path: Path, size: tuple[float, float], title: str, *, theme: ThemeName) -> Iterator[Any]:
    """Yield a figure with a title to draw on, which is written to `path` at the end."""
    with new_figure(*size, font_size=9, theme=theme) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        yield figure
        save(figure, path, title, error=ExplainError, theme=theme)
