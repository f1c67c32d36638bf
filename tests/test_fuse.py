import copy

import pytest
import torch
from helpers.affine_nets import affine_nets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from branchwork.blocks import Concat
from branchwork.catalogue.resolve import build_net
from branchwork.errors import NetError
from branchwork.fusing import collapse as collapsing
from branchwork.fusing.forms import Form, Matrix
from branchwork.fusing.fourier import BatchedFourier, Fourier, fewest_products, make_scheme
from branchwork.fusing.fuse import collapse, fuse
from branchwork.fusing.kernel import Axis, Kernel, compose, compose_sum, sliding
from branchwork.fusing.tiles import Tiles

# torch's own word about padding that cannot be halved, which is meant here.
pytestmark = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")

# The planner may leave a segment as it is written; these make it take each form, and cut segments where it would not.
FORMS = st.sampled_from([(Fourier, Matrix), (BatchedFourier, Matrix), (Matrix,), (Tiles,), (Tiles, Matrix)])


def force(monkeypatch: pytest.MonkeyPatch, forms: tuple[type, ...], chance: int, seed: int) -> None:
    """Every tensor of a segment is computed with a chance of 1 in `chance`, whatever it costs; 0 is never."""
    generator = torch.Generator().manual_seed(seed)

    def kept(self: collapsing.Planner, _: frozenset) -> frozenset:  # type: ignore[type-arg]
        inner = {n for n in self.segment[:-1] if chance and torch.randint(chance, (1,), generator=generator) == 0}
        found = frozenset({*inner, self.segment[-1]})
        return found if self.cost(found) < float("inf") else frozenset(self.segment)

    monkeypatch.setattr(collapsing, "FORMS", forms)
    monkeypatch.setattr(collapsing, "GAIN", -float("inf"))
    monkeypatch.setattr(collapsing.Planner, "descend", kept)


