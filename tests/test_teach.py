"""Each mistake that learners make meets its message, in English and in Chinese."""

import re
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from helpers import mistakes
from helpers.lecture import InceptionNet
from torch import nn

import branchwork as bw
from branchwork.catalogue.builders import NETS
from branchwork.errors import NetError
from branchwork.graph.teach import failure
from branchwork.observer import Observer
from branchwork.training import training_run

MISTAKES = {
    "WrongLinear": (
        "`fc` expects 300 features, but 20×4×4 = 320 arrive: nn.Linear(320, 10)",
        "`fc` 需要 300 个特征，输入却是 20×4×4 = 320 个：改成 nn.Linear(320, 10)",
    ),
    "NotFlattened": ("20×4×4 arrives: flatten it first, x = x.view(x.size(0), -1)", "输入却是 20×4×4：先展平"),
    "WrongView": ("each image is 20×4×4 = 320 here; write x.view(x.size(0), -1)", "此处每张图是 20×4×4 = 320"),
    "MixedBatch": ("turns 2 images into 4 rows: a view mixes them", "把 2 张图变成了 4 行"),
    "WrongChannels": (
        "`conv2` expects 16 channels, but 10×12×12 arrives: nn.Conv2d(10, 20, 5)",
        "`conv2` 需要 16 个通道，输入却是 10×12×12：改成 nn.Conv2d(10, 20, 5)",
    ),
    "ColourFirst": (
        "`conv1` expects 3 channels, but the images have 1: nn.Conv2d(1, 10, 5), or images of 3×28×28",
        "`conv1` 需要 3 个通道，而图像有 1 个",
    ),
    "ModulePassed": ("write self.mp(self.conv1(x))", "应写成 self.mp(self.conv1(x))"),
    "ModuleToFunction": ("a module (Conv2d) was passed where its output was meant", "传入的是模块本身（Conv2d）"),
    "TooSmall": (
        "images of 28×28 are too small: only 20×4×4 is left at `conv3`; the smallest size that works is 32×32",
        "28×28 的图像太小：到 `conv3` 只剩 20×4×4；最小可用的是 32×32",
    ),
    "NoReturn": ("forward returns nothing: end it with `return x`", "forward 没有返回值"),
    "Misspelt": ("has no attribute 'conv_2'. Did you mean self.conv2?", "是不是想写 self.conv2？"),
    "WithOptions": (
        "nn.Conv2d(10, 20, 5, padding=2, dilation=2, bias=False)",
        "改成 nn.Conv2d(10, 20, 5, padding=2, dilation=2, bias=False)",
    ),
    "WithoutBias": ("320 arrive: nn.Linear(320, 10, bias=False)", "改成 nn.Linear(320, 10, bias=False)"),
    "MisspeltShort": ("has no attribute 'ap'. Did you mean self.mp?", "是不是想写 self.mp？"),
    "MisspeltMethod": ("has no attribute 'veiw'. Did you mean x.view?", "x.view"),
    "MisspeltForward": ("has no forward: define `def forward(self, x)`", "这个类没有 forward"),
    "MisspeltInit": ("MisspeltInit has a method `__int__`", "`__int__`"),
    "TwoOutputs": ("returns a tuple, but one tensor of logits is needed", "返回的是 tuple"),
    "TooManyClasses": ("returns 12 numbers per image, but 10 are needed", "输出 12 个数，需要 10 个"),
    "ConvAfterFlatten": ("`conv2` expects images N×C×H×W, but 2×1440 arrives", "它应该放在展平之前"),
    "ForwardOutside": ("the class has no forward: define `def forward(self, x)`", "这个类没有 forward"),
    "NoSuper": ("call super().__init__() first, in __init__", "请在 __init__ 的第一行调用 super().__init__()"),
    "ForgottenBranch": (
        "nn.Conv2d(1, 24, 5, padding=2). Or should it read the output of `relu`, which nothing reads?",
        "nn.Conv2d(1, 24, 5, padding=2)",
    ),
    "LostPadding": (
        "`branch5x5_2` 24×8×8, `branch3x3` 24×12×12. `incep.branch5x5_2` has kernel 5 and padding 0: padding=2",
        "`incep.branch5x5_2` 的核是 5，填充是 0：改成 padding=2",
    ),
    "OtherChannels": (
        "`relu` 16×12×12 + `conv2` 32×12×12: give the shortcut a 1×1 projection, nn.Conv2d(16, 32, 1)",
        "给捷径加一个 1×1 投影 nn.Conv2d(16, 32, 1)",
    ),
    "OtherStride": ("nn.Conv2d(16, 32, 1, stride=2)", "nn.Conv2d(16, 32, 1, stride=2)"),
    "ResidualPadding": (
        "`block.conv1` has kernel 3 and padding 0: padding=1 keeps height and width.",
        "`block.conv1` 的核是 3，填充是 0：改成 padding=1",
    ),
}
# What only training needs: a net that gives something else than logits can still be inspected.
ONLY_IN_TRAINING = {"MixedBatch", "NoReturn", "TwoOutputs", "TooManyClasses"}


