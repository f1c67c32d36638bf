"""The figures of `explain`: worth and cost of each branch, and what in a picture speaks for a class."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from branchwork.errors import ExplainError
from branchwork.explaining.results import Contribution, Explanation, JoinEvidence, PictureExplanation
from branchwork.figures import COLOURS, INK, new_figure, plain_axes, save

_ROW = 0.27  # inches for a branch
_SIDE = 2.0  # inches for a map
# More rows would make a picture that no program opens.
MOST_DRAWN = 20


def draw_contributions(explanation: Explanation, path: Path) -> None:
    """Draw a row for each branch to `path`: what is lost without it, its MACs, and the size of its weights."""
    rows = _rows([(branch.join, branch) for branch in explanation.branches])
    title = (
        f"{explanation.net}: what each branch is worth, and what it costs "
        f"({explanation.images:,} {explanation.split} images of {explanation.data})"
    )
    with _sheet(path, (11.5, 1.5 + _ROW * rows[-1].place), title) as figure:
        worth, macs, weights = figure.subplots(1, 3, sharey=True, width_ratios=(2, 1, 1))
        for axes in (worth, macs, weights):
            plain_axes(axes, "x")
        for row in rows:
            _worth(worth, row.value, place=row.place, colour=row.colour)
            macs.barh(row.place, row.value.macs, 0.6, color=row.colour)
            if row.value.weight_rms is not None:
                weights.barh(row.place, row.value.weight_rms, 0.6, color=row.colour)
        _name_rows(worth, rows, [row.value.branch for row in rows])
        worth.set_xlabel(
            "accuracy lost without it, points (95% interval)\nbar: replaced by its mean · ○ replaced by zeros"
        )
        worth.axvline(0, color=INK, linewidth=0.8)
        macs.set_xlabel("MACs per image")
        macs.xaxis.set_major_formatter(_short_number)
        macs.xaxis.get_major_locator().set_params(nbins=4)
        weights.set_xlabel("weights\n(root mean square)")
        weights.xaxis.get_major_locator().set_params(nbins=4)


def _worth(axes: Any, branch: Contribution, *, place: float, colour: str) -> None:
    low, high = (100 * bound for bound in branch.lost_by_mean_interval)
    axes.barh(place, 100 * branch.lost_by_mean, 0.6, color=colour)
    axes.plot([low, high], [place, place], color=INK, linewidth=1.2, solid_capstyle="butt")
    axes.plot(100 * branch.lost_by_zero, place, "o", markerfacecolor="none", markeredgecolor=INK, markersize=5)


def draw_evidence(explanations: Sequence[PictureExplanation], images: Tensor, path: Path) -> None:
    """Draw each picture, uint8 N×C×H×W as the net received it, under its maps and beside its branches.

    No more than the first `MOST_DRAWN`, and the title then says so.
    """
    title = "evidence for the class, over the picture and over the branches of each join"
    if len(explanations) > MOST_DRAWN:
        title += f" (the first {MOST_DRAWN} of {len(explanations)} pictures)"
        explanations, images = explanations[:MOST_DRAWN], images[:MOST_DRAWN]
    joins = max(len(explanation.joins) for explanation in explanations)
    bars = max(sum(len(join.branches) + 0.8 for join in explanation.joins) for explanation in explanations)
    height = max(_SIDE + 0.75, 0.9 + _ROW * bars)
    size = (4 * (_SIDE + 0.15) + (4.2 if joins else 0), 0.5 + height * len(explanations))
    with _sheet(path, size, title) as figure:
        panels = figure.subfigures(len(explanations), 1, squeeze=False)[:, 0]
        for panel, explanation, image in zip(panels, explanations, images, strict=True):
            panel.set_facecolor("none")
            grid = panel.add_gridspec(1, 5 if joins else 4, width_ratios=[1] * 4 + ([4.2 / _SIDE] if joins else []))
            _maps([panel.add_subplot(grid[0, column]) for column in range(4)], explanation, image)
            if explanation.joins:
                _evidence(panel.add_subplot(grid[0, 4]), explanation.joins, explanation.target)


def _maps(axes: Sequence[Any], explanation: PictureExplanation, image: Tensor) -> None:
    pixels = image.permute(1, 2, 0).numpy().squeeze()
    # So pale that both colours show on black and on white alike.
    pale = 165 + 0.35 * image.float().mean(0).numpy()
    answer = f"predicted as {explanation.predicted}"
    if explanation.target != explanation.predicted:
        answer += f"; here: for {explanation.target}"
    axes[0].imshow(pixels, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes[0].set_title(f"{_short(Path(explanation.image).name)}\n{answer}", fontsize=9)
    maps = (
        ("Grad-CAM", explanation.layer or "no layer with positions", explanation.cam),
        ("integrated gradients", "red for it, blue against", explanation.gradients),
        ("occlusion", f"{explanation.window[0]}×{explanation.window[1]} black", explanation.occlusion),
    )
    for place, (name, more, numbers) in zip(axes[1:], maps, strict=True):
        place.imshow(pale, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        if numbers is not None:
            values = np.asarray(numbers)
            most = float(np.abs(values).max()) or 1.0
            # Clear where it says nothing, so that the picture shows through.
            strength = np.clip(np.abs(values) / most, 0, 1) ** 0.6
            place.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most, alpha=0.85 * strength, interpolation="nearest")
        place.set_title(f"{name}\n{_short(more)}", fontsize=9)
    for place in axes:
        place.axis("off")


def _evidence(axes: Any, joins: Sequence[JoinEvidence], target: str) -> None:
    rows = _rows([(join.join, branch) for join in joins for branch in join.branches])
    plain_axes(axes, "x")
    for row in rows:
        axes.barh(row.place, row.value.share, 0.6, color=row.colour)
        axes.plot(row.value.lost_blind, row.place, "o", markerfacecolor="none", markeredgecolor=INK, markersize=4)
    axes.axvline(0, color=INK, linewidth=0.8)
    _name_rows(axes, rows, [row.value.branch for row in rows])
    axes.set_xlabel(
        f"logits for {_short(target)} · bar: share, adds up · ○ lost if it reads a black picture", fontsize=8
    )


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
    joins = list(dict.fromkeys(join for join, _ in values))
    place = 0.0
    for index, (join, value) in enumerate(values):
        first = index == 0 or values[index - 1][0] != join
        place += 2.0 if first else 1.0
        rows.append(_Row(join, value, place, COLOURS[joins.index(join) % len(COLOURS)], first))
    return rows


def _name_rows(axes: Any, rows: Sequence[_Row], names: Sequence[str]) -> None:
    axes.set_yticks([row.place for row in rows], [_short(name) for name in names])
    axes.set_ylim(rows[-1].place + 0.7, 0.3)
    for row in rows:
        if row.first:
            axes.annotate(
                _short(row.join), (0, row.place - 1), xycoords=("axes fraction", "data"), xytext=(-6, 0),
                textcoords="offset points", ha="right", va="center", fontweight="bold", annotation_clip=False,
            )  # fmt: skip


@contextmanager
def _sheet(path: Path, size: tuple[float, float], title: str) -> Iterator[Any]:
    """Yield a figure with a title to draw on, which is written to `path` at the end."""
    with new_figure(*size, font_size=9) as figure:
        figure.suptitle(title, x=0.01, ha="left", fontsize=11, fontweight="bold")
        yield figure
        save(figure, path, title, error=ExplainError)


def _short_number(value: float, _: object = None) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def _short(words: str) -> str:
    return words if len(words) <= 28 else f"{words[:27]}…"
