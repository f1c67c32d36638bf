"""Draw the pictures of docs/collapse.md and docs/collapse.zh.md. Every number in them is computed here.

Run it as `python scripts/draw_collapse.py`; it writes docs/collapse/*.svg, the same bytes each time, on a light ground
of their own, so that they are legible on a dark page too.
"""

import io
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import rc_context
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import LinearSegmentedColormap, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch, Rectangle
from torch import Tensor, nn
from torch.nn import functional as F

from branchwork.blocks import InceptionA
from branchwork.palette import AMBER, BLUE, GREEN, LIGHT, PINK, SHORTCUT, SKY

FOLDER = Path(__file__).parents[1] / "docs/collapse"
LANGUAGES = ("en", "zh")

ORANGE, RED, INK, PAPER, FAINT = AMBER, SHORTCUT, LIGHT.ink, LIGHT.card, "#8a8a8a"
_FONTS = ["DejaVu Sans", "Verdana", "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", "sans-serif"]
STYLE: Any = {
    "svg.fonttype": "none",
    "svg.hashsalt": "branchwork",
    "font.size": 10,
    "font.sans-serif": _FONTS,
    "text.parse_math": False,
}


class Sheet:
    """A page in inches, with y downwards, in one language."""

    def __init__(self, width: float, height: float, language: str) -> None:
        self.zh = language == "zh"
        self.figure = Figure(figsize=(width, height), facecolor=PAPER)
        FigureCanvasAgg(self.figure)
        self.axes = self.figure.add_axes((0, 0, 1, 1))
        self.axes.axis("off")
        self.axes.set(xlim=(0, width), ylim=(height, 0))

    def say(self, en: str, zh: str) -> str:
        return zh if self.zh else en

    def text(self, x: float, y: float, words: object, **style: Any) -> None:
        style = {"ha": "center", "va": "center_baseline", "color": INK} | style
        self.axes.text(x, y, str(words).replace("-", "−") if _is_number(words) else str(words), **style)

    def box(self, x: float, y: float, w: float, h: float, colour: str, alpha: float = 0.3, **style: Any) -> None:
        """Write text centred on (x, y)."""
        corner = (x - w / 2, y - h / 2)
        self.axes.add_patch(Rectangle(corner, w, h, facecolor=colour, alpha=alpha, linewidth=0))
        self.axes.add_patch(Rectangle(corner, w, h, **({"fill": False, "edgecolor": colour, "linewidth": 1.1} | style)))

    def cell(
        self, x: float, y: float, words: object, colour: str = INK, alpha: float = 0.05, size: float = 0.44
    ) -> None:
        self.box(x, y, size, size, colour, alpha)
        self.text(x, y, words)

    def ghost(self, x: float, y: float, words: object, size: float = 0.44) -> None:
        """Draw a pixel outside the image."""
        self.box(x, y, size, size, FAINT, 0, linestyle=(0, (2, 2)))
        self.text(x, y, words, color=FAINT)

    def line(self, xs: Sequence[float], ys: Sequence[float], colour: str = INK, **style: Any) -> None:
        self.axes.plot(xs, ys, color=colour, **({"linewidth": 1.4, "solid_capstyle": "round"} | style))

    def tag(self, x: float, y: float, words: object, colour: str) -> None:
        """Write a weight on a line."""
        self.axes.add_patch(
            FancyBboxPatch(
                (x - 0.1, y - 0.08), 0.2, 0.16, "round,pad=0,rounding_size=0.06", facecolor=PAPER, linewidth=0, zorder=3
            )
        )
        self.text(x, y, words, color=colour, fontsize=9, fontweight="bold", zorder=4)

    def arrow(self, x0: float, y0: float, x1: float, y1: float, colour: str = INK) -> None:
        self.axes.annotate(
            "",
            (x1, y1),
            (x0, y0),
            arrowprops={"arrowstyle": "-|>", "color": colour, "linewidth": 1.3, "shrinkA": 0, "shrinkB": 0},
        )

    def grid(self, x: float, y: float, rows: int, columns: int, size: float, colour: str = "#d8d8d8") -> None:
        """Draw a grid of hairlines with its top left corner at (x, y), as one path."""
        xs, ys = [], []
        for i in range(rows + 1):
            xs += [x, x + columns * size, np.nan]
            ys += [y + i * size] * 3
        for j in range(columns + 1):
            xs += [x + j * size] * 3
            ys += [y, y + rows * size, np.nan]
        self.line(xs, ys, colour, linewidth=0.5)

    def fill(self, x: float, y: float, w: float, h: float, colour: Any, alpha: float = 1) -> None:
        """Fill a rectangle without an edge, from its top left corner (x, y)."""
        self.axes.add_patch(Rectangle((x, y), w, h, facecolor=colour, alpha=alpha, linewidth=0))

    def heat(self, x: float, y: float, picture: np.ndarray, top: float, colour: str, size: float) -> None:
        """Draw a map of values from 0 to `top`, one square each, from its top left corner (x, y)."""
        shades = LinearSegmentedColormap.from_list("", [PAPER, to_rgb(colour), tuple(c * 0.5 for c in to_rgb(colour))])
        for (i, j), value in np.ndenumerate(picture):
            if value > 0:
                self.fill(x + j * size, y + i * size, size, size, shades(value / top))
        self.grid(x, y, *picture.shape, size)


