"""The picture of a net for a slide: operations from left to right, branches as lanes, joins as coloured bars."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from branchwork.drawing.boxes import BAND, LINE, Box, Point
from branchwork.drawing.layout import MARGIN, POINTS, TITLE, Line, Picture, layout
from branchwork.errors import NetError
from branchwork.figures import INK, check_drawing, inline_svg, new_figure, save
from branchwork.graph.trace import Trace
from branchwork.palette import SHORTCUT, ThemeName

# A drawing of more operations takes seconds, and nobody reads it on a page.
MOST_DRAWN = 150
_CORNER = 0.1  # the radius of round corners


def draw_net(trace: Trace, path: Path, title: str, *, theme: ThemeName = "light") -> None:
    """Draw a net to `path`, in the format of its ending. Raises `NetError` if `figures.save` would."""
    check_drawing(path, NetError)
    picture = layout(trace)
    width = max(picture.width, 2 * MARGIN + 0.13 * len(title))
    with new_figure(width, picture.height, font_size=POINTS, layout=None, theme=theme) as figure:
        pen = _Pen(figure, (width, picture.height))
        pen.text(MARGIN, MARGIN + 0.1, title, fontsize=14, fontweight="bold", ha="left")
        pen.picture(picture)
        save(figure, path, title, error=NetError, theme=theme)


def inline_drawing(trace: Trace) -> str:
    """Return a net's drawing for an HTML page, without a title; the more MACs, the stronger the colour of a box."""
    picture = layout(trace)
    macs = {operation.name: operation.macs for operation in trace.operations}
    most = max([1, *(sum(macs.get(node, 0) for node in box.nodes) for box in picture.boxes)])
    # By the square root, so that a box of a hundredth still differs from one that takes none.
    shades = {box.id: (sum(macs.get(node, 0) for node in box.nodes) / most) ** 0.5 for box in picture.boxes}
    with new_figure(picture.width, picture.height - TITLE, font_size=POINTS, layout=None) as figure:
        _Pen(figure, (picture.width, picture.height), above=TITLE, shades=shades).picture(picture)
        return inline_svg(figure)


class _Pen:
    """Draws the parts of a picture on a figure, from `above` inches below the top of the picture.

    `shades`, from 0 to 1 by the id of a box, say how dark each is filled.
    """

    def __init__(
        self,
        figure: Any,
        size: tuple[float, float],
        *,
        above: float = 0.0,
        shades: Mapping[str, float] | None = None,
    ) -> None:
        self.shades = shades
        self.axes = figure.add_axes((0, 0, 1, 1))
        self.axes.axis("off")
        self.axes.set(xlim=(0, size[0]), ylim=(size[1], above))

    def picture(self, picture: Picture) -> None:
        tips = dict.fromkeys(edge.lines[-1] for edge in picture.edges if edge.arrow)
        for line in dict.fromkeys(line for edge in picture.edges for line in edge.lines):  # edges may share a line
            self.line(line, has_tip=line in tips)
        for line in tips:
            self.arrow(line)
        for box in picture.boxes:
            self.box(box)
        for caption in picture.captions:
            self.text(caption.x, caption.y, caption.text, ha="left", fontweight="bold")

    def text(self, x: float, y: float, text: str, **style: Any) -> None:
        style = {"ha": "center", "va": "center_baseline", "color": INK} | style
        self.axes.text(x, y, text, **style)

    def line(self, line: Line, *, has_tip: bool) -> None:
        from matplotlib.patches import PathPatch

        width = {None: 1.1, SHORTCUT: 3.0}.get(line.colour, 1.8)
        x, y = line.points[-1]
        end = (x, y - 0.05) if line.is_falling else (x - 0.05, y)  # within the arrow, which is pointed
        outline = _outline((*line.points[:-1], end) if has_tip else line.points)
        self.axes.add_patch(PathPatch(outline, fill=False, edgecolor=line.colour or INK, linewidth=width))

    def arrow(self, line: Line) -> None:
        from matplotlib.patches import Polygon

        x, y = line.points[-1]
        long, wide = (0.13, 0.07) if line.colour == SHORTCUT else (0.08, 0.035)
        wings = [(x - long, y - wide), (x - long, y + wide)]
        if line.is_falling:
            wings = [(x - wide, y - long), (x + wide, y - long)]
        self.axes.add_patch(Polygon([(x, y), *wings], color=line.colour or INK, linewidth=0))

    def box(self, box: Box) -> None:
        from matplotlib.patches import Circle, Rectangle

        colour, strength = box.colour or INK, 0.08 if box.colour is None else 0.3
        if self.shades is not None:
            # So pale that ink stays legible on it, also on the ink of a box outside branches.
            strength = 0.04 + (0.26 if box.colour is None else 0.5) * self.shades[box.id]
        fill: Any = {"facecolor": colour, "alpha": strength, "linewidth": 0}
        rim: Any = {"fill": False, "edgecolor": colour, "linewidth": 1.1}
        if box.kind == "bar":
            for (top, height, channels), segment in zip(box.segments, box.colours, strict=True):
                shade: Any = {"facecolor": segment, "alpha": 0.6, "linewidth": 0}
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