def hostile(net: nn.Module, seed: int) -> nn.Module:
    """Random statistics, weights and biases for batch norm, scales of either sign among them."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (module.weight, module.bias, module.running_mean):
                    tensor.copy_(torch.randn(tensor.shape, generator=generator))
                module.running_var.copy_(torch.rand(module.running_var.shape, generator=generator) * 3 + 1e-3)
    return net


def images(shape: tuple[int, ...], count: int, seed: int) -> Tensor:
    return torch.randn(count, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def difference(a: Tensor, b: Tensor) -> float:
    """The largest difference, relative to the largest number."""
    a, b = a.detach(), b.detach()
    return float((a - b).abs().max() / b.abs().max().clamp_min(1e-12))


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    case=affine_nets(),
    forms=FORMS,
    chance=st.sampled_from([0, 0, 2, 4]),
    seed=st.integers(0, 9),
    engine=st.sampled_from([None, "onnxruntime", "openvino"]),
    batch=st.sampled_from([1, 8]),
)
def test_any_affine_net_is_fused_exactly(case, forms, chance, seed, engine, batch):
    net, shape = case
    hostile(net, seed)
    before = copy.deepcopy(net.state_dict())
    x = images(shape, 3, seed)
    with pytest.MonkeyPatch.context() as patch:
        force(patch, forms, chance, seed)
        fused = fuse(net, shape, batch=batch, engine=engine)
    with torch.no_grad():
        assert fused(x).shape == net(x).shape
        assert difference(fused(x), net(x)) < 1e-10
    assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(case=affine_nets(), forms=FORMS, chance=st.sampled_from([0, 0, 2, 4]), seed=st.integers(0, 9))
def test_any_affine_net_has_the_same_gradients_collapsed(case, forms, chance, seed):
    net, shape = case
    hostile(net, seed)
    x = images(shape, 3, seed).requires_grad_()
    with pytest.MonkeyPatch.context() as patch:
        force(patch, forms, chance, seed)
        collapsed = collapse(net, shape, batch=64) or net
    inputs = [x, *net.parameters()]
    direction = images(net(x).shape[1:], 3, seed + 1)
    assert difference(collapsed(x), net(x)) < 1e-10
    ours = torch.autograd.grad(collapsed(x), inputs, direction, allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad(net(x), inputs, direction, allow_unused=True, materialize_grads=True)
    largest = max(float(gradient.abs().max()) for gradient in theirs)
    for a, b in zip(ours, theirs, strict=True):
        assert float((a - b).abs().max()) < 1e-10 * max(float(b.abs().max()), 1e-3 * largest, 1e-12)


@pytest.mark.parametrize("name", ["inception", "residual"])
def test_the_lecture_nets_are_the_same_collapsed(name):
    net = build_net(name).double()
    collapsed = collapse(net, (1, 28, 28), batch=256)
    assert collapsed is not None
    x = images((1, 28, 28), 5, 0)
    labels = torch.tensor([1, 2, 3, 4, 5])
    for run in (collapsed, net):
        assert run(x).shape == (5, 10)
    assert difference(collapsed(x), net(x)) < 1e-12
    ours = torch.autograd.grad(nn.functional.cross_entropy(collapsed(x), labels), list(net.parameters()))
    theirs = torch.autograd.grad(nn.functional.cross_entropy(net(x), labels), list(net.parameters()))
    assert max(difference(a, b) for a, b in zip(ours, theirs, strict=True)) < 1e-10


def test_a_fused_inception_has_the_macs_of_22_products_and_a_matrix():
    fused = fuse(build_net("inception").eval(), (1, 28, 28))
    with FlopCounterMode(display=False) as counter:
        fused(torch.zeros(1, 1, 28, 28))
    # conv1, 22 products of 12 columns in and 8 out with a transform before and behind them, and a 320→10 matrix.
    assert counter.get_total_flops() // 2 == 144_000 + 22 * (120 * 160 + 12 * 120 + 8 * 160) + 3_200
    assert {name for name, _ in fused.named_parameters()} == {"conv1.weight", "conv1.bias"}


def operations(fused):
    return [str(node.target).split(".")[1] for node in fused.graph.nodes if str(node.target).startswith("aten.")]


class Normalised(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net, self.mean, self.scale = net, nn.Buffer(torch.rand(1, 3, 1, 1)), nn.Buffer(torch.rand(1, 3, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) * self.scale)


def test_a_normalisation_goes_into_the_convolution_where_that_adds_nothing_else():
    x = images((3, 32, 32), 2, 0)
    for padding, left in ((0, []), (1, ["sub"])):  # beyond the image are zeros, and not what the normalisation makes
        net = Normalised(nn.Conv2d(3, 16, 3, padding=padding)).double().eval()
        fused = fuse(net, (3, 32, 32), engine="openvino")
        assert operations(fused) == [*left, "conv2d"]
        assert difference(fused(x), net(x)) < 1e-12


def test_for_an_engine_relu_follows_its_convolution_and_for_torch_the_pooling():
    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.MaxPool2d(2), nn.ReLU()).double().eval()
    x = images((3, 32, 32), 2, 0)
    for engine, order in (("openvino", ["conv2d", "relu", "max_pool2d"]), (None, ["conv2d", "max_pool2d", "relu"])):
        fused = fuse(net, (3, 32, 32), engine=engine)
        assert operations(fused) == order
        assert difference(fused(x), net(x)) < 1e-12


@pytest.mark.parametrize("engine", [None, "onnxruntime", "openvino"])
@pytest.mark.parametrize(("batch", "form"), [(1, Fourier), (8, BatchedFourier)])
def test_a_pooling_behind_products_is_part_of_them(engine, batch, form):
    net = build_net("inception").double().eval()
    fused = fuse(net, (1, 28, 28), batch=batch, engine=engine)
    # Image by image for one at a time, and for several each matrix is read once.
    assert [type(part) for part in fused.modules() if isinstance(part, Fourier)] == [form]
    assert operations(fused).count("max_pool2d") == 1  # behind conv1
    x = images((1, 28, 28), 3, 0)
    assert difference(fused(x), net(x)) < 1e-12


@pytest.mark.parametrize("form", [Fourier, BatchedFourier, Matrix])
@pytest.mark.parametrize(("engine", "batch"), [("onnxruntime", 1), ("onnxruntime", 8), ("openvino", 1), (None, 1)])
@pytest.mark.parametrize("window", [(2, 2), (4, 1), (1, 4)])
@pytest.mark.parametrize("relu", [True, False])
def test_each_form_gives_the_largest_of_each_window(form, engine, batch, window, relu, monkeypatch):
    force(monkeypatch, (form,), 0, 0)
    net = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.AvgPool2d(3, 1, 1), nn.Conv2d(4, 3, 3, padding=1))
    net = net.extend([nn.MaxPool2d(window), *([nn.ReLU()] if relu else [])]).double().eval()
    fused, x = fuse(net, (2, 8, 8), batch=batch, engine=engine), images((2, 8, 8), 3, 0)
    assert [type(part) for part in fused.modules() if isinstance(part, Form)] == [form]
    assert "max_pool2d" not in operations(fused) and difference(fused(x), net(x)) < 1e-12


def test_large_batches_in_bf16_take_one_matrix():
    net = build_net("inception").eval()
    for precision, form in (("bf16", Matrix), ("fp32", BatchedFourier)):
        fused = fuse(net, (1, 28, 28), batch=256, precision=precision, engine="openvino")
        first, last = (part for part in fused.modules() if isinstance(part, Form))
        assert type(first) is form and type(last) is Matrix


@pytest.mark.parametrize("relu", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("channels", "filled"), [(10, 16), (20, 32), (16, 16)])
def test_for_onnxruntime_a_pooled_convolution_has_whole_blocks_of_channels(channels, filled, bias, relu):
    net = nn.Sequential(
        nn.Conv2d(3, channels, 3, bias=bias), *[nn.ReLU()] * relu, nn.MaxPool2d(2), nn.Conv2d(channels, 4, 5)
    )
    fused, x = fuse(net.double().eval(), (3, 32, 32), engine="onnxruntime"), images((3, 32, 32), 2, 0)
    assert difference(fused(x), net(x)) < 1e-12
    assert ("narrow" in operations(fused)) == (filled > channels)
    shapes = [tuple(weight.shape) for weight in fused.state_dict().values()]
    assert (filled, 3, 3, 3) in shapes and ((filled,) in shapes) == bias


def test_blocks_are_filled_for_no_other_reader_and_no_other_engine():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 10, 3)

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x).relu()
            return nn.functional.max_pool2d(y, 2).mean((2, 3)) + y.amax((2, 3))

    x, pooled = images((3, 32, 32), 2, 0), nn.Sequential(nn.Conv2d(3, 10, 3), nn.MaxPool2d(2))
    for net, engine in ((Twice(), "onnxruntime"), (pooled, "openvino"), (pooled, None)):
        fused = fuse(net.double().eval(), (3, 32, 32), engine=engine)
        assert "narrow" not in operations(fused) and difference(fused(x), net(x)) < 1e-12


@pytest.mark.parametrize(("batch", "precision"), [(0, "fp32"), (8, "fp16")])
def test_what_a_net_cannot_be_fused_for_is_refused(batch, precision):
    with pytest.raises(NetError, match="batch must be at least 1 and precision fp32 or bf16"):
        fuse(build_net("inception").eval(), (1, 28, 28), batch=batch, precision=precision)
    with pytest.raises(NetError, match=r"no engine called 'openvion'\. Did you mean 'openvino'"):
        fuse(build_net("inception").eval(), (1, 28, 28), engine="openvion")


def test_a_fused_net_has_no_batch_norm_and_fewer_convolutions():
    net = nn.Sequential(
        Concat(
            a=nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU()),
            b=nn.Sequential(nn.Conv2d(8, 4, 1), nn.BatchNorm2d(4), nn.ReLU()),
        ),
        nn.ReLU(),
        nn.Conv2d(12, 4, 3),
    )
    fused = fuse(hostile(net.double().eval(), 0), (8, 16, 16))
    assert "batch_norm" not in operations(fused) and operations(fused).count("conv2d") == 2
    x = images((8, 16, 16), 2, 0)
    assert difference(fused(x), net(x)) < 1e-12


@pytest.mark.parametrize("dropout", [nn.Dropout(inplace=True), nn.Dropout2d(inplace=True), nn.AlphaDropout(0.5, True)])
def test_a_dropout_in_place_changes_nothing_in_eval_mode(dropout):
    shape = (16, 1, 1) if isinstance(dropout, nn.Dropout2d) else (16,)
    net = nn.Sequential(nn.Unflatten(1, shape), dropout, nn.Flatten(), nn.Linear(16, 4)).eval()
    x = torch.randn(3, 16)
    torch.testing.assert_close(fuse(net, (16,))(x), net(x))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_weights_beside_float_batch_norms_stay_half(dtype):
    """As mixed precision has kept them since apex: the convolutions are halved, the norms are not."""
    layers = [nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=2), nn.BatchNorm2d(8)]
    net = hostile(nn.Sequential(*layers, nn.ReLU(), nn.Conv2d(8, 4, 3)), 0).eval()
    expected = copy.deepcopy(net).double()
    for layer in net:
        layer.to(dtype if isinstance(layer, nn.Conv2d) else torch.float32)
    x = images((3, 12, 12), 2, 0).to(dtype)
    fused = fuse(net, (3, 12, 12))
    assert "batch_norm" not in operations(fused) and {w.dtype for w in fused.state_dict().values()} == {dtype}
    precision = torch.finfo(dtype).eps
    assert fused(x).dtype == dtype and difference(fused(x).double(), expected(x.double())) < 16 * precision


@pytest.mark.parametrize(("precision", "convolutions"), [("fp32", 6), ("bf16", 4)])
def test_siblings_are_merged_where_their_parts_are_taken_out_for_less_than_they_start(precision, convolutions):
    """GoogLeNet's 4a for one image: splits cost half as much in bf16 (timings: docs/experiments/fusing.md)."""
    module = build_net("googlenet").get_submodule("incep4a").eval()
    fused = fuse(module, (480, 14, 14), batch=1, precision=precision, engine="openvino")
    assert operations(fused).count("conv2d") == convolutions
    with torch.no_grad():
        x = torch.rand(2, 480, 14, 14)
        assert difference(fused(x), module(x)) < 1e-5


