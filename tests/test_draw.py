import re
from functools import cache
from itertools import combinations, pairwise
from xml.etree import ElementTree

import pytest
import torch
from helpers import lecture
from PIL import Image
from torch import nn
from torch.nn import functional as F

import branchwork
from branchwork import Add, Concat
from branchwork.drawing.block_boxes import fold_blocks
from branchwork.drawing.boxes import Box, boxes_of
from branchwork.drawing.drawing import draw_net
from branchwork.drawing.layout import POINTS, SLIDE, SMALLEST, Picture, layout, layout_boxes
from branchwork.drawing.reduction_drawing import draw_reduction
from branchwork.errors import NetError
from branchwork.graph.folding import fold
from branchwork.graph.trace import Trace, trace
from branchwork.palette import DARK, LIGHT, SHORTCUT


def conv(channels: int, out: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, out, kernel, stride, kernel // 2), nn.ReLU())


class DenseNet(nn.Module):
    """Every layer reads all before it."""

    def __init__(self, layers: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(16 + 12 * n), nn.ReLU(), nn.Conv2d(16 + 12 * n, 12, 3, padding=1))
            for n in range(layers)
        )
        self.fc = nn.Linear(16 + 12 * layers, 10)

    def forward(self, x):
        features = [self.stem(x)]
        for layer in self.layers:
            features.append(layer(torch.cat(features, 1)))
        return self.fc(torch.cat(features, 1).mean((2, 3)))


def nested() -> nn.Module:
    """A sum in a branch of a concatenation that is itself in a branch of a sum."""
    inner = Concat(
        a=conv(32, 16, 1), b=nn.Sequential(conv(32, 16, 1), Add(body=conv(16, 16, 3), shortcut=nn.Identity()))
    )
    outer = Add(residual=nn.Sequential(inner, nn.Conv2d(32, 32, 1)), shortcut=nn.Identity())
    return nn.Sequential(conv(3, 32, 3), outer, nn.Flatten(), nn.LazyLinear(10))