def save(figure: Figure, title: str, folder: Path, name: str, language: str) -> None:
    """Write `name`.svg, or `name`.zh.svg, with `title` for screen readers."""
    content = io.BytesIO()
    with warnings.catch_warnings():
        # The browser has the Chinese glyphs and lays out the text.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(content, format="svg", metadata={"Date": None, "Title": title})
    drawing = content.getvalue().decode()
    drawing = drawing[drawing.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{title}" ', 1)
    path = folder / (f"{name}.svg" if language == "en" else f"{name}.{language}.svg")
    path.write_text(drawing, encoding="utf-8")
    print(f"{path.name}: {path.stat().st_size:,} bytes")


def _is_number(words: object) -> bool:
    return not isinstance(words, str) or words.lstrip("-").replace(".", "").isdigit()


def correlate(signal: Sequence[int], kernel: Sequence[int]) -> list[int]:
    """Return a one-dimensional convolution without padding."""
    return np.correlate(signal, kernel, "valid").tolist()


def row(left: float, pitch: float, count: int) -> list[float]:
    return [left + pitch * index for index in range(count)]


X = (3, 1, 4, 1, 5, 9)
SMOOTH, STEP, ACROSS = (1, 2, 1), (1, -1), (-1, 0, 1)


def draw_slide(sheet: Sheet) -> str:
    """Draw two kernels in a row and the equal single kernel: a weight is a sum over paths."""
    h, y = correlate(X, SMOOTH), correlate(correlate(X, SMOOTH), STEP)
    merged = merge(STEP, SMOOTH)
    assert correlate(X, merged) == y
    top, middle, low = 0.95, 2.15, 3.35
    at = row(0.75, 0.6, 6)
    inner, outer = [at[1] + 0.6 * i for i in range(4)], [at[0] + 0.9 + 0.6 * i for i in range(3)]
    sheet.text(2.25, 0.35, sheet.say("two kernels, one after the other", "两个卷积核，一前一后"), fontweight="bold")
    for first in (0, 1):
        for tap, weight in enumerate(SMOOTH):
            x0, x1 = at[first + tap], inner[first]
            sheet.line((x0, x1), (top + 0.22, middle - 0.22), ORANGE)
            share = 0.24 if first == 0 else 0.5
            sheet.tag(x0 + (x1 - x0) * share, top + 0.22 + (middle - top - 0.44) * share, weight, "#9a6a00")
    for tap, weight in enumerate(STEP):
        x0, x1 = inner[tap], outer[0]
        sheet.line((x0, x1), (middle + 0.22, low - 0.22), BLUE)
        sheet.tag((x0 + x1) / 2, (middle + low) / 2, weight, BLUE)
    for name, height, places, numbers, colour, seen in (
        ("x", top, at, X, INK, 4), ("h", middle, inner, h, ORANGE, 2), ("y", low, outer, y, BLUE, 1),
    ):  # fmt: skip
        sheet.text(0.3, height, name, fontweight="bold", fontstyle="italic")
        for index, (place, number) in enumerate(zip(places, numbers, strict=True)):
            sheet.cell(
                place, height, number, colour, 0.3 if index < seen and colour != INK else 0.16 if index < seen else 0.03
            )
    sheet.text(2.25, 3.9, f"y₀ = {h[0]} − {h[1]} = −{-y[0]}")

    at = [4.65 + place for place in at]
    outer = [4.65 + place for place in outer]
    sheet.text(6.9, 0.35, sheet.say("one kernel, and wider", "一个卷积核，更宽"), fontweight="bold")
    paths = ("1·1", "2·1 + 1·(−1)", "1·1 + 2·(−1)", "1·(−1)")
    for tap, weight in enumerate(merged):
        sheet.line((at[tap], outer[0]), (top + 0.22, low - 0.22), GREEN, linewidth=1.8)
        sheet.tag(at[tap] + (outer[0] - at[tap]) * 0.3, top + 0.22 + (low - top - 0.44) * 0.3, weight, GREEN)
    for index, (place, number) in enumerate(zip(at, X, strict=True)):
        sheet.cell(place, top, number, INK, 0.16 if index < 4 else 0.03)
    for index, (place, number) in enumerate(zip(outer, y, strict=True)):
        sheet.cell(place, low, number, GREEN, 0.3 if index == 0 else 0.03)
    assert [eval(path.replace("·", "*").replace("−", "-")) for path in paths] == merged
    sheet.text(6.9, 3.9, "y₀ = 3 + 1 − 4 − 1 = −1")
    sheet.text(8.35, 1.6, sheet.say("every weight is a sum", "每个权重都是对路径"), fontsize=9, color=GREEN)
    sheet.text(8.35, 1.78, sheet.say("over paths: for x₁", "求和：比如 x₁ 有两条"), fontsize=9, color=GREEN)
    sheet.text(8.35, 1.98, f"{paths[1]} = {merged[1]}", fontsize=9, color=GREEN, fontweight="bold")
    return sheet.say(
        "Left: kernels [1, 2, 1] and [1, −1] in a row. Right: the one kernel [1, 1, −1, −1] with the same result.",
        "左：卷积核 [1, 2, 1] 和 [1, −1] 一前一后。右：结果相同的一个卷积核 [1, 1, −1, −1]。",
    )


def merge(later: Sequence[int], earlier: Sequence[int]) -> list[int]:
    """Return the merged kernel: the sum of the earlier one, shifted by each tap of the later one."""
    return np.convolve(later, earlier).tolist()


def merged_by_branch(incep: nn.Module, conv2: nn.Conv2d) -> dict[str, Tensor]:
    """Return the share of each branch in the kernel O×C×9×9 of `incep` and `conv2`."""
    b1, b5, b3, pool = conv2.weight.split([16, 24, 24, 24], dim=1)
    average = torch.eye(10, dtype=conv2.weight.dtype)[:, :, None, None].expand(10, 10, 3, 3) / 9
    shares = {
        "b1": _pull(b1, incep.b1),
        "b5": _pull(b5, incep.b5.conv2, incep.b5.conv1),
        "b3": _pull(b3, incep.b3.conv3, incep.b3.conv2, incep.b3.conv1),
        "pool": F.conv_transpose2d(_pull(pool, incep.pool.conv), average),
    }
    return {name: F.pad(share, [(9 - share.shape[-1]) // 2] * 4) for name, share in shares.items()}


def _pull(kernel: Tensor, *layers: nn.Conv2d) -> Tensor:
    for layer in layers:
        kernel = F.conv_transpose2d(kernel, layer.weight)
    return kernel


def fresh() -> tuple[InceptionA, nn.Conv2d]:
    """Return the lecture's first module and the convolution after it, initialised from seed 0."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return InceptionA(10).double(), nn.Conv2d(88, 20, 5).double()


def _size(share: Tensor) -> np.ndarray:
    """Return the root mean square of each tap over outputs and channels."""
    return share.detach().pow(2).mean((0, 1)).sqrt().numpy()


def draw_lanes(sheet: Sheet) -> str:
    """Draw how the four branches of InceptionA and conv2 become one 9×9 kernel."""
    shares = merged_by_branch(*fresh())
    total = _size(sum(shares.values()))
    top = max(_size(share).max() for share in shares.values())
    lanes = {
        "b1": (ORANGE, ["1×1"], 5),
        "b5": (BLUE, ["1×1", "5×5"], 9),
        "b3": (GREEN, ["1×1", "3×3", "3×3"], 9),
        "pool": (PINK, [sheet.say("avg 3×3", "平均 3×3"), "1×1"], 7),
    }
    tile, head = 0.115, 0.4
    for x, en, zh in (
        (1.75, "the branch", "分支"), (3.95, "its slice of conv2", "conv2 的一片"), (5.5, "its share", "它的份额"),
    ):  # fmt: skip
        sheet.text(x, head, sheet.say(en, zh), fontweight="bold")
    sheet.text(7.9, head, sheet.say("their sum", "加起来"), fontweight="bold")
    for number, (name, (colour, layers, taps)) in enumerate(lanes.items()):
        y = 1.2 + 1.2 * number
        sheet.text(0.35, y, name, fontweight="bold")
        xs = [0.95 + 0.8 * index for index in range(len(layers))]
        for index, (x, words) in enumerate(zip(xs, layers, strict=True)):
            sheet.box(x, y, 0.66, 0.42, colour)
            sheet.text(x, y, words, fontsize=8.5 if len(words) > 4 else 10)
            if index:
                sheet.line((xs[index - 1] + 0.33, x - 0.33), (y, y), colour)
        sheet.line((xs[-1] + 0.33, 3.5), (y, y), colour)
        sheet.box(3.95, y, 0.9, 0.42, colour, 0.15)
        sheet.text(3.95, y, "5×5")
        sheet.arrow(4.4, y, 4.9, y, colour)
        sheet.heat(4.98, y - 4.5 * tile, _size(shares[name]), top, colour, tile)
        assert np.count_nonzero(_size(shares[name])[4]) == taps
        sheet.text(6.12, y - 0.42, f"{taps}×{taps}", fontsize=9, ha="left", color=INK)
        end = 3.0 + (y - 3.0) * 0.28
        sheet.line((6.1, 6.35), (y, y), colour)
        sheet.arrow(6.35, y, 6.92, end, colour)
    big = 0.2
    sheet.heat(7.0, 3.0 - 4.5 * big, total, total.max(), BLUE, big)
    sheet.text(7.9, 4.15, sheet.say("one 9×9 kernel, 10 → 20", "一个 9×9 卷积核，10 → 20"), fontsize=9.5)
    return sheet.say(
        "Four lanes, each with its slice of conv2, become shares of 5×5, 9×9, 9×9 and 7×7 in one 9×9 kernel.",
        "四条分支各带着 conv2 中自己的那一片，变成 5×5、9×9、9×9、7×7 的份额，加成一个 9×9 卷积核。",
    )


def border_numbers() -> dict[str, list[int]]:
    """Return the worked example: as written, and with the merged kernel everywhere."""
    h = correlate((0, *X, 0), SMOOTH)
    written = correlate((0, *h, 0), ACROSS)
    merged = merge(ACROSS, SMOOTH)
    return {"h": h, "written": written, "merged": merged, "naive": correlate((0, 0, *X, 0, 0), merged)}


def draw_border(sheet: Sheet) -> str:
    """Draw the border: outside the image the second layer reads 0, but the merged kernel reads something else."""
    numbers = border_numbers()
    at = row(2.35, 0.62, 8)
    ys = (0.75, 1.95, 3.15)
    outside = correlate((0, 0, *X, 0, 0), SMOOTH)
    for tap, weight in enumerate(ACROSS):
        for output in (1, 6):
            x0, x1 = at[output - 1 + tap], at[output]
            colour = FAINT if weight == 0 else BLUE
            sheet.line((x0, x1), (ys[1] + 0.22, ys[2] - 0.22), colour, linewidth=0.8 if weight == 0 else 1.4)
            sheet.tag((x0 + x1) / 2, (ys[1] + ys[2]) / 2, weight, colour)
    for output in (0, 7):
        for tap in (0, 1, 2):
            source = output - 1 + tap
            if 0 <= source <= 7:
                sheet.line(
                    (at[source], at[output]), (ys[0] + 0.22, ys[1] - 0.22), RED, linewidth=1, linestyle=(0, (2, 2))
                )
    for place in (at[0], at[7]):
        sheet.ghost(place, ys[0], 0)
    for index in range(6):
        sheet.cell(at[index + 1], ys[0], X[index])
        sheet.cell(at[index + 1], ys[1], numbers["h"][index], ORANGE, 0.3)
        sheet.cell(at[index + 1], ys[2], numbers["written"][index], BLUE, 0.3 if index in (0, 5) else 0.12)
    for place, value, side in ((at[0], outside[0], -1), (at[7], outside[-1], 1)):
        sheet.box(place, ys[1], 0.44, 0.44, RED, 0.08, linestyle=(0, (2, 2)))
        sheet.text(place, ys[1], 0, fontweight="bold", color=RED)
        sheet.text(place + side * 0.36, ys[1], value, color=RED)
        sheet.line(
            (place + side * 0.36 - 0.08, place + side * 0.36 + 0.08), (ys[1] + 0.08, ys[1] - 0.08), RED, linewidth=1
        )
    names = (("x", ys[0]), ("h", ys[1]), ("y", ys[2]))
    for name, y in names:
        sheet.text(0.3, y, name, fontweight="bold", fontstyle="italic")
    for y, en, zh in (
        ((ys[0] + ys[1]) / 2, "[1, 2, 1], padding 1", "[1, 2, 1]，padding 1"),
        ((ys[1] + ys[2]) / 2, "[−1, 0, 1], padding 1", "[−1, 0, 1]，padding 1"),
    ):
        sheet.text(0.3, y, sheet.say(en, zh), ha="left", fontsize=9, color=FAINT)
    y = 3.95
    sheet.line((0.3, 7.25), (3.55, 3.55), "#d8d8d8", linewidth=0.8)
    sheet.text(0.3, y, sheet.say("one kernel everywhere", "处处用同一个核"), ha="left", fontsize=9, color=FAINT)
    for index, (value, right) in enumerate(zip(numbers["naive"], numbers["written"], strict=True)):
        sheet.cell(at[index + 1], y, value, RED if value != right else INK, 0.18 if value != right else 0.03)
    for y, en, zh in (
        (ys[1] - 0.15, "as written: 0.", "原来的写法：0。"),
        (ys[1] + 0.08, "the merged kernel", "合并后的核却会看到"),
        (ys[1] + 0.29, "would see 3 and 9", "3 和 9"),
    ):
        sheet.text(7.6, y, sheet.say(en, zh), ha="left", fontsize=9, color=RED)
    sheet.text(7.6, 3.95, sheet.say("6 ≠ 9, −11 ≠ −20", "6 ≠ 9，−11 ≠ −20"), ha="left", fontsize=9, color=RED)
    assert (numbers["naive"][0], numbers["written"][0], outside[0], outside[-1]) == (6, 9, 3, 9)
    assert (numbers["naive"][5], numbers["written"][5]) == (-11, -20)
    return sheet.say(
        "The second kernel reads one number beyond each end of h: 0 as written, where the first would give 3 and 9.",
        "第二个核在 h 的两端各多读一个数：原来的写法读到 0，而第一个核在那里本会给出 3 和 9。",
    )


def band(kernel: Sequence[int], size: int = 6) -> np.ndarray:
    """Return the matrix of a convolution with padding."""
    return np.array(
        [[kernel[j - i + 1] if 0 <= j - i + 1 < len(kernel) else 0 for j in range(size)] for i in range(size)]
    )


def draw_matrices(sheet: Sheet) -> str:
    """Draw the same example as matrices: their product is exact, and its rows show the three classes."""
    later, earlier = band(ACROSS), band(SMOOTH)
    product = later @ earlier
    assert (product @ np.array(X)).tolist() == border_numbers()["written"]
    colours = [ORANGE, *[SKY] * 4, PINK]
    size, y = 0.36, 0.75
    for x, matrix, shades, title in (
        (0.5, later, [BLUE] * 6, "[−1, 0, 1]"),
        (3.2, earlier, [INK] * 6, "[1, 2, 1]"),
        (6.0, product, colours, sheet.say("their product", "乘积")),
    ):
        sheet.text(x + 3 * size, 0.4, title, fontweight="bold")
        for (i, j), value in np.ndenumerate(matrix):
            alpha = 0 if value == 0 and not (abs(i - j) < 1) else 0.28 if shades[0] != INK else 0.1
            corner = (x + j * size, y + i * size)
            if alpha:
                sheet.axes.add_patch(Rectangle(corner, size, size, facecolor=shades[i], alpha=alpha, linewidth=0))
            sheet.axes.add_patch(Rectangle(corner, size, size, fill=False, edgecolor="#d8d8d8", linewidth=0.6))
            words = int(value) if value or alpha else "·"
            sheet.text(corner[0] + size / 2, corner[1] + size / 2, words, color=INK if alpha else "#c0c0c0")
    sheet.text(2.93, y + 3 * size, "·", fontsize=18, fontweight="bold")
    sheet.text(5.68, y + 3 * size, "=", fontsize=14)
    for i, en, zh in ((0, "first", "首"), (2.5, "middle", "中"), (5, "last", "尾")):
        colour = {0: "#9a6a00", 2.5: BLUE, 5: "#9c4f7d"}[i]
        sheet.text(
            8.27, y + (i + 0.5) * size, sheet.say(en, zh), ha="left", color=colour, fontweight="bold", fontsize=9
        )
    return sheet.say(
        "Two banded matrices and their product: the middle rows hold the merged kernel, the first and the last differ.",
        "两个带状矩阵和它们的乘积：中间四行就是合并后的核，首行和尾行不同。",
    )


def class_kernels() -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield, for each class of outputs of incep1 and conv2, how much its kernel differs from the middle one, by tap.

    Found from outside: the gradient of one output is its kernel. Taps that lie outside the image are nan.
    """
    incep, conv2 = fresh()
    found = {}
    for i in (0, 3, 7):
        for j in (0, 3, 7):
            x = torch.zeros(1, 10, 12, 12, dtype=torch.float64, requires_grad=True)
            rows = []
            for channel in range(20):
                (gradient,) = torch.autograd.grad(conv2(incep(x))[0, channel, i, j], x)
                rows.append(F.pad(gradient[0], (2, 2, 2, 2), value=float("nan"))[:, i : i + 9, j : j + 9])
            found[i, j] = torch.stack(rows)
    for (i, j), kernel in found.items():
        yield i, j, (kernel - found[3, 3]).pow(2).mean((0, 1)).sqrt().numpy()


def draw_classes(sheet: Sheet) -> str:
    """Draw the nine classes of outputs of incep1 and conv2, and where the kernel of each differs."""
    size, x, y = 0.185, 0.3, 0.75
    sheet.text(x + 7 * size, 0.4, sheet.say("between the two 3×3 of b3", "b3 的两个 3×3 之间"), fontweight="bold")
    sheet.fill(x, y, 14 * size, 14 * size, RED, 0.14)
    sheet.fill(x + size, y + size, 12 * size, 12 * size, PAPER)
    sheet.fill(x + size, y + size, 12 * size, 12 * size, GREEN, 0.2)
    sheet.grid(x, y, 14, 14, size)
    for i in range(14):
        for j in range(14):
            if i in (0, 13) or j in (0, 13):
                sheet.text(x + (j + 0.5) * size, y + (i + 0.5) * size, 0, fontsize=7, color=RED)
    sheet.text(
        x + 7 * size,
        y + 14 * size + 0.22,
        sheet.say("24×12×12, in a ring of zeros", "24×12×12，外面一圈零"),
        fontsize=9,
    )

    x, y, unit = 3.6, 0.98, 0.265
    middle = x + 4 * unit
    sheet.text(middle, 0.4, sheet.say("the 8×8 outputs", "8×8 个输出"), fontweight="bold")
    for left, top, w, h, colour, alpha in (
        (0, 0, 1, 1, ORANGE, 0.45), (7, 0, 1, 1, ORANGE, 0.45), (0, 7, 1, 1, ORANGE, 0.45), (7, 7, 1, 1, ORANGE, 0.45),
        (1, 0, 6, 1, SKY, 0.4), (1, 7, 6, 1, SKY, 0.4), (0, 1, 1, 6, PINK, 0.4), (7, 1, 1, 6, PINK, 0.4),
        (1, 1, 6, 6, INK, 0.05),
    ):  # fmt: skip
        sheet.fill(x + left * unit, y + top * unit, w * unit, h * unit, colour, alpha)
    sheet.grid(x, y, 8, 8, unit, PAPER)
    for bound in (0, 1, 7, 8):
        sheet.line((x, x + 8 * unit), (y + bound * unit,) * 2, FAINT, linewidth=0.8)
        sheet.line((x + bound * unit,) * 2, (y, y + 8 * unit), FAINT, linewidth=0.8)
    sheet.text(middle, y + 4 * unit, sheet.say("36 in the middle", "中间 36 个"), fontsize=9)
    sheet.text(middle, 3.56, sheet.say("4 edges of 6, and 4 corners:", "4 条边各 6 个，4 个角："), fontsize=9)
    sheet.text(middle, 3.77, sheet.say("nine classes", "共九类"), fontsize=9, fontweight="bold")

    maps = list(class_kernels())
    highest = max(np.nanmax(change) for _, _, change in maps)
    tap, x, y, pitch = 0.094, 6.2, 0.75, 0.94
    reds = LinearSegmentedColormap.from_list("", ["#f9d9c3", RED])
    sheet.text(x + 1.36, 0.4, sheet.say("what is special in each kernel", "每一类的核特殊在哪里"), fontweight="bold")
    for number, (_, _, change) in enumerate(maps):
        left, top = x + pitch * (number % 3), y + pitch * (number // 3)
        inside = np.argwhere(~np.isnan(change))
        (i0, j0), (i1, j1) = inside.min(0), inside.max(0) + 1
        sheet.fill(left + j0 * tap, top + i0 * tap, (j1 - j0) * tap, (i1 - i0) * tap, "#e6e6e6")
        for (i, j), value in np.ndenumerate(change):
            if value > 1e-12:  # nan is not
                sheet.fill(left + j * tap, top + i * tap, tap, tap, reds(value / highest))
        sheet.grid(left, top, 9, 9, tap, "#cfcfcf")
    legend = (
        ("#e6e6e6", "as in the middle", "与中间相同", 6.2, 6.2),
        (RED, "different", "不同", 7.4, 7.2),
        (PAPER, "outside", "图像之外", 8.15, 7.75),
    )
    for colour, en, zh, at_en, at_zh in legend:
        left = at_zh if sheet.zh else at_en
        sheet.axes.add_patch(Rectangle((left, 3.71), 0.12, 0.12, facecolor=colour, edgecolor="#b8b8b8", linewidth=0.6))
        sheet.text(left + 0.18, 3.77, sheet.say(en, zh), ha="left", fontsize=8)
    return sheet.say(
        "A ring of zeros between the 3×3 convolutions makes nine classes of outputs; only taps at the border differ.",
        "两个 3×3 之间的张量外面是一圈零，于是输出分成九类；只有贴着边界的那些权重不同。",
    )


def draw_rows(sheet: Sheet) -> str:
    """Draw the row form: nine image rows are one run of numbers, and one matrix turns them into a row of outputs."""
    size, x, y, first = 0.18, 0.3, 0.75, 1
    middle = x + 6 * size
    sheet.text(middle, 0.4, sheet.say("the input, 10×12×12", "输入 10×12×12"), fontweight="bold")
    sheet.fill(x, y, 12 * size, 12 * size, ORANGE, 0.1)
    sheet.fill(x, y + first * size, 12 * size, 9 * size, ORANGE, 0.35)
    sheet.grid(x, y, 12, 12, size, PAPER)
    run = 9 * 12 * 10
    for number, (en, zh) in enumerate(
        (("rows 1 to 9 lie in memory", "行 1 到行 9 在内存里"), ("one after another:", "首尾相接，是一整段："))
    ):
        sheet.text(middle, 3.14 + 0.19 * number, sheet.say(en, zh), fontsize=9)
    sheet.text(
        middle,
        3.54,
        sheet.say(f"9 · 12 · 10 = {run:,} numbers", f"9 · 12 · 10 = {run:,} 个数"),
        fontsize=9,
        fontweight="bold",
    )

    cell, tall, x, y = 0.039, 0.14, 2.95, 0.98
    middle = x + 54 * cell
    sheet.text(middle, 0.4, sheet.say("one matrix for a row of outputs", "一个矩阵，算出一行输出"), fontweight="bold")
    filled = 0
    for tap in range(9):
        start = x + tap * 12 * cell
        for q in range(8):
            columns = [j for j in range(12) if 0 <= j - q + 2 < 9]
            filled += len(columns)
            sheet.fill(start + columns[0] * cell, y + q * tall, len(columns) * cell, tall, BLUE, 0.55)
        style: Any = {"fill": False, "edgecolor": FAINT, "linewidth": 0.7}
        sheet.axes.add_patch(Rectangle((start, y), 12 * cell, 8 * tall, **style))
        sheet.text(start + 6 * cell, y - 0.11, sheet.say(f"row {tap + 1}", f"行 {tap + 1}"), fontsize=7, color=FAINT)
    blocks, of = filled // 9, 8 * 12
    for number, (en, zh, colour) in enumerate(
        (
            (
                f"{run:,} numbers in, 8 columns × 20 channels = 160 out",
                f"进 {run:,} 个数，出 8 列 × 20 通道 = 160 个数",
                INK,
            ),
            ("blue: the kernel, once for each column of outputs", "蓝：卷积核，每列输出各放一次", BLUE),
            (f"white: zeros, {of - blocks} of {of} in each box", f"白：零，每个框 {of} 格里有 {of - blocks} 格", FAINT),
        )
    ):
        sheet.text(middle, y + 8 * tall + 0.26 + 0.24 * number, sheet.say(en, zh), fontsize=9, color=colour)

    unit, x = 0.17, 7.6
    sheet.text(x + 4 * unit, 0.4, sheet.say("output, 20×8×8", "输出 20×8×8"), fontweight="bold")
    sheet.fill(x, y, 8 * unit, 8 * unit, BLUE, 0.1)
    sheet.fill(x, y + 3 * unit, 8 * unit, unit, BLUE, 0.5)
    sheet.grid(x, y, 8, 8, unit, PAPER)
    sheet.text(x + 4 * unit, y + 8 * unit + 0.22, sheet.say("row 3", "行 3"), fontsize=9)
    sheet.arrow(2.55, y + 4 * tall, 2.87, y + 4 * tall)
    sheet.arrow(7.22, y + 4 * tall, 7.54, y + 3.5 * unit)
    return sheet.say(
        "Nine image rows of 1,080 numbers times one banded matrix give one row of 160 outputs.",
        "图像的九行共 1,080 个数，乘一个带状矩阵，得到一行共 160 个输出。",
    )


PICTURES = {
    "slide": (draw_slide, (9.2, 4.15)),
    "lanes": (draw_lanes, (9.2, 5.6)),
    "border": (draw_border, (9.2, 4.35)),
    "matrices": (draw_matrices, (9.2, 3.1)),
    "classes": (draw_classes, (9.2, 4.05)),
    "rows": (draw_rows, (9.2, 3.8)),
}


def main(folder: Path = FOLDER) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, (draw, size) in PICTURES.items():
        for language in LANGUAGES:
            with rc_context(STYLE):
                sheet = Sheet(*size, language)
                save(sheet.figure, draw(sheet), folder, name, language)


if __name__ == "__main__":
    main()
