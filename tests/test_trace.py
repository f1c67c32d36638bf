import json
import re
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT, in_a_process
from helpers.lecture import InceptionNet, ResidualNet
from helpers.reference import torch_macs
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from torch import nn

import branchwork as bw
from branchwork import Add, Concat, InceptionA, trace
from branchwork.catalogue.builders import NETS
from branchwork.cli.inspect import parts
from branchwork.cli.output import show
from branchwork.errors import NetError
from branchwork.graph.bottlenecks import reduction, reductions
from branchwork.graph.costs import count_macs
from branchwork.inspection.table import Inspection
from branchwork.language import say


class Dense(nn.Module):
    """Each layer reads all that came before, as in DenseNet."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(c), nn.ReLU(), nn.Conv2d(c, 4, 3, padding=1)) for c in (3, 7, 11)
        )

    def forward(self, x):
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x.mean((2, 3))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(1, 16, 4, stride=4)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        return self.head(self.block(self.embed(x).flatten(2).transpose(1, 2)).mean(1))


def mlp() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 10))


OTHERS = {
    "script inception": (InceptionNet(), (1, 28, 28)),
    "script residual": (ResidualNet(), (1, 28, 28)),
    "dense": (Dense(), (3, 16, 16)),
    "mlp": (mlp(), (1, 28, 28)),
    "grouped": (
        nn.Sequential(nn.Conv2d(4, 8, (3, 5), groups=2, dilation=2), nn.Conv2d(8, 8, 3, groups=8)),
        (4, 20, 20),
    ),
    "up": (nn.Sequential(nn.ConvTranspose2d(3, 5, 4, stride=2), nn.Upsample(scale_factor=2)), (3, 9, 9)),
    "split": (nn.Sequential(nn.Conv2d(1, 4, 1), nn.ChannelShuffle(2), nn.PixelShuffle(2)), (1, 8, 8)),
}
every = pytest.mark.parametrize(
    ("net", "shape"),
    [
        (NETS["inception"](), (1, 28, 28)),
        (NETS["residual"](), (1, 28, 28)),
        *OTHERS.values(),
        (NETS["residual"](in_channels=3, image_size=33), (3, 33, 33)),
    ],
)


@every
def test_macs_parameters_and_shapes_agree_with_torch(net, shape):
    traced = trace(net, shape)
    assert traced.macs == torch_macs(net.eval(), shape) == count_macs(net, shape)
    assert traced.parameters == sum(p.numel() for p in net.parameters()) == sum(n.parameters for n in traced.operations)
    assert traced.operations[-1].output_shape == tuple(net(torch.zeros(1, *shape)).shape[1:])
    assert traced.unreached == ()
    names = [node.name for node in traced.operations]
    assert len(set(names)) == len(names)
    known = {"input", *names}
    assert all(set(node.inputs) <= known for node in traced.operations)


def test_closed_forms_of_the_lecture():
    assert trace(NETS["inception"](), (1, 28, 28)).macs == 6_019_200
    assert trace(NETS["residual"](), (1, 28, 28)).macs == 2_013_184
    assert trace(InceptionA(10), (10, 12, 12)).macs == 2_730_240
    assert trace(InceptionA(20), (20, 4, 4)).macs == 314_880


def test_attention_is_counted_by_its_closed_form():
    traced = trace(Attention(), (1, 28, 28))
    tokens, width, hidden = 49, 16, 32
    products = 2 * tokens * tokens * width  # queries with keys, weights with values
    layers = tokens * (4 * width * width + 2 * width * hidden)
    assert traced.macs == 16 * 16 * tokens + layers + products + width * 10


@pytest.mark.parametrize("net", [NETS["inception"](), InceptionNet()])
def test_joins_know_their_branches(net):
    joins = trace(net, (1, 28, 28)).joins
    assert len(joins) == 2
    names = [branch.name for branch in joins[0].branches]
    assert names in (["b1", "b5", "b3", "pool"], ["branch1x1", "branch5x5", "branch3x3", "branch_pool"])
    assert [branch.channels for branch in joins[0].branches] == [16, 24, 24, 24]
    assert [len(branch.nodes) for branch in joins[0].branches] == [1, 2, 3, 2]


@pytest.mark.parametrize("net", [NETS["residual"](), ResidualNet()])
def test_a_shortcut_is_a_branch_without_operations(net):
    for join in trace(net, (1, 28, 28)).joins:
        found = {branch.name: len(branch.nodes) for branch in join.branches}
        assert found == {"shortcut": 0, "residual": 3}


class Scaled(nn.Module):
    """A ConvNeXt's: a learned number for each channel."""

    def __init__(self):
        super().__init__()
        self.bias, self.conv = nn.Parameter(torch.zeros(3)), nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x):
        return self.conv(x + self.bias[:, None, None])