def test_a_convolution_of_many_channels_keeps_its_own_kernel():
    """GoogLeNet's 5×5 in 5a: as a matrix row by row it has ten times the numbers, which small batches wait for."""
    net = nn.Sequential(nn.Conv2d(32, 128, 5, padding=2, bias=False), nn.BatchNorm2d(128), nn.ReLU()).eval()
    fused = fuse(net, (32, 7, 7))
    assert [node.op for node in fused.graph.nodes if node.op == "call_module"] == []
    assert max(weight.numel() for weight in fused.state_dict().values()) == 128 * 32 * 25


def test_batch_norm_after_a_concatenation_goes_into_both_branches():
    branches = Concat(a=nn.Conv2d(32, 32, 3, padding=1), b=nn.Conv2d(32, 32, 1))
    net = nn.Sequential(branches, nn.BatchNorm2d(64), nn.ReLU())
    fused = fuse(hostile(net.double().eval(), 0), (32, 32, 32))
    assert "batch_norm" not in operations(fused) and operations(fused).count("conv2d") == 2
    x = images((32, 32, 32), 2, 0)
    assert difference(fused(x), net(x)) < 1e-12


def _with_norm(*layers: nn.Module, channels: int) -> nn.Sequential:
    return nn.Sequential(*layers, nn.BatchNorm2d(channels), nn.ReLU())


