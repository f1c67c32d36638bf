"""The page's own arithmetic against torch and Pillow, in Node; the page itself is opened in test_ui.py."""

import json
import shutil
import subprocess
from importlib import resources

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image, ImageDraw
from torch import nn
from torch.nn import functional as F

import branchwork as bw
from branchwork.datasets.placing import RULES, to_image
from branchwork.errors import ExportError, ImageError
from branchwork.graph.branching import read_branches
from branchwork.graph.read import read
from branchwork.page.spec import encode, image_operations, operations_as_json
from branchwork.page.tour import steps_of

pytestmark = pytest.mark.skipif(shutil.which("node") is None, reason="needs Node (any version from 20)")
ASSETS = resources.files("branchwork") / "page/assets"


def ask(*questions):
    lines = "".join(json.dumps(question) + "\n" for question in questions)
    done = subprocess.run(
        ["node", str(ROOT / "tests/page.mjs"), str(ASSETS)], input=lines, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def as_json(value):
    if isinstance(value, torch.Tensor):
        return {"shape": list(value.shape), "data": value.flatten().tolist()}
    return [as_json(item) for item in value] if isinstance(value, list | tuple) else value


def tensor(answer):
    return torch.tensor([float(number) for number in answer["data"]]).view(answer["shape"])


torch.manual_seed(0)
X = torch.randn(6, 9, 11)
CASES = {
    "conv2d": [
        (X, torch.randn(4, 6, 3, 3), torch.randn(4), 1, 1),
        (X, torch.randn(4, 6, 5, 3), None, [2, 3], [2, 0]),
        (X, torch.randn(6, 2, 3, 3), torch.randn(6), [2, 1], [3, 2], [2, 1], 3),
        (X, torch.randn(6, 1, 2, 2), torch.randn(6), 1, 0, [3, 2], 6),
        (X, torch.randn(3, 6, 4, 2), None, 1, "same", [1, 2]),
        (X, torch.randn(3, 6, 1, 1), None, 3, "valid"),
        (X, torch.randn(2, 6, 9, 11), torch.randn(2)),
    ],
    "max_pool2d": [
        (X, 2), (X, [3, 2], [2, 3], [1, 1]), (X, 3, 2, 0, 1, True), (X, [2, 3], 1, 0, 2), (X, 4, 3, 2, 1, True),
    ],
    "avg_pool2d": [
        (X, 3, 1, 1), (X, 2), (X, [3, 2], [2, 2], [1, 0], False, False), (X, 3, 2, 1, True, True),
        (X, 3, 2, 1, True, False), (X, 2, 2, 0, False, True, 7),
    ],
    "adaptive_avg_pool2d": [(X, [1, 1]), (X, [4, 3]), (X, 5)],
    "adaptive_max_pool2d": [(X, [2, 3])],
    "relu": [(X,)], "relu6": [(3 * X,)], "sigmoid": [(X,)], "tanh": [(X,)], "silu": [(X,)], "hardswish": [(3 * X,)],
    "hardsigmoid": [(3 * X,)], "leaky_relu": [(X, 0.2), (X,)], "elu": [(X,)], "hardtanh": [(X,), (X, -0.5, 2.0)],
    "clamp": [(X, -0.5, 0.5), (X, None, 0.5)], "neg": [(X,)],
    "mul": [(X, 2.5), (X, torch.randn(6, 1, 1)), (torch.randn(6, 9, 1), X)],
    "add": [(X, X), (X, 1.5), (torch.randn(6, 1, 1), X)],
    "sub": [(X, 2 * X), (X, torch.randn(6, 1, 1))], "div": [(X, 2.0), (X, X.abs() + 1)],
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same'")
@pytest.mark.parametrize("op", CASES)
def test_an_operation_is_torch_s(op):
    answers = ask(*({"task": "kernel", "op": op, "args": [as_json(value) for value in case]} for case in CASES[op]))
    for case, answer in zip(CASES[op], answers, strict=True):
        ours = tensor(answer)
        batched = [
            value[None] if index == 0 and isinstance(value, torch.Tensor) and value.dim() == 3 else value
            for index, value in enumerate(case)
        ]
        function = getattr(F, op, None) or getattr(torch, op)
        if op in ("mul", "add", "sub", "div"):
            expected = function(*case)
        elif op == "conv2d" and len(case) > 3 and case[3:5] == (1, "same"):
            expected = F.conv2d(*batched)[0]
        elif op == "avg_pool2d" and len(case) == 7:
            expected = F.avg_pool2d(*batched)[0]
        else:
            expected = function(*batched)[0]
        assert ours.shape == expected.shape
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_gelu_softmax_and_shapes():
    wide = torch.linspace(-8, 8, 4001).view(1, 1, -1)
    parts = [torch.randn(2, 3, 4), torch.randn(5, 3, 4)]
    questions = {
        "gelu": ((wide,), F.gelu(wide)),
        "softmax": ((X, 1), X.softmax(0)),
        "log_softmax": ((X[:, 0, 0].contiguous(), -1), X[:, 0, 0].log_softmax(-1)),
        "cat": ((parts, 1), torch.cat(parts)),
        "mean": ((X, [2, 3]), X.mean((1, 2))),
        "pad": ((X, [1, 2, 0, 3, 0, 4]), F.pad(X, [1, 2, 0, 3, 0, 4])),
        "slice": ((X, 2, 1, 2**63 - 1, 2), X[:, 1::2]),
        "permute": ((X, [0, 2, 3, 1]), X.permute(1, 2, 0)),
        "linear": ((X[:, 0, 0].contiguous(), torch.eye(6)[:4], None), X[:4, 0, 0]),
    }
    answers = ask(*({"task": "kernel", "op": op, "args": as_json(args)} for op, (args, _) in questions.items()))
    for (op, (_, expected)), answer in zip(questions.items(), answers, strict=True):
        torch.testing.assert_close(tensor(answer), expected.contiguous(), rtol=1e-5, atol=2e-6, msg=op)


@pytest.mark.parametrize(
    ("name", "shape"),
    [("inception", (1, 28, 28)), ("residual[norm=batch]", (1, 28, 28)), ("resnet20", (3, 16, 16)),
     ("preact20[shortcut=conv]", (3, 16, 16)), ("densenet100", (3, 8, 8)), ("googlenet[stem=small]", (3, 16, 16))],
)  # fmt: skip
def test_every_value_of_a_net_is_torch_s(name, shape):
    torch.manual_seed(1)
    net = bw.build_net(name, in_channels=shape[0], image_size=shape[1]).eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.2)
            module.running_var.uniform_(0.5, 2)
    graph, image = read(net, shape), torch.randn(shape)
    nodes, weights = operations_as_json(graph, name)
    (values,) = ask(
        {"task": "net", "nodes": nodes, "weights": encode(weights, np.float32), "half": False, "image": as_json(image)}
    )
    with torch.no_grad():
        expected = graph.run(image[None], wanted=image_operations(graph))
        assert torch.equal(expected[-1], net(image[None]))
    for node, ours, theirs in zip(nodes, values, expected, strict=True):
        scale = float(theirs.abs().max()) + 1e-6
        torch.testing.assert_close(tensor(ours) / scale, theirs[0] / scale, rtol=0, atol=3e-5, msg=node["name"])


def test_operations_that_the_page_lacks_are_named():
    class Odd(nn.Module):
        def forward(self, x):
            return torch.fft.fft(x.flatten(1)).real[:, :10]

    with pytest.raises(ExportError, match=r"cannot compute .*fft"):
        operations_as_json(read(Odd(), (1, 8, 8)), "odd")


@pytest.mark.parametrize(
    ("name", "shape", "asked", "widest"),
    [("inception", (1, 28, 28), "stack flat one field branch", "incep1.b5.conv2"),
     ("residual", (1, 28, 28), "add flat field branch shortcut", None),
     ("googlenet", (3, 64, 64), "stack flat one field branch", "incep3a.b5.conv2.conv"),
     ("resnet20", (3, 32, 32), "add flat field branch shortcut", None)],
)  # fmt: skip
def test_the_tour_asks_what_suits_the_net(name, shape, asked, widest):
    branched = read_branches(bw.build_net(name, in_channels=shape[0], image_size=shape[1]).eval(), shape)
    operations, weights = operations_as_json(branched.graph, name)
    names = [operation["name"] for operation in operations]
    joins = [
        {"node": names.index(join), "branches": [{"name": branch} for branch in branches]}
        for join, branches in branched.entries.items()
    ]
    steps = list(steps_of(operations, weights, joins, None))
    assert [step["question"].removeprefix("tour-") for step in steps] == asked.split()
    assert widest is None or names[steps[0]["node"]] == widest


def test_the_tour_of_a_net_that_stacks_its_input_first_has_no_padding_to_show():
    class Doubled(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2 * 64, 10)

        def forward(self, x):
            return self.fc(torch.cat([x, -x], 1).flatten(1))

    operations, weights = operations_as_json(read(Doubled(), (1, 8, 8)), "doubled")
    (join,) = (i for i, operation in enumerate(operations) if operation["op"] == "cat")
    joins = [{"node": join, "branches": [{"name": "0"}, {"name": "1"}]}]
    steps = list(steps_of(operations, weights, joins, None))
    assert [step["question"] for step in steps] == ["tour-flat", "tour-branch"]


def drawings():
    """Pictures as people make them: thin and thick strokes, both polarities, noise, uneven light, and small ones."""
    generator = np.random.default_rng(0)
    for index in range(24):
        side = int(generator.choice([28, 60, 100, 196]))
        picture = Image.new("L", (side, side + int(generator.integers(0, 40))), 0)
        pen = ImageDraw.Draw(picture)
        for _ in range(int(generator.integers(1, 4))):
            points = [tuple(map(float, generator.uniform(0.1 * side, 0.9 * side, 2))) for _ in range(3)]
            pen.line(points, fill=int(generator.integers(90, 256)), width=int(generator.integers(1, max(2, side // 8))))
        grey = np.asarray(picture).astype(float)
        if index % 3 == 1:
            grey = 255 - grey
        if index % 4 == 3:
            grey = np.clip(grey + generator.normal(0, 4, grey.shape), 0, 255)
        yield grey.round().astype(np.uint8)
    yield np.zeros((50, 50), np.uint8)
    light = np.linspace(150, 230, 80)[None].repeat(80, 0)
    light[30:51, 36:43] -= 120
    light[44:51, 36:55] -= 60
    yield light.astype(np.uint8)


@pytest.mark.parametrize("rule", RULES)
def test_pictures_are_placed_to_the_last_bit(rule, sample):
    pictures = [*drawings(), *(image[0].numpy() for image in sample.test.images[:8])]
    questions = [
        {"task": "place", "height": grey.shape[0], "width": grey.shape[1], "data": grey.flatten().tolist(), "size": 28,
         "rule": {"side": RULES[rule].longer_side, "mass": RULES[rule].by_mass}}
        for grey in pictures
    ]  # fmt: skip
    placed = 0
    for grey, answer in zip(pictures, ask(*questions), strict=True):
        try:
            expected = to_image(Image.fromarray(grey), channels=1, size=(28, 28), method=rule)[0]
        except ImageError:
            assert answer is None
            continue
        assert np.array_equal(np.array(answer, np.uint8).reshape(28, 28), expected.numpy())
        placed += 1
    assert placed > 20