class Coordinates(nn.Module):
    """CoordConv: the image meets the positions of its pixels."""

    def __init__(self, more: bool):
        super().__init__()
        self.more, self.conv = more, nn.Conv2d(9 if more else 5, 4, 3)
        self.embed = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        n, _, height, width = x.shape
        rows = torch.linspace(-1, 1, height)[None, None, :, None].expand(n, 1, height, width)
        columns = torch.linspace(-1, 1, width).expand(n, 1, height, width)
        return self.conv(torch.cat([x, *([self.embed(x)] if self.more else []), rows, columns], 1))


def test_what_does_not_depend_on_the_image_is_no_reason_for_a_join():
    for net in (Scaled(), Coordinates(False)):
        assert bw.inspect(net, (3, 8, 8)).joins == {}
    ((name, branches),) = bw.inspect(Coordinates(True), (3, 8, 8)).joins.items()
    assert name == "cat" and [branch.channels for branch in branches] == [3, 4, 1, 1]
    assert [branch.name for branch in branches][:2] == ["shortcut", "embed"]


@pytest.mark.parametrize("name", ["inception", "residual"])
def test_a_fused_net_is_inspected(name):
    fused = bw.fuse(NETS[name]().eval(), (1, 28, 28))
    assert bw.inspect(fused, (1, 28, 28)).macs == torch_macs(fused, (1, 28, 28))


def test_a_concatenation_with_the_image_itself_counts_its_channels():
    net = Concat(image=nn.Identity(), features=nn.Conv2d(3, 5, 1))
    (branches,) = bw.inspect(net, (3, 8, 8)).joins.values()
    assert [(branch.name, branch.channels) for branch in branches] == [("shortcut", 3), ("features", 5)]


@pytest.mark.filterwarnings("ignore")  # torch warns of scripts
@pytest.mark.parametrize("made", [torch.jit.script, lambda net: torch.jit.trace(net, torch.zeros(1, 3, 8, 8))])
def test_a_part_in_torchscript_is_inspected_and_its_mistakes_are_told(made):
    class Net(nn.Module):
        def __init__(self, channels):
            super().__init__()
            self.body, self.fc = made(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU())), nn.Linear(8, 10)
            self.before = nn.Conv2d(3, channels, 1)

        def forward(self, x):
            return self.fc(self.body(self.before(x).relu()).mean((2, 3)))

    net = Net(3)
    assert bw.inspect(net, (3, 8, 8)).macs == torch_macs(net.eval(), (3, 8, 8)) and bw.lint(net, (3, 8, 8)) == ()
    assert bw.inspect(net.body, (3, 8, 8)).macs == 36 * 8 * 27
    x = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(bw.fuse(net, (3, 8, 8))(x), net(x), rtol=1e-4, atol=1e-5)
    with pytest.raises(NetError, match=r"expected input.* to have 3 channels, but got 5 channels instead"):
        bw.inspect(Net(5), (3, 8, 8))


def test_a_module_used_twice_has_two_rows_and_its_parameters_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(2, 2, 3, padding=1)

        def forward(self, x):
            return self.conv(self.conv(x))

    first, second = trace(Twice(), (2, 5, 5)).operations
    assert (first.name, second.name) == ("conv", "conv@2")
    assert (first.parameters, second.parameters) == (38, 0) and first.macs == second.macs == 2 * 2 * 9 * 25