def net_argument(name: str) -> str:
    return f"{mistakes.__file__}:{name}"


def test_every_mistake_has_its_message():
    nets = {name for name, value in vars(mistakes).items() if isinstance(value, type)}
    assert nets - {"Right", "Inception", "Residual"} == MISTAKES.keys()
    assert len(MISTAKES) >= 15


def test_without_a_mistake_the_net_is_right():
    assert failure(mistakes.Right(), (1, 28, 28)) is None


@pytest.mark.parametrize("name", MISTAKES)
@pytest.mark.parametrize("language", ["en", "zh"])
def test_each_mistake_meets_its_message_in_training(name, language, sample, monkeypatch):
    monkeypatch.setenv("BRANCHWORK_LANG", language)
    with pytest.raises(NetError) as caught:
        bw.train(net_argument(name), data=sample, out="run")
    assert MISTAKES[name][language == "zh"] in str(caught.value)
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize("name", sorted(MISTAKES.keys() - ONLY_IN_TRAINING))
def test_each_mistake_meets_the_same_message_in_inspect(name, monkeypatch, refused):
    monkeypatch.setenv("BRANCHWORK_LANG", "en")
    text = refused("inspect", net_argument(name))
    assert MISTAKES[name][0] in text
    if name != "ForwardOutside":
        assert re.search(r"mistakes\.py, line \d+\)", text), text


@pytest.mark.parametrize(("locale", "chinese"), [("zh_CN.UTF-8", True), ("de_DE.UTF-8", False), ("", False)])
def test_the_language_is_that_of_the_locale(locale, chinese, monkeypatch):
    for name in ("BRANCHWORK_LANG", "LC_ALL", "LC_MESSAGES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LANG", locale)
    with pytest.raises(NetError) as caught:
        bw.inspect(net_argument("WrongLinear"))
    assert ("个特征" in str(caught.value)) is chinese


def test_the_flow_of_shapes_leads_up_to_the_failure(monkeypatch):
    monkeypatch.setenv("BRANCHWORK_LANG", "en")
    text = str(failure(bw.build_net(net_argument("WrongLinear")), (1, 28, 28)))
    assert [line.split() for line in text.splitlines()[1:]] == [
        ["input", "1×28×28"],
        ["conv1", "conv2d", "10×24×24"],
        ["mp", "max_pool2d", "10×12×12"],
        ["forward", "relu", "10×12×12"],
        ["conv2", "conv2d", "20×8×8"],
        ["mp", "max_pool2d", "20×4×4"],
        ["forward", "relu", "20×4×4"],
        ["forward", "view", "320"],
        ["fc", "linear", "✗"],
    ]


def test_a_wrong_input_on_the_command_line_says_what_the_net_needs(refused):
    text = refused("inspect", f"{ROOT}/tests/helpers/lecture.py:ResidualNet", "--input", "3x28x28")
    assert "`conv1` expects 1 channels, but the images have 3" in text and "images of 1×28×28" in text
    text = refused("inspect", f"{ROOT}/tests/helpers/lecture.py:ResidualNet", "--input", "1x32x32")
    assert "`fc` expects 512 features, but 32×5×5 = 800 arrive: nn.Linear(800, 10)" in text
    for wrong in ("", "1x0x28", "1x-3x28", "axbxc"):
        assert "--input must be channels, height and width" in refused("inspect", "residual", "--input", wrong)


@pytest.mark.parametrize("net", [NETS["inception"](), NETS["residual"](), InceptionNet()])
def test_a_net_that_is_right_has_nothing_to_be_taught_and_is_left_alone(net):
    net.train()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    random = torch.get_rng_state()
    assert failure(net, (1, 28, 28)) is None
    assert net.training and torch.equal(random, torch.get_rng_state())
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in net.modules())


def test_operations_keep_their_names_and_a_sum_in_place_is_a_sum():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 2, 3, padding=1)

        def forward(self, x):
            big = nn.functional.interpolate(x, scale_factor=2)
            big += x
            return big

    text = str(failure(Net(), (1, 5, 5)))
    assert "forward  interpolate  1×10×10" in text and re.search(r"forward  add +✗", text)


def test_an_addition_of_what_is_not_images_is_left_to_python():
    class Odd(nn.Module):
        def forward(self, x):
            return x.flatten(1) + torch.zeros(3)

    assert "RuntimeError: The size of tensor a" in str(failure(Odd(), (1, 5, 5)))


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [("nn.Moudel", "nn.Module"), ("nn.Conv2D", "nn.Conv2d"), ("nn.functional.rleu", "nn.functional.relu")],
)
def test_a_misspelt_name_of_torch_meets_the_one_that_was_meant(wrong, hint, monkeypatch, refused):
    monkeypatch.setenv("BRANCHWORK_LANG", "en")
    text = FORGETFUL.replace("F.relu(x + y)", "nn.functional.relu(x + y)")
    Path("net.py").write_text(text.replace(hint, wrong, 1))
    for command in (("inspect", "net.py:Net"), ("train", "net.py:Net", "--data", "sample")):
        said = refused(*command)
        assert f" Did you mean {hint}?" in said and said.count("Did you mean") == 1, said


