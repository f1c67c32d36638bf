"""The picture of a net for a slide: operations from left to right, branches as lanes, joins as coloured bars."""

import io
from itertools import pairwise
from pathlib import Path
from typing import Any

from branchwork.errors import NetError
from branchwork.figures import COLOURS, INK, PAPER, PAPER_INK, with_ink_of_page
from branchwork.files import write_whole
from branchwork.graph.trace import Trace
from branchwork.inspection.layout import BAND, GAP, LINE, MARGIN, POINTS, ROW, TURN, Box, Picture, Rail, layout


def draw(traced: Trace, path: Path, title: str) -> None:
    """Draw the net to `path`, by its ending as `.svg`, which follows light and dark, or as `.png`, on white.

    Raises `NetError` for another ending.
    """
    form = path.suffix.lower().removeprefix(".")
    if form not in ("svg", "png"):
        raise NetError(f"{path}: no picture of a net can be written in this format. Take .svg or .png.")
    content = _paint(layout(traced), title, form)
    write_whole(path, with_ink_of_page(content, title) if form == "svg" else content, error=NetError)


def _paint(picture: Picture, title: str, form: str) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: Any = {"svg.fonttype": "none", "svg.hashsalt": "branchwork", "font.size": POINTS, "text.parse_math": False}
    with matplotlib.rc_context(style):
        width = max(picture.width, 2 * MARGIN + 0.13 * len(title))
        figure = Figure(figsize=(width, picture.height), facecolor=PAPER if form == "png" else "none")
        FigureCanvasAgg(figure)
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        axes.set(xlim=(0, width), ylim=(picture.height, 0))
        _Pen(axes, INK if form == "svg" else PAPER_INK).picture(picture, title)
        content = io.BytesIO()
        metadata = {"Date": None, "Title": title} if form == "svg" else {"Title": title}
        figure.savefig(content, format=form, dpi=150, metadata=metadata)
    return content.getvalue()


_BEND = 0.1  # the radius of round corners