def test_functional_operations_and_views_are_rows_with_their_place():
    traced = trace(InceptionNet(), (1, 28, 28))
    (view,) = [node for node in traced.operations if node.op == "view"]
    assert view.detail == "88×4×4 = 1408" and view.output_shape == (1408,) and view.activation_bytes == 0
    lines = (ROOT / "tests/helpers/lecture.py").read_text().splitlines()
    assert view.file == str(ROOT / "tests/helpers/lecture.py") and "x.view(n, -1)" in lines[view.line - 1]
    conv = traced.operations[0]
    assert "self.conv1(x)" in lines[conv.line - 1]


def test_a_parameter_that_no_path_reaches_is_named():
    class Forgotten(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.spare = nn.Conv2d(1, 2, 3), nn.Conv2d(1, 5, 3)

        def forward(self, x):
            return self.conv(x)

    traced = trace(Forgotten(), (1, 8, 8))
    assert traced.unreached == ("spare.weight", "spare.bias") and traced.parameters == 20 + 50


@every
def test_a_net_is_left_as_it_was(net, shape):
    net.train()
    calls = []
    handle = net.register_forward_hook(lambda *_: calls.append(1))
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    random = torch.get_rng_state()
    trace(net, shape)
    assert net.training and all(module.training for module in net.modules())
    assert torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())
    assert list(net._forward_hooks) == [handle.id]
    assert all(parameter.grad is None for parameter in net.parameters())
    handle.remove()


layer = st.one_of(
    st.tuples(st.just("conv"), st.integers(1, 5), st.integers(1, 3), st.integers(0, 2), st.integers(1, 2)),
    st.tuples(st.just("pool"), st.integers(1, 3), st.integers(1, 3), st.integers(0, 1), st.just(1)),
    st.tuples(st.just("branch"), st.sampled_from([1, 3, 5]), st.sampled_from([1, 3, 7]), st.just(0), st.just(1)),
)