FORGETFUL = """import torch.nn as nn, torch.nn.functional as F


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x):
        y = F.relu(self.conv1(x))
        y = self.conv2(x)
        return F.relu(x + y)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem, self.block1, self.block2, self.fc = nn.Conv2d(1, 8, 5, 3), Block(), Block(), nn.Linear(8, 10)

    def forward(self, x):
        return self.fc(self.block2(self.block1(F.relu(self.stem(x)))).mean((2, 3)))
"""


class Told(Observer):
    def __init__(self):
        self.events = []

    def note(self, message):
        self.events.append(message)

    def step(self, step):
        self.events.append("step")


@pytest.mark.parametrize("execute", ["written", "auto"])
def test_a_training_tells_in_one_line_of_an_output_that_nobody_reads_before_it_begins(execute, small, monkeypatch):
    monkeypatch.setenv("BRANCHWORK_LANG", "en")
    Path("net.py").write_text(FORGETFUL)
    told, recipe = Told(), bw.fast("residual").but({"epochs": 1, "batch_size": 500, "validation": 0.0})
    options = bw.Options(execute=execute)
    bw.train("net.py:Net", data=small, recipe=recipe, options=options, progress=told, out="run")
    first, *others = told.events
    assert first.startswith("`block1.conv1`'s output is never used; did `block1.conv2` mean to read it? (")
    assert first.endswith("net.py, line 11)") and set(others) == {"step"}
    with_it, told = Path("run/model.safetensors").read_bytes(), Told()
    monkeypatch.setattr(training_run, "unread_warnings", lambda *_: [])
    bw.train("net.py:Net", data=small, recipe=recipe, options=options, progress=told, out="without")
    assert set(told.events) == {"step"} and Path("without/model.safetensors").read_bytes() == with_it


SCRIPT = """
import torch
from torch import nn
from torch.nn import functional as F
class Block(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.one = nn.Conv2d(channels, 16, 1)
        self.five = nn.Conv2d(channels, 24, 5, padding=2)
        self.pooled = nn.Conv2d(channels, 24, 1)
    def forward(self, x):
        p = self.pooled(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return torch.cat([self.one(x), self.five(x), p], dim=1)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, 5)
        self.conv2 = nn.Conv2d(64, 20, 5)
        self.mp = nn.MaxPool2d(2)
        self.block1 = Block(10)
        self.block2 = Block(20)
        self.fc = nn.Linear(1024, 10)
    def forward(self, x):
        x = self.block1(F.relu(self.mp(self.conv1(x))))
        x = self.block2(F.relu(self.mp(self.conv2(x))))
        x = x.view(x.size(0), -1)
        x = self.fc(x)
        return x
"""
CHANGES = [
    ("stride=1, padding=1", "stride=1", "`F.avg_pool2d (block1)` has kernel 3 and padding 0: padding=1 keeps"),
    ("kernel_size=3, stride=1, padding=1", "3", "`F.avg_pool2d (block1)` has stride 3: stride=1 keeps"),
    (
        "F.avg_pool2d(x, kernel_size=3, stride=1, padding=1)",
        "F.max_pool2d(x, 3, 1)",
        "`F.max_pool2d (block1)` has kernel 3",
    ),
    ("], dim=1)", "])", "torch.cat joins along dim=0 here, the images of the batch: write dim=1 to join channels"),
    ("x.size(0), -1", "64, -1", "this view turns 2 images into 64 rows: write x.view(x.size(0), -1)"),
    ("        return x\n", "        pass\n", "forward returns nothing: end it with `return x`"),
    ("return torch.cat", "torch.cat", "an operation got None: the forward of a module before it returns nothing"),
    (
        "Block(20)",
        "Block(10)",
        "`block2.pooled` expects 10 channels, but 20×4×4 arrives: build `block2` with 20 input channels",
    ),
]


@pytest.mark.parametrize(("right", "wrong", "words"), CHANGES, ids=[wrong for _, wrong, _ in CHANGES])
def test_the_innocent_are_not_blamed(right, wrong, words, refused):
    Path("mine.py").write_text(SCRIPT)
    assert bw.inspect("mine.py:Net").rows[-1].output_shape == (10,)
    Path("mine.py").write_text(SCRIPT.replace(right, wrong))
    text = refused("inspect", "mine.py:Net", "--lint")
    assert words in text
    assert "`mp` has stride" not in text and "`conv1` has" not in text
