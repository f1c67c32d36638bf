"""The picture of what a 1×1 convolution before a larger one saves: two bars of MACs, one above the other."""

from pathlib import Path

from branchwork.errors import NetError
from branchwork.figures import check_drawing, new_figure, save
from branchwork.graph.bottlenecks import Reduction
from branchwork.language import say, times
from branchwork.palette import AMBER, BLUE, ThemeName


def draw_reduction(saved: Reduction, path: Path, theme: ThemeName = "light") -> None:
    """Draw both ways to `path`, in the format of its ending. Raises `NetError` if `figures.save` would."""
    check_drawing(path, NetError)
    kernel, shape = times(saved.kernel), saved.name
    title = say("{kernel} on {shape}, to {out} channels", kernel=kernel, shape=shape, out=saved.out)
    ratio = (
        say("{times:.2f} times fewer", times=saved.times)
        if saved.times >= 1
        else say("{times:.2f} times more", times=1 / saved.times)
    )
    rows = (
        (say("{kernel} alone: {macs:,} MACs", kernel=kernel, macs=saved.direct), ((BLUE, saved.direct),)),
        (
            say(
                "1×1 to {channels}, then {kernel}: {first:,} + {second:,} = {macs:,} MACs, {ratio}",
                channels=saved.through,
                kernel=kernel,
                first=saved.first,
                second=saved.second,
                macs=saved.total,
                ratio=ratio,
            ),
            ((AMBER, saved.first), (BLUE, saved.second)),
        ),
    )
    with new_figure(8, 2.4, font_size=12, layout=None, theme=theme) as figure:
        axes = figure.add_axes((0.03, 0, 0.94, 1))
        axes.axis("off")
        axes.set(xlim=(0, max(saved.direct, saved.total)), ylim=(2.4, 0))
        axes.text(0, 0.3, title, fontsize=16, fontweight="bold", va="center")
        for number, (words, pieces) in enumerate(rows):
            y, start = 0.8 + 0.85 * number, 0
            axes.text(0, y, words, va="center")
            for colour, macs in pieces:
                axes.barh(y + 0.33, macs, 0.34, left=start, color=colour)
                start += macs
        save(figure, path, title, error=NetError, theme=theme)
