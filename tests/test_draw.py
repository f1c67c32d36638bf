import re
from itertools import combinations
from xml.etree import ElementTree

import pytest
import torch
from helpers import lecture
from PIL import Image
from torch import nn
from torch.nn import functional as F

import branchwork
from branchwork import Add, Concat
from branchwork.errors import NetError
from branchwork.graph.trace import Trace, trace
from branchwork.inspection.drawing import draw
from branchwork.inspection.layout import LEAST, POINTS, SLIDE, Box, Picture, layout


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


NETS = {
    "inception": (lecture.InceptionNet, (1, 28, 28)),
    "residual": (lecture.ResidualNet, (1, 28, 28)),
    "googlenet": (branchwork.NETS["googlenet"], (3, 224, 224)),
    "densenet": (lambda: DenseNet(12), (3, 32, 32)),
    "resnet110": (branchwork.NETS["resnet110"], (3, 32, 32)),
    "nested": (nested, (3, 16, 16)),
    "tangle": (Tangle, (3, 16, 16)),
    "transformer": (lambda: nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), (16, 32)),
    "mlp": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(784, 64), nn.ReLU(), nn.Linear(64, 10)), (1, 28, 28)),
    "nothing": (nn.Identity, (1, 28, 28)),
}
_traces: dict[str, Trace] = {}


def traced(name: str) -> Trace:
    if name not in _traces:
        build, shape = NETS[name]
        net = build()
        if any(isinstance(module, nn.LazyLinear) for module in net.modules()):
            net(torch.zeros(1, *shape))
        _traces[name] = trace(net, shape)
    return _traces[name]


def box(picture: Picture, name: str) -> Box:
    (found,) = [box for box in picture.boxes if name in [node.name for node in box.nodes]]
    return found


@pytest.mark.parametrize("name", NETS)
def test_every_operation_is_placed_once_and_no_box_overlaps_another(name):
    picture = layout(traced(name))
    assert sorted(node.name for box in picture.boxes for node in box.nodes) == sorted(
        node.name for node in traced(name).nodes
    )
    for one, other in combinations(picture.boxes, 2):
        beside = one.right <= other.x or other.right <= one.x
        assert beside or abs(one.y - other.y) >= (one.height + other.height) / 2, (one.name, other.name)
    for one in picture.boxes:
        assert one.x > 0 and one.right < picture.width
        assert one.y - one.height / 2 > 0 and one.y + one.below < picture.height


@pytest.mark.parametrize("name", NETS)
def test_every_edge_is_drawn_once_and_goes_forward(name):
    picture = layout(traced(name))
    maker = {node.name: box for box in picture.boxes for node in box.nodes} | {"input": picture.boxes[0]}
    wanted = {
        (maker[source], maker[node.name])
        for node in traced(name).nodes
        for source in node.inputs
        if maker[source] is not maker[node.name]
    }
    drawn = [(source, target) for source, target, _ in picture.edges]
    drawn += [(rail.source, target) for rail in picture.rails for target in rail.targets]
    assert len(drawn) == len(set(drawn)) and set(drawn) == wanted
    for source, target in drawn:
        assert (source.row, source.right) < (target.row, target.x), (source.name, target.name)
    for rail in picture.rails:
        for one in picture.boxes:
            passed = rail.start < one.x and one.right < min(target.x for target in [*rail.targets, one])
            inside = passed and one.y - one.height / 2 <= rail.y <= one.y + one.height / 2
            assert not inside, (rail.source.name, one.name)


@pytest.mark.parametrize("name", ["inception", "googlenet", "nested"])
def test_lanes_stand_in_the_order_of_the_join_between_fork_and_join(name):
    picture = layout(traced(name))
    many = [join for join in traced(name).joins if all(branch.nodes for branch in join.branches)]
    assert many
    for join in many:
        meeting, below = box(picture, join.node), 0.0
        forks = {source for branch in join.branches for source in box(picture, branch.nodes[0]).inputs}
        assert len(forks) == 1
        (fork,) = forks
        for branch in join.branches:
            lane = {box(picture, node) for node in branch.nodes}
            if meeting.kind == "bar":
                last = max(lane, key=lambda one: one.x)
                assert {one.colour for one in lane} == {meeting.branch(last)}
            assert all(below < one.y - one.height / 2 for one in lane), branch.name
            below = max(one.y + one.height / 2 for one in lane)
            start = fork.right if fork.row == meeting.row else 0
            assert all(start < one.x and one.right < meeting.x for one in lane)