def build(layers) -> nn.Module:
    made: list[nn.Module] = []
    for kind, kernel, stride, padding, dilation in layers:
        if kind == "conv":
            made.append(nn.Conv2d(1, 1, kernel, stride, padding, dilation))
        elif kind == "pool":
            made.append(nn.AvgPool2d(kernel, stride, min(padding, kernel // 2)))
        else:
            made.append(
                Add(a=nn.Conv2d(1, 1, kernel, padding=kernel // 2), b=nn.Conv2d(1, 1, stride, padding=stride // 2))
            )
    return nn.Sequential(*made).double()


@settings(max_examples=40)
@given(st.lists(layer, min_size=1, max_size=4))
def test_the_receptive_field_is_the_support_of_the_gradient(layers):
    net = build(layers)
    for parameter in net.parameters():
        nn.init.uniform_(parameter, 0.1, 1.0)  # positive, so that nothing cancels
    size = 160
    x = torch.zeros(1, 1, size, size, dtype=torch.float64, requires_grad=True)
    try:
        output = net(x)
    except RuntimeError:  # the image became smaller than a kernel
        reject()
    traced = trace(net, (1, size, size))
    middle = output.shape[-1] // 2
    (gradient,) = torch.autograd.grad(output[0, 0, middle, middle], x)
    rows = gradient[0, 0].abs().sum(1).nonzero()[:, 0]
    assume(rows[0] > 0 and rows[-1] < size - 1)  # else part of the field is padding
    assert traced.operations[-1].receptive_field == (int(rows[-1] - rows[0]) + 1,) * 2


def test_the_field_of_a_linear_layer_is_all_that_its_inputs_see():
    fields = {node.name: node.receptive_field for node in trace(NETS["residual"](), (1, 28, 28)).operations}
    assert fields["conv1"] == (5, 5) and fields["rblock1.residual.conv2"] == (14, 14) and fields["fc"] == (28, 28)
    small = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Flatten(), nn.Linear(36, 1))
    assert [node.receptive_field for node in trace(small, (1, 8, 8)).operations] == [(3, 3), (3, 3), (8, 8)]


def test_peak_memory_is_that_of_the_tensors_alive_together():
    chain = nn.Sequential(nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1), nn.Conv2d(2, 8, 1))
    # 1 + 4, then 4 + 2, then 2 + 8 channels of 100 float32 numbers.
    assert trace(chain, (1, 10, 10)).peak_activation_bytes == 4 * 100 * 10
    block = Concat(a=nn.Conv2d(1, 2, 1), b=nn.Conv2d(1, 3, 1), c=nn.Identity())
    # Input and both branches live until the concatenation is made: 1 + 2 + 3 + 6 channels.
    assert trace(block, (1, 10, 10)).peak_activation_bytes == 4 * 100 * 12


def test_a_hundred_layers_are_traced_without_their_activations():
    blocks = [
        Add(
            residual=nn.Sequential(nn.Conv2d(64, 64, 3, padding=1), nn.ReLU(), nn.Conv2d(64, 64, 3, padding=1)),
            shortcut=nn.Identity(),
        )
        for _ in range(50)
    ]
    net = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), *blocks)
    # One activation alone would take 17 GB.
    began = time.perf_counter()
    traced = trace(net, (3, 8192, 8192))
    assert len([node for node in traced.operations if node.op == "conv2d"]) == 101
    assert traced.peak_activation_bytes > 3e10
    assert time.perf_counter() - began < 60  # not a measurement: only that it does no work of that size


def test_a_net_that_depends_on_the_pixels_is_run_once_and_says_so(command):
    class Depends(ResidualNet):
        def forward(self, x):
            return super().forward(x if x.sum() > 0 else -x)

    net = Depends()
    plain, run = trace(ResidualNet(), (1, 28, 28)), trace(net, (1, 28, 28))
    assert run.depends_on_pixels and not plain.depends_on_pixels
    assert run.macs == 2_013_184 and run.parameters == sum(node.parameters for node in run.operations) == 41_514
    convs = [
        [(n.name, n.op, n.output_shape, n.macs, n.receptive_field) for n in t.operations if n.parameters]
        for t in (plain, run)
    ]
    assert convs[0] == convs[1]
    assert [join.branches for join in run.joins] == [join.branches for join in plain.joins]
    code, out, err = command("inspect", f"{ROOT}/tests/helpers/lecture.py:Depends")
    assert "a word that must not be in the table" in err and "a word" not in out
    assert code == 0 and "these are the ones for a black image" in out


def test_reduction_is_the_lectures_sum():
    saved = reduction((192, 28, 28), kernel=5, out_channels=32, through=16)
    assert (saved.direct, saved.first, saved.second, saved.total) == (120_422_400, 2_408_448, 10_035_200, 12_443_648)
    assert round(saved.times, 2) == 9.68
    with pytest.raises(NetError, match="kernel must be at least 1, got 0"):
        reduction((192, 28, 28), kernel=0, out_channels=32, through=16)


def test_reductions_in_a_net_agree_with_torch():
    found = {saved.name: saved for saved in reductions(trace(NETS["inception"](), (1, 28, 28)))}
    assert found.keys() == {f"incep{i}.{b}.conv1" for i in (1, 2) for b in ("b5", "b3")}
    saved = found["incep1.b5.conv1"]
    assert (saved.channels, saved.through, saved.out) == (10, 16, 24) and saved.times < 1
    assert saved.direct == torch_macs(nn.Conv2d(10, 24, 5, padding=2), (10, 12, 12))
    assert saved.total == torch_macs(NETS["inception"]().incep1.b5, (10, 12, 12))
    assert found["incep2.b5.conv1"].times > 1


def test_inspect_folds_without_losing_anything():
    whole = bw.inspect("inception")
    for by in ("block", "branch", "op"):
        folded = bw.inspect("inception", by=by)
        for figure in ("parameters", "macs", "activation_bytes", "share"):
            sums = [sum(getattr(row, figure) for row in rows) for rows in (whole.rows, folded.rows)]
            assert sums[0] == pytest.approx(sums[1])
        assert len(folded.rows) < len(whole.rows)
    assert (
        sum(row.macs for row in whole.rows) == whole.macs and sum(r.parameters for r in whole.rows) == whole.parameters
    )
    blocks = {row.name: row.macs for row in bw.inspect("inception", by="block").rows}
    assert (blocks["incep1"], blocks["incep2"], blocks["conv2"]) == (2_730_240, 314_880, 2_816_000)


def test_inspect_knows_the_smallest_input_and_a_run(run):
    assert bw.inspect("inception").smallest_input == 28  # the linear layer was made for 28, and 27 leaves 3×3
    assert bw.inspect(nn.Sequential(nn.Conv2d(1, 1, 7), nn.AdaptiveAvgPool2d(1), nn.Flatten())).smallest_input == 7
    inspection = bw.inspect(run.folder)
    assert inspection.classes == tuple("0123456789") and inspection.mean == (0.1307,) and inspection.macs == 2_013_184


GOLDENS = {
    "inception": ("inception",),
    "residual": ("residual",),
    "residual-3x32x32": ("residual", "--input", "3x32x32"),
    "lecture-inception": (f"{ROOT}/tests/helpers/lecture.py:InceptionNet",),
    "lecture-residual-by-branch": (f"{ROOT}/tests/helpers/lecture.py:ResidualNet", "--by", "branch"),
}


@pytest.mark.parametrize("name", GOLDENS)
def test_the_table_is_as_it_was_and_adds_up(name, command, request):
    code, out, err = command("inspect", *GOLDENS[name])
    assert code == 0, err
    text = "\n".join(line.rstrip() for line in out.splitlines()) + "\n"
    golden = ROOT / f"tests/goldens/{name}.txt"
    if request.config.getoption("--overwrite"):
        golden.write_text(text)
    assert text == golden.read_text()
    rows = [line.split("  ") for line in text.splitlines()]
    numbers = [[cell.strip() for cell in row if cell.strip()] for row in rows]
    (total,) = [row for row in numbers if row[:1] == ["all"]]
    macs = [int(row[4].replace(",", "")) for row in numbers if len(row) == 9 and row[4].replace(",", "").isdigit()]
    assert sum(macs) == int(total[2].replace(",", ""))


def test_nets_that_take_no_images_are_inspected():
    rows = bw.inspect(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), (49, 16)).rows
    assert sum(row.macs for row in rows) == 49 * (4 * 16 * 16 + 2 * 16 * 32) + 2 * 49 * 49 * 16
    assert bw.inspect(nn.Sequential(nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 10)), (784,)).macs == 39_700
    with pytest.raises(NetError, match="must be channels, height and width"):
        bw.inspect("residual", (784,))