class Tangle(nn.Module):
    """Branches that begin within others, a gate, and a source that nothing beside it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c, self.d, self.e = (nn.Conv2d(8, 8, 3, padding=1) for _ in range(5))
        self.stem = nn.Conv2d(3, 8, 1)

    def forward(self, x):
        x = F.relu(self.stem(x))
        a = self.a(x)
        b, c = self.b(a), self.c(a)
        joined = torch.cat([x, b, a, self.d(c), self.e(x)], 1)
        return joined * a.mean((1, 2, 3), keepdim=True).sigmoid()


class Crossing(Tangle):
    """Branches that are neither series nor parallel, one of them beside another, and three outputs."""

    def forward(self, x):
        x = self.stem(x)
        a, b = self.a(x), self.b(x)
        crossed = torch.cat([a + b, a * b], 1)
        within = self.c(x)
        beside = torch.cat([self.e(x), within + self.d(within + x), within], 1)
        return crossed, beside.mean(1), beside


NETS = {
    "inception": (lecture.InceptionNet, (1, 28, 28)),
    "residual": (lecture.ResidualNet, (1, 28, 28)),
    "googlenet": (branchwork.NETS["googlenet"], (3, 224, 224)),
    "gated": (lambda: branchwork.NETS["resnet8"](shortcut="gated"), (3, 32, 32)),
    "densenet": (lambda: DenseNet(12), (3, 32, 32)),
    "resnet110": (branchwork.NETS["resnet110"], (3, 32, 32)),
    "nested": (nested, (3, 16, 16)),
    "tangle": (Tangle, (3, 16, 16)),
    "crossing": (Crossing, (3, 16, 16)),
    "transformer": (lambda: nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), (16, 32)),
    "mlp": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)), (1, 28, 28)),
    "nothing": (nn.Identity, (1, 28, 28)),
}


@cache
def traced(name: str) -> Trace:
    build, shape = NETS[name]
    net = build()
    if any(isinstance(module, nn.LazyLinear) for module in net.modules()):
        net(torch.zeros(1, *shape))
    return trace(net, shape)


@cache
def picture_of(name: str) -> Picture:
    return layout(traced(name))


def box(picture: Picture, name: str) -> Box:
    (match,) = [box for box in picture.boxes if name in box.nodes or name == box.id]
    return match


@pytest.mark.parametrize("name", NETS)
def test_every_operation_is_placed_once_and_no_box_overlaps_another(name):
    picture = picture_of(name)
    placed = [node for box in picture.boxes for node in box.nodes]
    assert sorted(placed) == sorted(node.name for node in traced(name).operations)
    assert_apart(picture)


def assert_apart(picture):
    for one, other in combinations(picture.boxes, 2):
        beside = one.right <= other.x or other.right <= one.x
        assert beside or abs(one.y - other.y) >= (one.height + other.height) / 2, (one.name, other.name)
    for one in picture.boxes:
        assert one.x > 0 and one.label_end < picture.width
        assert one.top > 0 and one.bottom < picture.height


@pytest.mark.parametrize("name", NETS)
def test_what_a_picture_with_a_box_for_each_block_leaves_out_is_in_the_picture_of_the_block(name):
    boxes = boxes_of(traced(name), brief=True, least=(0.9, 1.0))
    folded, blocks = fold_blocks(boxes)
    assert sorted(node for box in folded for node in box.nodes) == sorted(op.name for op in traced(name).operations)
    assert_apart(layout_boxes(folded, outputs=traced(name).outputs))
    for block, (source, *inside) in blocks.items():
        assert_apart(layout_boxes([source, *inside], outputs=[block]))
        (whole,) = [box for box in folded if box.id == block]
        assert [node for box in inside for node in box.nodes] == list(whole.nodes) and whole.inputs == (source.id,)
    if name in ("inception", "googlenet"):
        assert all(box.kind != "bar" for box in folded) and len(blocks) == {"inception": 2, "googlenet": 9}[name]


@pytest.mark.parametrize("name", NETS)
def test_every_edge_is_drawn_once_from_box_to_box_and_forward(name):
    picture = picture_of(name)
    boxes = {box.id: box for box in picture.boxes}
    owner = {node: box.id for box in picture.boxes for node in (*box.nodes, box.id)}
    read = {(owner[source], owner[node.name]) for node in traced(name).operations for source in node.inputs}
    edges = [(edge.source, edge.target) for edge in picture.edges if edge.target]
    assert sorted(edges) == sorted((source, target) for source, target in read if source != target)
    for edge in picture.edges:
        source = boxes[edge.source]
        assert edge.lines[0].points[0] == (source.right, source.y)
        if not edge.target:
            continue
        target = boxes[edge.target]
        assert (source.row, source.right) < (target.row, target.x)
        end = edge.lines[-1].points[-1]
        assert end in (pytest.approx(target.side(source.id)), pytest.approx((target.landing(source.id), target.top)))
        for before, after in pairwise(edge.lines):
            same_row = before.points[-1] == after.points[0]
            assert same_row or before.points[-1][0] > after.points[0][0]


@pytest.mark.parametrize("name", NETS)
def test_no_edge_runs_through_a_box(name):
    picture = picture_of(name)
    lines = {line for edge in picture.edges for line in edge.lines}
    for (x, y), (end_x, end_y) in (stretch for line in lines for stretch in pairwise(line.points)):
        if x != end_x and abs(y - end_y) > 1e-6:
            continue  # from lane to lane
        for one in picture.boxes:
            across = min(x, end_x) < one.right - 1e-6 and one.x + 1e-6 < max(x, end_x)
            along = min(y, end_y) < one.top + one.height - 1e-6 and one.top + 1e-6 < max(y, end_y)
            assert not (across and along), (one.id, x, y)


@pytest.mark.parametrize("name", ["inception", "googlenet", "nested"])
def test_lanes_stand_in_the_order_of_the_join_between_fork_and_join(name):
    picture = picture_of(name)
    joins = [join for join in traced(name).joins if all(branch.nodes for branch in join.branches)]
    assert joins
    for join in joins:
        meeting, below = box(picture, join.node), 0.0
        (fork,) = {box(picture, source) for branch in join.branches for source in box(picture, branch.nodes[0]).inputs}
        for number, branch in enumerate(join.branches):
            lane = {box(picture, node) for node in branch.nodes}
            assert meeting.kind != "bar" or {one.colour for one in lane} == {meeting.colours[number]}
            assert all(below < one.top for one in lane), branch.name
            below = max(one.y + one.height / 2 for one in lane)
            start = fork.right if fork.row == meeting.row else 0
            assert all(start < one.x and one.right < meeting.x for one in lane)


@pytest.mark.parametrize("name", ["inception", "googlenet", "densenet", "tangle"])
def test_segments_of_a_bar_fill_it_and_add_up_to_the_channels_that_come_out(name):
    shapes = {node.name: node.output_shape for node in traced(name).operations}
    bars = [box for box in picture_of(name).boxes if box.kind == "bar"]
    assert len(bars) == len([join for join in traced(name).joins if join.node.split(".")[-1].startswith("cat")])
    for bar in bars:
        tops, heights, channels = zip(*bar.segments, strict=True)
        assert sum(channels) == shapes[bar.nodes[0]][0]
        assert sum(heights) == pytest.approx(bar.height)
        assert list(tops) == sorted(tops)
        by_channels = sorted(zip(channels, heights, strict=True))
        assert all(one[1] < other[1] or one[0] == other[0] for one, other in pairwise(by_channels))


def test_more_channels_make_a_higher_box():
    picture = picture_of("googlenet")
    assert box(picture, "incep3a.b3.conv2.conv").height < box(picture, "incep5b.b3.conv2.conv").height


@pytest.mark.parametrize(
    ("name", "least"), [("inception", SMALLEST), ("residual", SMALLEST), ("googlenet", 5.0), ("resnet110", 3.0)]
)
def test_a_net_is_legible_on_a_slide(name, least):
    picture = picture_of(name)
    assert POINTS / max(picture.width / SLIDE[0], picture.height / SLIDE[1], 1) >= least


@pytest.mark.parametrize("name", ["googlenet", "resnet110", "gated"])
def test_a_row_does_not_end_within_a_block(name):
    picture = picture_of(name)
    assert picture.boxes[-1].row > 1
    for join in traced(name).joins:
        whole = [join.node, *(node for branch in join.branches for node in branch.nodes)]
        assert len({box(picture, node).row for node in whole}) == 1


def test_a_shortcut_passes_over_its_block():
    picture = picture_of("residual")
    ends = box(picture, "mp").id, box(picture, "rblock1.add").id
    (shortcut,) = [edge for edge in picture.edges if (edge.source, edge.target) == ends]
    height = min(y for line in shortcut.lines for _, y in line.points)
    assert all(height < box(picture, f"rblock1.{name}").top for name in ("conv1", "conv2"))


def test_what_a_net_returns_leaves_the_picture():
    picture = picture_of("crossing")
    returned = {edge.source for edge in picture.edges if not edge.target}
    assert returned == {"cat", "mean"}


def words(path) -> list[str]:
    return [
        "".join(text.itertext()).strip() for text in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
    ]


def test_the_words_of_the_picture(tmp_path):
    draw_net(traced("inception"), tmp_path / "net.svg", 'Two < three & "four" $x$')
    found = words(tmp_path / "net.svg")
    for word in ('Two < three & "four" $x$', "conv 5×5", "branch5x5_2", "incep1", "max 2×2 /2", "avg 3×3"):
        assert word in found
    for shape in ("1×28×28", "10×24×24", "88×12×12", "88×4×4 = 1408", "16", "24", "88", "relu", "view", "10"):
        assert shape in found
    assert found.count("24") == 6 and found.count("88") == 2


def test_a_sum_is_a_plus(tmp_path):
    draw_net(traced("residual"), tmp_path / "net.svg", "residual")
    assert words(tmp_path / "net.svg").count("+") == 2


def colours(path) -> set[str]:
    return set(re.findall(r"#[0-9a-f]{6}\b", path.read_text().lower()))


@pytest.mark.parametrize(("name", "theme"), [("light", LIGHT), ("dark", DARK)])
def test_an_svg_paints_its_own_paper(name, theme, tmp_path):
    draw_net(traced("inception"), tmp_path / "net.svg", "inception", theme=name)
    text = (tmp_path / "net.svg").read_text()
    paper = text.index(f"fill: {theme.card}")
    assert paper < text.index(theme.ink), "the paper is below everything else"
    branches = {"#c28000", "#0072b2", "#0a9f69", "#bd70a2"}
    assert colours(tmp_path / "net.svg") == branches | {theme.card, theme.ink}
    assert "currentColor" not in text and "prefers-color-scheme" not in text


def test_paper_and_ink_of_an_svg_follow_the_reader_together_if_asked(tmp_path):
    draw_net(traced("inception"), tmp_path / "net.svg", "inception", theme="auto")
    text = (tmp_path / "net.svg").read_text()
    style, drawing = re.search(r"<style>(.*)</style>(.*)", text, re.DOTALL).groups()
    light, dark = style.split("@media(prefers-color-scheme:dark)")
    assert LIGHT.card in light and LIGHT.ink in light and DARK.card in dark and DARK.ink in dark
    assert "fill: var(--card)" in drawing and "var(--ink)" in drawing and LIGHT.ink not in drawing


@pytest.mark.parametrize(("name", "theme"), [("light", LIGHT), ("dark", DARK), ("auto", LIGHT)])
def test_a_png_is_opaque(name, theme, tmp_path):
    draw_net(traced("inception"), tmp_path / "net.PNG", "inception", theme=name)
    with Image.open(tmp_path / "net.PNG") as image:
        paper = tuple(int(theme.card[place : place + 2], 16) for place in (1, 3, 5))
        assert image.convert("RGBA").getpixel((0, 0)) == (*paper, 255)
        assert image.width > 1500


def test_a_shortcut_is_the_strongest_line(tmp_path):
    draw_net(traced("residual"), tmp_path / "net.svg", "residual")
    text = (tmp_path / "net.svg").read_text()
    widths = {float(width) for width in re.findall(rf"stroke: {SHORTCUT}; stroke-width: ([\d.]+)", text)}
    others = {float(width) for width in re.findall(r"stroke: #(?!d81432)\w+; stroke-width: ([\d.]+)", text)}
    assert len(widths) == 1 and min(widths) > max(others)


@pytest.mark.parametrize("name", [name for name in NETS if name != "nothing"])
@pytest.mark.parametrize("by", ["block", "branch"])
def test_a_folded_net_costs_the_same_and_reads_what_it_read(name, by):
    whole = traced(name)
    folded = fold(whole, by)
    for figure in ("parameters", "macs", "activation_bytes"):
        sums = [sum(getattr(op, figure) for op in trace.operations) for trace in (whole, folded)]
        assert sums[0] == sums[1]
    done = {"input"}
    for op in folded.operations:  # in an order in which it can run
        assert op.inputs and done.issuperset(op.inputs) and op.name not in done
        done.add(op.name)
    assert done.issuperset(folded.outputs) and len(folded.operations) <= len(whole.operations)
    assert folded.operations[-1].output_shape in {op.output_shape for op in whole.operations}
    picture = layout(folded)
    assert sorted(node for box in picture.boxes for node in box.nodes) == sorted(op.name for op in folded.operations)


def test_by_block_draws_a_box_for_each_block_and_by_branch_one_for_each_branch(tmp_path):
    draw_net(fold(traced("inception"), "block"), tmp_path / "net.svg", "x")
    assert {"InceptionA", "incep1", "incep2", "conv 5×5"} <= set(words(tmp_path / "net.svg"))
    assert "conv 3×3" not in words(tmp_path / "net.svg")
    draw_net(fold(traced("inception"), "branch"), tmp_path / "net.svg", "x")
    found = words(tmp_path / "net.svg")
    assert {"branch5x5", "1×1 → 5×5", "1×1 → 3×3 → 3×3", "avg 3×3 → 1×1", "conv 1×1", "88"} <= set(found)
    bars = [box for box in layout(fold(traced("inception"), "branch")).boxes if box.kind == "bar"]
    assert [bar.channels for bar in bars] == [(16, 24, 24, 24)] * 2


def test_what_a_1x1_saves_is_drawn(tmp_path):
    draw_reduction(branchwork.reduction((192, 28, 28), kernel=5, out_channels=32, through=16), tmp_path / "r.svg")
    found = " ".join(words(tmp_path / "r.svg"))
    assert "5×5 alone: 120,422,400 MACs" in found and "2,408,448 + 10,035,200 = 12,443,648 MACs, 9.68 times" in found
    with pytest.raises(NetError, match=r"Use \.svg"):
        draw_reduction(branchwork.reduction((1, 2, 2), kernel=3, out_channels=1, through=1), tmp_path / "r.txt")


@pytest.mark.parametrize("name", NETS)
def test_every_net_is_drawn_and_alike_each_time(name, tmp_path):
    for file in ("one.svg", "two.svg"):
        draw_net(traced(name), tmp_path / file, name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert "nan" not in (tmp_path / "one.svg").read_text().lower().replace("dominant", "")


def test_another_ending_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(NetError, match=r"Use \.svg, \.png, \.jpg or \.pdf"):
        draw_net(traced("mlp"), tmp_path / "net.gif", "mlp")
    with pytest.raises(NetError, match="cannot write"):
        (tmp_path / "file").write_text("")
        draw_net(traced("mlp"), tmp_path / "file" / "net.svg", "mlp")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