@pytest.mark.parametrize("name", ["inception", "googlenet", "densenet", "tangle"])
def test_segments_of_a_bar_fill_it_and_add_up_to_the_channels_that_come_out(name):
    bars = [box for box in layout(traced(name)).boxes if box.kind == "bar"]
    assert len(bars) == len([join for join in traced(name).joins if join.node.split(".")[-1].startswith("cat")])
    for bar in bars:
        segments = bar.segments()
        assert sum(channels for _, _, channels in segments) == bar.nodes[0].output_shape[0]
        assert sum(height for _, height, _ in segments) == pytest.approx(bar.height)
        assert [top for top, _, _ in segments] == sorted(top for top, _, _ in segments)
        wide, narrow = max(segments, key=lambda s: s[2]), min(segments, key=lambda s: s[2])
        assert wide[1] > narrow[1] or wide[2] == narrow[2]


def test_more_channels_make_a_higher_box():
    picture = layout(traced("googlenet"))
    assert box(picture, "incep3a.b3.conv2.conv").height < box(picture, "incep5b.b3.conv2.conv").height


@pytest.mark.parametrize("name", ["inception", "residual"])
def test_the_lecture_nets_are_legible_on_a_slide(name):
    picture = layout(traced(name))
    assert POINTS / max(picture.width / SLIDE[0], picture.height / SLIDE[1], 1) >= LEAST


def test_large_nets_wrap_into_rows_of_one_page():
    for name, least in (("googlenet", 5.0), ("resnet110", 3.0)):
        picture = layout(traced(name))
        assert len(picture.rows) > 2
        assert POINTS / max(picture.width / SLIDE[0], picture.height / SLIDE[1]) > least
        for join in traced(name).joins:  # a block is not torn apart
            whole = [join.node, *(node for branch in join.branches for node in branch.nodes)]
            assert len({box(picture, node).row for node in whole}) == 1


def test_a_shortcut_passes_over_its_block():
    picture = layout(traced("residual"))
    first = [rail for rail in picture.rails if rail.targets == [box(picture, "rblock1.add")]]
    assert [rail.source.nodes[0].name for rail in first] == ["mp"]
    assert all(
        first[0].y < one.y - one.height / 2 for one in map(lambda n: box(picture, f"rblock1.{n}"), ("conv1", "conv2"))
    )


def words(path) -> list[str]:
    return [
        "".join(text.itertext()).strip() for text in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")
    ]


def test_the_words_of_the_picture(tmp_path):
    draw(traced("inception"), tmp_path / "net.svg", 'Two < three & "four" $x$')
    found = words(tmp_path / "net.svg")
    for word in ('Two < three & "four" $x$', "conv 5×5", "branch5x5_2", "incep1", "max pool 2×2", "avg pool 3×3 /1"):
        assert word in found
    for shape in ("1×28×28", "10×24×24", "88×12×12", "88×4×4 = 1408", "16", "24", "88", "relu", "view", "10"):
        assert shape in found
    assert found.count("24") == 6 and found.count("88") == 2


def test_a_sum_is_a_plus(tmp_path):
    draw(traced("residual"), tmp_path / "net.svg", "residual")
    assert words(tmp_path / "net.svg").count("+") == 2


def test_the_svg_follows_light_and_dark_on_a_transparent_ground(tmp_path):
    draw(traced("inception"), tmp_path / "net.svg", "inception")
    text = (tmp_path / "net.svg").read_text()
    assert "prefers-color-scheme:dark" in text and "currentColor" in text and "#010203" not in text
    colours = set(re.findall(r"#[0-9a-f]{6}\b", text.lower().replace("#1c1c1c", "").replace("#e8e8e8", "")))
    assert colours == {
        "#e69f00",
        "#56b4e9",
        "#009e73",
        "#cc79a7",
    }  # ink is the page's own, and nothing is white or black


def test_the_png_is_opaque_and_light(tmp_path):
    draw(traced("inception"), tmp_path / "net.PNG", "inception")
    with Image.open(tmp_path / "net.PNG") as image:
        assert image.convert("RGBA").getpixel((0, 0)) == (255, 255, 255, 255)
        assert image.width > 1500


@pytest.mark.parametrize("name", NETS)
def test_every_net_is_drawn_and_alike_each_time(name, tmp_path):
    for file in ("one.svg", "two.svg"):
        draw(traced(name), tmp_path / file, name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.svg").read_bytes()
    assert "nan" not in (tmp_path / "one.svg").read_text().lower().replace("dominant", "")


def test_another_ending_is_refused_and_nothing_written(tmp_path):
    with pytest.raises(NetError, match=r"\.svg or \.png"):
        draw(traced("mlp"), tmp_path / "net.pdf", "mlp")
    with pytest.raises(NetError, match="cannot write"):
        (tmp_path / "file").write_text("")
        draw(traced("mlp"), tmp_path / "file" / "net.svg", "mlp")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