def test_the_command_shows_rows_totals_and_what_a_1x1_costs(command):
    code, out, _ = command("inspect", f"{ROOT}/tests/helpers/lecture.py:InceptionNet", "--json", "i.json")
    assert code == 0
    for words in (
        "88×4×4 = 1408", "├ branch5x5_1", "│ branch5x5_2", "╰ cat", "16+24+24+24 = 88", "6,019,200", "97,298",
        "conv 5×5 p2", "max 2×2 /2", "avg 3×3 p1",
    ):  # fmt: skip
        assert words in out, words
    (saved,) = [line.split() for line in out.splitlines() if line.startswith(" incep1.branch5x5_1 ")]
    assert saved[1:] == ["10", "→", "16", "5×5", "1,405,440", "864,000", "costs", "541,440"]
    branches = [line.split() for line in out.splitlines() if line.split()[:1] == ["branch3x3"]]
    assert [(row[1], row[-1]) for row in branches] == [("24", "21.1%"), ("24", "2.4%")]
    written = json.loads(Path("i.json").read_text())
    assert {"parameters", "macs", "rows"} <= written.keys()
    assert {"name", "op", "output_shape", "parameters", "macs"} <= written["rows"][0].keys()
    code, out, _ = command("inspect", "--conv", "192x28x28", "--kernel", 5, "--out-channels", 32, "--through", 16)
    assert code == 0 and "784 × 25 × 192 × 32" in out and "120,422,400" in out and "9.68 times fewer" in out
    code, out, _ = command("inspect", "--conv", "192x28x28", "--kernel", 5, "--out-channels", 32, "--through", 160)
    assert code == 0 and "1.03 times more" in out