class _Pen:
    """Draws the parts of a picture on matplotlib's axes."""

    def __init__(self, axes: Any, ink: str) -> None:
        self.axes = axes
        self.ink = ink

    def picture(self, picture: Picture, title: str) -> None:
        self.text(MARGIN, MARGIN + 0.1, title, fontsize=14, fontweight="bold", ha="left")
        for last, first in pairwise(picture.boxes):
            follows = any(source is last for source, *_ in picture.edges) or any(
                r.source is last for r in picture.rails
            )
            if last.row != first.row and follows:
                self.turn(last, picture)
        for edge in picture.edges:
            self.edge(*edge, picture.rows)
        for rail in picture.rails:
            self.rail(rail)
        for box in picture.boxes:
            self.box(box)
        for block in picture.blocks:
            self.text(block.x, block.top + LINE / 2, block.title, ha="left", fontweight="bold")
        last = picture.boxes[-1]
        self.path([(last.right, last.y), (last.out + GAP, last.y)])
        self.arrow(last.out + GAP, last.y)

    def text(self, x: float, y: float, words: str, **style: Any) -> None:
        style = {"ha": "center", "va": "center_baseline", "color": self.ink} | style
        self.axes.text(x, y, words, **style)

    def path(self, points: list[tuple[float, float]], colour: int | None = None) -> None:
        """A line with round corners."""
        from matplotlib.path import Path as Outline

        codes, vertices = [Outline.MOVETO], [points[0]]
        for before, corner, after in zip(points, points[1:], points[2:], strict=False):
            vertices += [_towards(corner, before), corner, _towards(corner, after)]
            codes += [Outline.LINETO, Outline.CURVE3, Outline.CURVE3]
        self.stroke(Outline([*vertices, points[-1]], [*codes, Outline.LINETO]), colour)

    def bend(self, x: float, y: float, end_x: float, end_y: float, colour: int | None) -> None:
        """From one height to another in a smooth curve."""
        from matplotlib.path import Path as Outline

        half = (x + end_x) / 2
        vertices = [(x, y), (half, y), (half, end_y), (end_x, end_y)]
        self.stroke(Outline(vertices, [Outline.MOVETO, Outline.CURVE4, Outline.CURVE4, Outline.CURVE4]), colour)

    def stroke(self, outline: Any, colour: int | None) -> None:
        from matplotlib.patches import PathPatch

        width = 1.1 if colour is None else 1.8
        self.axes.add_patch(PathPatch(outline, fill=False, edgecolor=self.colour(colour), linewidth=width))

    def colour(self, number: int | None) -> str:
        return self.ink if number is None else COLOURS[number % len(COLOURS)]

    def arrow(self, x: float, y: float, colour: int | None = None, *, down: bool = False) -> None:
        from matplotlib.patches import Polygon

        wings = (
            [(x - 0.035, y - 0.08), (x + 0.035, y - 0.08)] if down else [(x - 0.08, y - 0.035), (x - 0.08, y + 0.035)]
        )
        self.axes.add_patch(Polygon([(x, y), *wings], color=self.colour(colour), linewidth=0))

    def edge(self, source: Box, box: Box, colour: int | None, rows: list[tuple[float, float]]) -> None:
        """From a box to its neighbour; lanes part and meet on the last stretch."""
        x, y = (source.right, source.y) if source.row == box.row else (MARGIN, rows[box.row][0])
        end = box.entry(source)
        turn = max(x, box.x - TURN)
        self.path([(x, y), (turn, y)], colour if colour == source.colour else None)
        self.bend(turn, y, box.x, end, colour)
        if box.kind != "bar":
            self.arrow(box.x, end, colour)

    def rail(self, rail: Rail) -> None:
        start = [(rail.start, rail.y)]
        if rail.rises is not None:
            start = [(rail.start - 0.1, rail.rises), (rail.start, rail.rises), *start]
        for box in rail.targets:
            x, top = box.landing(rail.source), box.y - box.height / 2
            if rail.y < top:
                self.path([*start, (x, rail.y), (x, top)], rail.colour)
                self.arrow(x, top, rail.colour, down=True)
            else:  # from within a lane, over the rest of it
                self.path([*start, (box.x - TURN, rail.y)], rail.colour)
                self.bend(box.x - TURN, rail.y, box.x, box.entry(rail.source), rail.colour)
        if rail.goes_on:
            self.path([*start, (rail.end, rail.y)], rail.colour)

    def turn(self, last: Box, picture: Picture) -> None:
        """From the end of a row to the beginning of the next, as the eye goes."""
        end, between = last.out + GAP + 0.1, picture.rows[last.row][1] + ROW / 2
        down = [(end, last.y), (end, between), (MARGIN - 0.1, between), (MARGIN - 0.1, picture.rows[last.row + 1][0])]
        self.path([(last.right, last.y), *down, (MARGIN, picture.rows[last.row + 1][0])])

    def box(self, box: Box) -> None:
        from matplotlib.patches import Circle, Rectangle

        top = box.y - box.height / 2
        fill: Any = {"facecolor": self.colour(box.colour), "alpha": 0.08 if box.colour is None else 0.3, "linewidth": 0}
        rim: Any = {"fill": False, "edgecolor": self.colour(box.colour), "linewidth": 1.1}
        if box.kind == "bar":
            for number, (start, height, channels) in enumerate(box.segments()):
                shade: Any = {"facecolor": self.colour(number), "alpha": 0.6, "linewidth": 0}
                self.axes.add_patch(Rectangle((box.x, start), box.body, height, **shade))
                self.text(box.middle, start + height / 2, str(channels))
            self.text(box.middle, top + box.height + LINE * 0.6, str(box.nodes[0].output_shape[0]), fontweight="bold")
        elif box.kind == "sum":
            for style in (fill, rim):
                self.axes.add_patch(Circle((box.middle, box.y), box.body / 2, **style))
            self.text(box.middle, box.y, "+", fontsize=13)
        elif box.kind == "input":
            self.text(box.middle, box.y, box.label, fontweight="bold")
        else:
            for style in (fill, rim):
                self.axes.add_patch(Rectangle((box.x, top), box.body, box.height, **style))
            both = box.label != box.name
            self.text(box.middle, box.y - LINE / 2 * both, box.label, fontweight="bold" if both else "normal")
            if both:
                self.text(box.middle, box.y + LINE / 2, box.name)
        for number, band in enumerate(box.bands):
            x = box.x + box.body + BAND * number
            self.axes.add_patch(Rectangle((x, top), BAND, box.height, **(fill | {"alpha": 0.2})))
            self.axes.add_patch(Rectangle((x, top), BAND, box.height, **rim))
            self.text(x + BAND / 2, box.y, band, rotation=90, va="center")
        if box.shape:
            self.text(box.right + 0.07, box.y + LINE * 0.75, box.shape, ha="left")


def _towards(corner: tuple[float, float], other: tuple[float, float]) -> tuple[float, float]:
    """A point on the way from a corner to another, where its bend begins."""
    x, y = other[0] - corner[0], other[1] - corner[1]
    share = min(0.5, _BEND / max(1e-9, abs(x) + abs(y)))
    return corner[0] + x * share, corner[1] + y * share