@pytest.mark.parametrize("engine", [None, "onnxruntime", "openvino"])
@pytest.mark.parametrize(
    "net",
    [
        _with_norm(nn.Conv2d(3, 12, 3, groups=3, bias=False), channels=12),
        nn.Sequential(nn.Conv2d(3, 9, 3, groups=3), nn.BatchNorm2d(9, affine=False), nn.ReLU()),
        _with_norm(
            Concat(b=nn.Conv2d(3, 4, 1), c=Concat(d=nn.Conv2d(3, 5, 1), e=nn.Conv2d(3, 2, 3, padding=1))), channels=11
        ),
        _with_norm(
            Concat(
                b=nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)),
                c=nn.Conv2d(3, 6, 3, padding=1, groups=3),
            ),
            channels=10,
        ),
        nn.Sequential(nn.Flatten(), Concat(b=nn.Linear(300, 7), c=nn.Linear(300, 5)), nn.BatchNorm1d(12), nn.ReLU()),
    ],
)
def test_no_batch_norm_is_left_behind_groups_and_behind_what_is_joined(net, engine):
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 3)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    net = net.double().eval()
    fused = fuse(net, (3, 10, 10), engine=engine)
    assert not any("batch_norm" in str(node.target) for node in fused.graph.nodes)
    x = torch.randn(4, 3, 10, 10, dtype=torch.float64)
    torch.testing.assert_close(fused(x), net(x), rtol=1e-10, atol=1e-10)


