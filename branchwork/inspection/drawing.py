"""The picture of a net for a slide: operations from left to right, branches as lanes, joins as coloured bars."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from branchwork.errors import NetError
from branchwork.figures import COLOURS, INK, check_ending, new_figure, save
from branchwork.graph.trace import Trace
from branchwork.inspection.boxes import BAND, LINE, Box, Point
from branchwork.inspection.layout import MARGIN, POINTS, Line, layout

_CORNER = 0.1  # the radius of round corners


def draw_net(trace: Trace, path: Path, title: str) -> None:
    """Draw a net to `path`, in the format of its ending. Raises `NetError` if `figures.save` would."""
    check_ending(path, NetError)
    picture = layout(trace)
    width = max(picture.width, 2 * MARGIN + 0.13 * len(title))
    with new_figure(width, picture.height, font_size=POINTS, layout=None) as figure:
        axes = figure.add_axes((0, 0, 1, 1))
        axes.axis("off")
        axes.set(xlim=(0, width), ylim=(picture.height, 0))
        pen = _Pen(axes)
        pen.text(MARGIN, MARGIN + 0.1, title, fontsize=14, fontweight="bold", ha="left")
        for line in dict.fromkeys(line for edge in picture.edges for line in edge.lines):  # edges may share a line
            pen.line(line)
        for edge in picture.edges:
            if edge.arrow:
                pen.arrow(edge.lines[-1])
        for box in picture.boxes:
            pen.box(box)
        for caption in picture.captions:
            pen.text(caption.x, caption.y, caption.text, ha="left", fontweight="bold")
        save(figure, path, title, error=NetError)


class _Pen:
    """Draws the parts of a picture on matplotlib's axes."""

    def __init__(self, axes: Any) -> None:
        self.axes = axes

    def colour(self, number: int | None) -> str:
        return INK if number is None else COLOURS[number % len(COLOURS)]

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        style = {"ha": "center", "va": "center_baseline", "color": INK} | style
        self.axes.text(x, y, text, **style)

    def line(self, line: Line) -> None:
        from matplotlib.patches import PathPatch

        width = 1.1 if line.colour is None else 1.8
        outline = _outline(line.points)
        self.axes.add_patch(PathPatch(outline, fill=False, edgecolor=self.colour(line.colour), linewidth=width))

    def arrow(self, line: Line) -> None:
        from matplotlib.patches import Polygon

        x, y = line.points[-1]
        wings = [(x - 0.08, y - 0.035), (x - 0.08, y + 0.035)]
        if line.is_falling:
            wings = [(x - 0.035, y - 0.08), (x + 0.035, y - 0.08)]
        self.axes.add_patch(Polygon([(x, y), *wings], color=self.colour(line.colour), linewidth=0))

    def box(self, box: Box) -> None:
        from matplotlib.patches import Circle, Rectangle

        fill: Any = {"facecolor": self.colour(box.colour), "alpha": 0.08 if box.colour is None else 0.3, "linewidth": 0}
        rim: Any = {"fill": False, "edgecolor": self.colour(box.colour), "linewidth": 1.1}
        if box.kind == "bar":
            for number, (top, height, channels) in enumerate(box.segments):
                shade: Any = {"facecolor": self.colour(number), "alpha": 0.6, "linewidth": 0}
                self.axes.add_patch(Rectangle((box.x, top), box.width, height, **shade))
                self.text(box.middle, top + height / 2, str(channels))
            self.text(box.middle, box.top + box.height + LINE * 0.6, str(sum(box.channels)), fontweight="bold")
        elif box.kind == "sum":
            for style in (fill, rim):
                self.axes.add_patch(Circle((box.middle, box.y), box.width / 2, **style))
            self.text(box.middle, box.y, "+", fontsize=13)
        elif box.kind == "input":
            self.text(box.middle, box.y, box.label, fontweight="bold")
        else:
            for style in (fill, rim):
                self.axes.add_patch(Rectangle((box.x, box.top), box.width, box.height, **style))
            if box.label == box.name:
                self.text(box.middle, box.y, box.label)
            else:
                self.text(box.middle, box.y - LINE / 2, box.label, fontweight="bold")
                self.text(box.middle, box.y + LINE / 2, box.name)
        for number, band in enumerate(box.bands):
            x = box.x + box.width + BAND * number
            for style in (fill | {"alpha": 0.2}, rim):
                self.axes.add_patch(Rectangle((x, box.top), BAND, box.height, **style))
            self.text(x + BAND / 2, box.y, band, rotation=90, va="center")
        if box.shape:
            self.text(box.right + 0.07, box.y + LINE * 0.75, box.shape, ha="left")


def _outline(points: Sequence[Point]) -> Any:
    """A path with round corners, and an S wherever it changes both x and y."""
    from matplotlib.path import Path as Outline

    vertices, codes = [points[0]], [Outline.MOVETO]
    for before, point, after in zip(points, points[1:], [*points[2:], None], strict=False):
        if not _is_straight(before, point):
            half = (before[0] + point[0]) / 2
            vertices += [(half, before[1]), (half, point[1]), point]
            codes += [Outline.CURVE4] * 3
        elif after is not None and _is_straight(point, after):
            vertices += [_towards(point, before), point, _towards(point, after)]
            codes += [Outline.LINETO, Outline.CURVE3, Outline.CURVE3]
        else:
            vertices.append(point)
            codes.append(Outline.LINETO)
    return Outline(vertices, codes)


def _is_straight(one: Point, other: Point) -> bool:
    return min(abs(one[0] - other[0]), abs(one[1] - other[1])) < 1e-6


def _towards(corner: Point, other: Point) -> Point:
    """The point on the way from a corner to another where its curve begins."""
    x, y = other[0] - corner[0], other[1] - corner[1]
    share = min(0.5, _CORNER / max(1e-9, abs(x) + abs(y)))
    return corner[0] + x * share, corner[1] + y * share