@pytest.fixture
def on_a_terminal(monkeypatch, capsys):
    """Show an inspection on a terminal of so many columns: gives what is on it, without colours."""

    def call(inspection: Inspection, columns: int) -> str:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        show(*parts(inspection))
        return re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)

    return call


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("net", ["inception", "resnet18"])
def test_no_terminal_is_too_narrow_for_the_receptive_field(net, language, on_a_terminal, monkeypatch):
    monkeypatch.setenv("BRANCHWORK_LANG", language)
    inspection = bw.inspect(net)
    side = inspection.input_shape[-1]
    for columns in (40, 60, 80, 160):
        shown = on_a_terminal(inspection, columns)
        table, *_ = shown.split(say("{parameters:,} parameters", parameters=inspection.parameters))
        assert max(map(cell_len, shown.splitlines())) <= columns, (columns, shown)
        assert any(line.split()[-1:] == [f"{side}×{side}"] for line in table.splitlines())
        assert "MACs" in table and (columns > 80) == (
            say("this terminal is too narrow for: {columns}")[:9] not in table
        )


@pytest.mark.parametrize("net", ["inception", "residual"])
def test_no_word_is_broken_at_80_columns_and_every_figure_is_whole(net, command, on_a_terminal):
    wide = command("inspect", net)[1].split()
    body, _, said = on_a_terminal(bw.inspect(net), 80).partition("this terminal is too narrow for: ")
    assert said.split()[0] == "memory"
    assert {word for word in (body + said).split() if "─" not in word} <= {*wide, "memory"}
    for figure in ("6,019,200" if net == "inception" else "2,013,184", "5×5", "24×24", "14×14"):
        assert figure in body.split()


def test_colours_mark_branches_on_a_terminal_alone(command, monkeypatch):
    assert "\x1b" not in command("inspect", "inception")[1]
    for name, value in {"TTY_COMPATIBLE": "1", "TERM": "xterm-256color", "COLORTERM": "truecolor"}.items():
        monkeypatch.setenv(name, value)
    out = in_a_process("inspect", "inception").stdout  # rich keeps the codes of a style from before
    for name, colour in (("b1", "194;128;0"), ("b5.conv2", "0;114;178"), ("pool.conv", "189;112;162")):
        assert re.search(rf"38;2;{colour}m *[├│] {re.escape(name)}", out)


def test_the_command_draws_and_lints(command):
    code, out, _ = command("inspect", "inception", "--draw", "i.svg", "--lint", "--json", "i.json")
    assert code == 0 and "drawn: i.svg" in out
    assert "`incep1` and `conv2` are one affine map" in out and "1,036,800 as one 9×9 convolution" in out
    assert "blocks.py" not in out  # a line of ours is none that a user could change
    findings = json.loads(Path("i.json").read_text())["findings"]
    assert [finding["rule"] for finding in findings] == ["affine", "affine"]
    assert findings[0].keys() == {"rule", "module", "file", "line", "message", "mend"}
    assert Path("i.svg").read_text().startswith("<svg") and "88×4×4 = 1408" in Path("i.svg").read_text()
    code, out, _ = command("inspect", "residual", "--lint")
    assert code == 0 and out.rstrip().endswith("lint: nothing found")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("residual", "--draw", "r.txt"), "Use .svg, .png, .jpg or .pdf"),
        ((), "name a net to inspect"),
        (("--conv", "192x28x28", "--kernel", "5"), "all three"),
        (("residual", "--conv", "192x28x28", "--kernel", "5", "--out-channels", "3", "--through", "2"), "and no net"),
        (("residual", "--kernel", "5"), "give --conv"),
        (("resdual",), "Did you mean 'residual'"),
    ],
)
def test_what_cannot_be_inspected_is_refused(arguments, words, refused):
    assert words in refused("inspect", *arguments)