def test_constants_keep_their_own_types():
    class Scaled(nn.Sequential):
        def forward(self, x):
            return super().forward(x) * self.factor

    net = Scaled(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    net.register_buffer("factor", torch.tensor(2.0, dtype=torch.float64))
    x = torch.rand(2, 3, 8, 8)
    given = fuse(net, (3, 8, 8))(x)
    assert given.dtype == torch.float32
    torch.testing.assert_close(given, net(x), rtol=1e-4, atol=1e-5)


def test_a_net_in_training_mode_is_refused():
    with pytest.raises(NetError, match=r"net\.eval\(\)"):
        fuse(build_net("residual"), (1, 28, 28))


class DependsOnPixels(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1)[:, :3] * (2 if x.sum() > 0 else 1)


def test_a_net_that_depends_on_pixels_is_refused():
    with pytest.raises(NetError, match="same operations on every batch"):
        fuse(DependsOnPixels().eval(), (1, 8, 8))


class Says(nn.Module):
    """Two layers, and a forward that uses the number of images in the way it is told."""

    def __init__(self, forward):
        super().__init__()
        self.fc1, self.fc2, self.said = nn.Linear(36, 10), nn.Linear(36, 10), forward
        self.scale = torch.tensor(3.0)  # no buffer

    def forward(self, x: Tensor) -> Tensor:
        return self.said(self, x.flatten(1))


@pytest.mark.parametrize(
    "forward",
    [
        lambda net, x: net.fc1(x) * x.size(0),
        lambda net, x: net.fc1(x.view(2 * len(x), 18).view(len(x), -1)),
        lambda net, x: net.fc1(x) + torch.ones(x.shape[0], 1) / x.shape[0],
        lambda net, x: net.fc1(x) * net.scale + torch.tensor([0.5]),
        lambda net, x: {"logits": net.fc1(x)},
    ],
)
def test_a_graph_is_for_any_number_of_images(forward):
    net = Says(forward).eval()
    fused = fuse(net, (1, 6, 6))
    for count in (1, 2, 5, 1009, 1500):
        x = torch.randn(count, 1, 6, 6)
        expected = net(x)
        torch.testing.assert_close(fused(x), expected["logits"] if isinstance(expected, dict) else expected)
    assert all(
        type(tensor) is Tensor or type(tensor) is nn.Parameter for tensor in net.state_dict(keep_vars=True).values()
    )


@pytest.mark.parametrize(
    ("forward", "words"),
    [
        (lambda net, x: net.fc1(x) if len(x) < 100 else net.fc2(x), "same operations on every batch"),
        (lambda net, x: net.fc1(x) if len(x) < 100 else net.fc1(x).relu(), "same operations on every batch"),
        (lambda net, x: net.fc1(x) * (1 / len(x)), "same operations on every batch"),
        (lambda net, x: net.fc1(x) + torch.tensor([float(len(x))]), "same operations on every batch"),
        (lambda net, x: net.fc1(x)[: len(x) // 2], "same operations on every batch"),
        (lambda net, x: (net.fc1(x), net.fc2(x)), "Says returns 2 tensors, but one is needed"),
    ],
)
def test_a_net_without_one_graph_is_refused(forward, words):
    with pytest.raises(NetError, match=words):
        fuse(Says(forward).eval(), (1, 6, 6))


def test_one_module_in_two_places_keeps_its_weights():
    conv = nn.Conv2d(4, 4, 3, padding=1)
    net = nn.Sequential(conv, nn.ReLU(), conv, nn.ReLU(), nn.MaxPool2d(2))
    collapsed = collapse(net, (4, 8, 8), batch=64)
    x = images((4, 8, 8), 2, 0).float()
    assert collapsed is not None and type(conv.weight) is nn.Parameter
    torch.testing.assert_close(collapsed(x), net(x))


class InPlace(nn.Module):
    """A learner's ordinary script: in place, with a view that takes the number of images from the input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 4, 3, padding=1)
        self.relu, self.fc = nn.ReLU(inplace=True), nn.Linear(4 * 4 * 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        count = x.size(0)
        y = self.conv1(x)
        self.relu(y)
        y = self.conv2(y)
        y *= 2
        return self.fc(y.view(count, -1))


def test_operations_in_place_are_read_as_what_they_do():
    net = InPlace().double()
    x = images((1, 6, 6), 3, 0)
    collapsed = collapse(net, (1, 6, 6), batch=4096)
    assert collapsed is not None
    assert difference(collapsed(x), net(x)) < 1e-12
    assert difference(collapsed(x.to(memory_format=torch.channels_last)), net(x)) < 1e-12


def test_tied_weights_are_found_under_each_of_their_names():
    net = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)
    )
    net[2].weight = net[0].weight
    net = net.double()
    collapsed = collapse(net, (4, 8, 8), batch=64)
    x = images((4, 8, 8), 2, 0)
    assert collapsed is not None and difference(collapsed(x), net(x)) < 1e-12
    ours, theirs = (torch.autograd.grad(run(x).sum(), net[0].weight)[0] for run in (collapsed, net))
    assert difference(ours, theirs) < 1e-10


class ChangesAView(nn.Module):
    """What is changed in place is another tensor's memory, by a view that a list of some names would forget."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        y.transpose(2, 3).relu_()
        return y.flatten(1)


def test_a_change_in_place_of_a_view_is_refused_and_not_lost():
    with pytest.raises(NetError, match="changes a tensor in place that others see"):
        fuse(ChangesAView().eval(), (1, 6, 6))


def test_the_planner_merges_a_part_of_a_segment_where_the_whole_costs_more():
    # Through the narrow middle it is cheap; collapsed whole it would be a 64→64 map of 9×9.
    wide = nn.Sequential(nn.Conv2d(64, 2, 1), nn.Conv2d(2, 2, 5, padding=2), nn.Conv2d(2, 64, 5, padding=2))
    fused = fuse(wide.double().eval(), (64, 32, 32), batch=256)
    with FlopCounterMode(display=False) as counter:
        fused(torch.zeros(1, 64, 32, 32, dtype=torch.float64))
    written = 32 * 32 * (64 * 2 + 25 * 4 + 25 * 2 * 64)
    assert counter.get_total_flops() // 2 <= written
    x = images((64, 32, 32), 2, 0)
    assert difference(fused(x), wide(x)) < 1e-12


def test_a_fourier_transform_takes_the_products_that_are_known_by_hand():
    # 14 points leave what is read beyond 12 rows zero: 2 real frequencies and 6 complex ones of 3 products each.
    assert fewest_products(sliding(9, 8, 12, offset=-2), 12) == (14, 2 + 6 * 3)
    # No padding: the 12 rows are enough, since no output reads past the last.
    assert fewest_products(sliding(5, 8, 12), 12) == (12, 2 + 5 * 3)
    # Both border rows are read otherwise by one output each: a product more for each of them.
    cut = list(sliding(9, 8, 12, offset=-2).windows)
    cut[0], cut[7] = (None, None, 9, *cut[0][3:]), (*cut[7][:6], 10, None, None)
    assert fewest_products(Axis(tuple(cut), -2), 12) == (14, 2 + 6 * 3 + 2)
    assert fewest_products(sliding(3, 5, 11, stride=2), 11) is fewest_products(sliding(1, 8, 8), 8) is None


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_scheme_is_the_sum_over_the_window(data):
    size, taps = data.draw(st.integers(1, 13)), data.draw(st.integers(1, 7))
    outputs, offset = data.draw(st.integers(1, 13)), data.draw(st.integers(-7, 3))
    number = st.one_of(st.none(), st.integers(0, 8))
    window = st.lists(number, min_size=taps, max_size=taps)
    drawn = data.draw(st.lists(window, min_size=outputs, max_size=outputs))
    windows = [
        tuple(slice if 0 <= output + offset + tap < size else None for tap, slice in enumerate(row))
        for output, row in enumerate(drawn)
    ]
    axis = Axis(tuple(windows), offset)
    scheme = make_scheme(axis, size, data.draw(st.integers(taps, size + 2 * taps)))
    x, k = images((size,), 1, 0)[0], images((9,), 1, 1)[0, : scheme.slices.shape[1]]
    expected = torch.tensor([sum(x[at] * k[slice] for at, slice in axis.reads(i)) for i in range(outputs)])
    assert (scheme.outputs @ ((scheme.inputs @ x) * (scheme.slices @ k)) - expected).abs().max() < 1e-12


def test_a_collapsed_net_follows_its_net_and_takes_no_image_at_all():
    net = build_net("inception")
    collapsed = collapse(net, (1, 28, 28), batch=256)
    assert any(isinstance(part, Fourier) for part in collapsed.modules())
    torch.export.export(collapsed, (torch.zeros(2, 1, 28, 28),), strict=False)
    for kind in (torch.float32, torch.float64):
        net.to(kind)
        x = images((1, 28, 28), 3, 0).to(kind)
        assert type(collapsed(x)) is Tensor and difference(collapsed(x), net(x)) < 1e-5
        assert collapsed(x[:0]).shape == (0, 10)


@pytest.mark.parametrize("form", [Fourier, BatchedFourier, Matrix, Tiles])
def test_what_reads_nothing_but_padding_gives_its_bias(form, monkeypatch):
    # Eight columns of zeros before the image, of which the first seven alone are kept.
    padding = nn.ZeroPad2d((8, 0, 0, 0)), nn.ZeroPad2d((0, -7, 0, 0))
    net = nn.Sequential(*padding, nn.Conv2d(2, 3, 3, padding=(1, 0))).double().eval()
    force(monkeypatch, (form,), 0, 0)
    x = images((2, 6, 6), 2, 0)
    assert difference(fuse(net, (2, 6, 6))(x), net(x)) < 1e-12
    assert torch.equal(net(x), net[2].bias.view(3, 1, 1).expand_as(net(x)))


def test_fused_in_inference_mode_a_net_can_still_be_trained():
    net = build_net("inception", image_size=(30, 26)).double()
    with torch.inference_mode():
        fuse(net.eval(), (1, 30, 26), batch=256)  # no other test's size, since schemes are kept
    collapse(net.train(), (1, 30, 26), batch=256)(images((1, 30, 26), 2, 0)).sum().backward()
    assert net.conv2.weight.grad is not None


def test_a_validation_without_gradients_leaves_nothing_that_a_training_cannot_use():
    axis = sliding(3, 23, 23, offset=-1)  # no net's, since what is joined once is kept for all nets of a process
    weight = torch.ones(3, 3, 2, 2, requires_grad=True)
    average = (axis, axis), ((1 / 3,) * 23, (1 / 3,) * 23)
    with torch.inference_mode():
        compose_sum(Kernel(weight, axis, axis), *average)
    compose_sum(Kernel(weight, axis, axis), *average).weight.sum().backward()
    assert weight.grad is not None


@pytest.mark.parametrize(("outer", "inner", "padding"), [(3, 3, 1), (5, 1, 2), (1, 5, 0), (2, 4, 1)])
def test_costs_are_those_of_the_kernels_that_are_made(outer, inner, padding):
    """The planner composes kernels without numbers, by their sizes alone."""
    between = 9 + 2 * padding - inner + 1
    axes = [sliding(k, size + 2 * padding - k + 1, size, offset=-padding) for k, size in ((outer, between), (inner, 9))]
    weights = torch.rand(outer, outer, 4, 5), torch.rand(inner, inner, 3, 4)
    made, planned = (
        compose(*(Kernel(weight.to(device), axis, axis) for weight, axis in zip(weights, axes, strict=True)))
        for device in ("cpu", "meta")
    )
    assert planned.weight.is_meta and planned.weight.shape == made.weight.shape
    assert (planned.rows, planned.columns, planned.macs) == (made.rows, made.columns, made.macs)
