import dataclasses
import json
import re
import sys

import pytest
import torch
from conftest import ROOT
from helpers.reference import torch_macs
from torch import nn

import branchwork
from branchwork import NETS, build_net, nets
from branchwork.blocks import Add, Concat
from branchwork.catalogue import densenet, resnet
from branchwork.catalogue.googlenet import MODULES
from branchwork.catalogue.layers import Gate
from branchwork.catalogue.resolve import defaults_of, short_name, split_options, with_options
from branchwork.errors import NetError
from branchwork.fusing.fuse import fuse
from branchwork.graph.costs import count_macs, count_parameters

sys.path.insert(0, str(ROOT / "scripts"))
from measure_nets import measure

SHORTCUTS = ("identity", "scale", "conv", "gated", "gate-only", "dropout", "none")
# torchvision 0.28's documentation of its models: parameters, and MACs in thousands of millions, which it calls GFLOPS.
TORCHVISION = {
    "resnet18": (11_689_512, 1.814), "resnet34": (21_797_672, 3.664), "resnet50": (25_557_032, 4.089),
    "resnet101": (44_549_160, 7.801), "resnet152": (60_192_808, 11.514), "densenet121": (7_978_856, 2.834),
    "densenet161": (28_681_000, 7.728), "densenet169": (14_149_480, 3.360), "densenet201": (20_013_928, 4.291),
}  # fmt: skip
# Millions of parameters: He et al. 2015, Table 6; He et al. 2016, Table 4; Huang et al. 2017, Table 2.
MILLIONS = {
    "resnet20": 0.27, "resnet32": 0.46, "resnet44": 0.66, "resnet56": 0.85, "resnet110": 1.7, "resnet164": 1.7,
    "preact164": 1.7, "densenet100": 0.8, "densenet190": 25.6, "densenet250": 15.3,
}  # fmt: skip
SIZES = {size.name: size for size in nets()}


def tiny(*, preact=False, shortcut="identity", stem="small", width=16, bottleneck=False):
    """Two stages by the loop that builds all residual nets: the others are longer rows of the same table."""
    design = resnet.ResidualDesign((2, 2), width, bottleneck)
    variant = resnet.Variant(stem, shortcut, preact)
    sizes = {"in_channels": 1, "num_classes": 5, "image_size": 40}
    return resnet.resnet("tiny", design, variant, **sizes)


def tiny_dense(stem):
    return densenet.densenet(
        "tiny", densenet.DenseDesign((2, 2), 4, 8), in_channels=1, num_classes=5, image_size=40, stem=stem
    )


KINDS = {
    "googlenet": lambda: NETS["googlenet"](in_channels=1, num_classes=5, image_size=40),
    "for ImageNet": lambda: tiny(stem="large", width=8),
    "for ImageNet, bottleneck": lambda: tiny(stem="large", width=8, bottleneck=True),
    "for ImageNet, preact": lambda: tiny(stem="large", width=8, preact=True),
    "for CIFAR, bottleneck": lambda: tiny(bottleneck=True),
    "for CIFAR, preact, bottleneck": lambda: tiny(preact=True, bottleneck=True),
    "for CIFAR, preact, gated": lambda: tiny(preact=True, shortcut="gated"),
    **{f"for CIFAR, {kind}": lambda kind=kind: tiny(shortcut=kind) for kind in SHORTCUTS},
    "dense": lambda: tiny_dense("large"),
    "dense, small": lambda: tiny_dense("small"),
}
kinds = pytest.mark.parametrize("name", KINDS)


def small(name: str) -> nn.Module:
    torch.manual_seed(0)
    return KINDS[name]()


def test_every_net_has_its_published_size():
    assert list(SIZES) == list(NETS)
    for name, (parameters, billions) in TORCHVISION.items():
        assert SIZES[name].parameters == parameters and f"{SIZES[name].macs / 1e9:.3f}" == f"{billions:.3f}"
    for name, millions in MILLIONS.items():
        digits = len(str(millions).partition(".")[2])
        assert round(SIZES[name].parameters / 1e6, digits) == millions
    # Zeros in further channels cost nothing, so that a plain net is its twin without the sums.
    for depth in (20, 32, 44, 56, 110):
        assert SIZES[f"plain{depth}"].parameters == SIZES[f"resnet{depth}"].parameters


def test_googlenet_has_the_rows_of_the_paper():
    # The reference model of its authors (BVLC's in Caffe) has 6,998,552 parameters: biases, and no batch norm.
    net = NETS["googlenet"]()
    norms = sum(2 * m.num_features for m in net.modules() if isinstance(m, nn.BatchNorm2d))
    biases = sum(m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d))
    assert count_parameters(net) - norms + biases == 6_998_552
    # torchvision has 3×3 kernels for the paper's 5×5, and 6,624,904 parameters without auxiliary heads.
    assert count_parameters(NETS["googlenet"](b5="3x3")) == 6_624_904
    # Table 1: rows as height × channels, and MACs in millions, of which the paper rounds some by up to a tenth.
    rows = {"3a": 256, "3b": 480, "4a": 512, "4b": 512, "4c": 512, "4d": 528, "4e": 832, "5a": 832, "5b": 1024}
    published = {"3a": 128, "3b": 304, "4a": 73, "4b": 88, "4c": 100, "4d": 119, "4e": 170, "5a": 54, "5b": 71}
    macs = {row.name: row.macs for row in branchwork.inspect("googlenet", by="block").rows}
    width = 192
    for name, (b1, b3, b5, pool) in MODULES.items():
        assert b1 + b3[1] + b5[1] + pool == rows[name]
        pixels = {"3": 28, "4": 14, "5": 7}[name[0]] ** 2
        by_hand = width * (b1 + b3[0] + b5[0] + pool) + 9 * b3[0] * b3[1] + 25 * b5[0] * b5[1]
        assert macs[f"incep{name}"] == pixels * by_hand
        assert abs(macs[f"incep{name}"] / 1e6 / published[name] - 1) < 0.1
        width = rows[name]


@pytest.mark.parametrize("name", ["resnet18", "preact20"])
def test_the_sizes_that_are_shown_are_those_of_the_trace_and_of_torch(name):
    assert measure(name) == SIZES[name]
    net, shape = build_net(name), SIZES[name].input_shape
    assert (count_parameters(net), count_macs(net, shape)) == (SIZES[name].parameters, SIZES[name].macs)


@kinds
def test_every_parameter_gets_a_gradient_and_logits_come_in_both_modes(name):
    net = small(name)
    images = torch.randn(3, 1, 40, 40)
    logits = net.train()(images)
    nn.functional.cross_entropy(logits, torch.tensor([0, 1, 4])).backward()
    for path, parameter in net.named_parameters():
        assert parameter.grad is not None and bool(parameter.grad.isfinite().all()), path
        # The bias before a batch norm's mean would get none; the gates of the catalogue come after it.
        assert bool(parameter.grad.count_nonzero()), path
    with torch.no_grad():
        assert type(net.eval()(images)) is type(logits) is torch.Tensor
        assert net(images).shape == logits.shape == (3, 5)


@kinds
def test_trace_and_fuse_agree_with_the_net(name):
    net = small(name).double()
    generator = torch.Generator().manual_seed(1)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.copy_(torch.randn(module.num_features, generator=generator) / 4)
            module.running_var.copy_(torch.rand(module.num_features, generator=generator) + 0.5)
    net.eval()
    images = torch.randn(2, 1, 40, 40, dtype=torch.float64, generator=generator)
    traced = branchwork.trace(net, (1, 40, 40))
    assert traced.macs == torch_macs(net, (1, 40, 40)) == count_macs(net, (1, 40, 40))
    assert traced.parameters == count_parameters(net)
    assert not traced.depends_on_pixels
    fused = fuse(net, (1, 40, 40))
    with torch.no_grad():
        expected = net(images)
        assert float((fused(images) - expected).abs().max() / expected.abs().max()) < 1e-9
    assert "batch_norm" not in fused.code or "preact" in name or "dense" in name


@pytest.mark.parametrize(("name", "smallest"), [("googlenet", 16), ("resnet18", 1), ("resnet20", 1)])
def test_any_size_from_the_smallest_any_channels_and_classes(name, smallest):
    for size in (smallest, (61, 45)):
        net = build_net(name, in_channels=4, num_classes=7, image_size=size).eval()
        height, width = (size, size) if isinstance(size, int) else size
        assert net(torch.zeros(1, 4, height, width)).shape == (1, 7)
    if smallest > 1:
        with pytest.raises(NetError, match=f"at least {smallest}×{smallest} pixels, got"):
            build_net(name, image_size=smallest - 1)


@pytest.mark.parametrize("name", ["googlenet", "resnet18"])
def test_images_of_up_to_96_pixels_get_the_small_stem(name):
    for side, stem, stride in ((96, "auto", 1), (97, "auto", 2), (97, "small", 1), (32, "large", 2)):
        with torch.device("meta"):
            net = NETS[name](image_size=side, stem=stem)
        first = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
        assert first.stride == (stride, stride)


def test_shortcuts_are_those_of_the_paper():
    # He et al. 2016, Figure 2: what each variant computes of a residual F and its input x.
    torch.manual_seed(0)
    x = torch.randn(2, 16, 8, 8)
    for kind in SHORTCUTS:
        net = build_net(f"resnet20[shortcut={kind}]", in_channels=1, num_classes=3, image_size=32).eval()
        block = net.stage1.block1
        join = block.join
        residual = join.residual if isinstance(join, Add) else join
        gates = [m for m in join.modules() if isinstance(m, Gate)]
        for gate in gates:
            assert bool((gate.gate.bias == -6).all())
        opening = torch.sigmoid(gates[0].gate(x)) if gates else None
        plain = residual.body if isinstance(residual, Gate) else residual
        plain = plain.layers if kind == "scale" else plain
        f = plain(x)
        expected = {
            "identity": lambda f=f: x + f,
            "scale": lambda f=f: 0.5 * x + 0.5 * f,
            "conv": lambda f=f, join=join: join.shortcut(x) + f,
            "gated": lambda f=f, g=opening: (1 - g) * x + g * f,
            "gate-only": lambda f=f, g=opening: (1 - g) * x + f,
            "dropout": lambda f=f: x + f,
            "none": lambda f=f: f,
        }[kind]()
        torch.testing.assert_close(block(x), expected.relu(), rtol=1e-5, atol=1e-6)
        assert any(isinstance(m, nn.Dropout) for m in net.modules()) == (kind == "dropout")
        # Where the shape changes, zeros fill the further channels; with conv there is a projection, with none nothing.
        assert isinstance(net.stage2.block1.join, Add) == (kind != "none")
    gated = build_net("resnet20[shortcut=gated]")
    assert count_parameters(gated) - 269_722 == 3 * (16 * 17) + 2 * (32 * 33) + 2 * (64 * 65)


@pytest.mark.parametrize("name", ["resnet14", "preact14", "plain8", "resnet8"])
def test_without_norms_each_convolution_has_a_bias(name):
    net = build_net(f"{name}[norm=none]", in_channels=1, num_classes=5, image_size=16)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert not any(isinstance(m, nn.BatchNorm2d) for m in net.modules())
    assert len(convs) == int(re.sub(r"\D", "", name)) - 1 + 2 * name.startswith("preact")  # and its projections
    assert all(m.bias is not None and not bool(m.bias.count_nonzero()) for m in convs)
    normed = build_net(name, in_channels=1, num_classes=5, image_size=16)
    norms = sum(m.num_features for m in normed.modules() if isinstance(m, nn.BatchNorm2d))
    assert count_parameters(net) == count_parameters(normed) - 2 * norms + sum(m.out_channels for m in convs)
    images = torch.randn(6, 1, 16, 16)
    nn.functional.cross_entropy(net(images), torch.tensor([0, 1, 2, 3, 4, 0])).backward()
    assert all(bool(p.grad.isfinite().all()) and bool(p.grad.count_nonzero()) for p in net.parameters())
    assert branchwork.trace(net.eval(), (1, 16, 16)).parameters == count_parameters(net)


def test_gates_keep_their_bias_without_norms():
    net = build_net("resnet8[shortcut=gated,norm=none,init=torch]", in_channels=1)
    assert all(bool((m.gate.bias == -6).all()) for m in net.modules() if isinstance(m, Gate))


def test_a_narrower_or_wider_net_is_the_same_table_with_other_widths():
    net = build_net("resnet20[width=4]")
    assert [s[0].join.residual.conv1.out_channels for s in (net.stage1, net.stage2, net.stage3)] == [4, 8, 16]
    assert net.fc.in_features == 16
    assert count_parameters(build_net("resnet20[width=16]")) == SIZES["resnet20"].parameters
    # Three stages of one block and of 1, 2 and 4 times the width: kernels, batch norms and the linear layer.
    kernels = 9 * (3 * 1 / 64 + 1 + 1 + 2 + 4 + 8 + 16) * 64 * 64
    assert count_parameters(build_net("resnet8[width=64]")) == kernels + 2 * 64 * (1 + 2 * 7) + 10 * (256 + 1)
    torch.manual_seed(0)
    first = build_net("preact20[width=8]").state_dict()
    assert first["conv1.weight"].shape == (8, 3, 3, 3)


def test_initial_weights_are_he_s_or_torch_s():
    # He et al. 2015b, section 2.2: a variance of 2 / (outputs of a kernel); torch's own is 1 / (3 · its inputs).
    he, own = (build_net(f"plain20[init={init}]").stage3.block2.join.conv1.weight.detach() for init in ("he", "torch"))
    assert float(he.var()) == pytest.approx(2 / (9 * 64), rel=0.05)
    assert float(own.var()) == pytest.approx(1 / (3 * 9 * 64), rel=0.05) and float(own.abs().max()) < (9 * 64) ** -0.5


def test_the_bottleneck_of_inception():
    for channels, macs in (("16", 6_019_200), ("8", 4_946_560), ("4", 4_410_240), ("none", 5_310_080)):
        net = build_net(f"inception[bottleneck={channels}]")
        assert count_macs(net, (1, 28, 28)) == macs and net(torch.zeros(1, 1, 28, 28)).shape == (1, 10)
        first = net.incep1.b5[0]
        assert (first.kernel_size, first.out_channels) == (
            ((5, 5), 24) if channels == "none" else ((1, 1), int(channels))
        )
    assert build_net("inception[bottleneck=16]").state_dict().keys() == build_net("inception").state_dict().keys()


def test_the_width_and_the_norms_of_residual():
    for width in (16, 24, 32, 64):
        first, second, head = 25 * width, 25 * width * 2 * width, 32 * width * 10
        blocks = 2 * 9 * width**2, 2 * 9 * (2 * width) ** 2
        macs = 24**2 * first + 12**2 * blocks[0] + 8**2 * second + 4**2 * blocks[1] + head
        kernels, channels = first + second + sum(blocks) + head + 10, 3 * width + 3 * 2 * width
        for norm, others in (("none", channels), ("batch", 2 * channels)):
            net = build_net(f"residual[width={width},norm={norm}]")
            assert count_parameters(net) == kernels + others, (width, norm)
            assert count_macs(net, (1, 28, 28)) == macs, (width, norm)
    lecture = build_net("residual")
    same = build_net("residual[width=16,norm=none]")
    assert [*map(str, same.named_children())] == [*map(str, lecture.named_children())]
    normed = build_net("residual[norm=batch]")
    images = torch.randn(64, 1, 28, 28)
    assert normed.pool1(normed.conv1(images)).shape == normed.norm1(normed.pool1(normed.conv1(images))).shape
    spread = normed.norm1(normed.pool1(normed.conv1(images))).std((0, 2, 3))
    torch.testing.assert_close(spread, torch.ones(16), rtol=1e-3, atol=0)


def test_a_dense_layer_stacks_on_all_before_it():
    net = build_net("densenet100", in_channels=1, image_size=16).eval()
    joins = [m for m in net.modules() if isinstance(m, Concat)]
    assert len(joins) == 48 and all(list(join.branches()) == ["input", "new"] for join in joins)
    x = torch.randn(1, 24, 8, 8)
    assert torch.equal(joins[0](x)[:, :24], x) and joins[0](x).shape[1] == 36


def test_names_with_options():
    assert split_options("resnet20[shortcut=conv]") == ("resnet20", {"shortcut": "conv"})
    assert with_options("resnet20", {"shortcut": None}) == "resnet20"
    assert with_options("resnet18[stem=small]", {"shortcut": "none"}) == "resnet18[stem=small,shortcut=none]"
    assert short_name("resnet18[stem=small,shortcut=none]") == "resnet18-small-none"
    assert defaults_of("resnet20[shortcut=conv]").input_shape == (3, 32, 32) and defaults_of("a.py:Net") is None


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet20[shortcut=gatd]", "one of identity, scale, conv, gated, gate-only, dropout, none"),
        ("resnet20[stem=small]", "no option 'stem': it has shortcut"),
        ("plain20[shortcut=conv]", "no option 'shortcut': it has norm, init, width, without"),
        ("densenet100[stem=small]", "no option 'stem': it has without"),
        ("plain20[width=5]", "one of 4, 8, 16"),
        ("plain18[shortcut=conv]", "no option 'shortcut': it has stem"),
        ("residual[norm=layer]", "one of none, batch"),
        ("inception[in_channels=3]", "no option 'in_channels': it has bottleneck, without"),
        ("resnet20[shortcut]", "write resnet20:KEY=VALUE"),
        ("resnet20[shortcut=conv", "write resnet20:KEY=VALUE"),
        ("resnet19", "Did you mean|Known"),
        ("resnet19[shortcut=conv]", "no net called"),
    ],
)
def test_a_wrong_option_says_which_there_are(name, message):
    with pytest.raises(NetError, match=re.escape(message) if "|" not in message else message):
        build_net(name)


def test_the_verb_lists_all_or_a_family(command):
    code, out, _ = command("nets")
    assert code == 0 and all(f" {name} " in out for name in NETS) and "1,582,671,872" in out
    code, out, _ = command("nets", "densenet1", "goog", "--json", "-")
    assert code == 0
    names = [size["name"] for size in json.loads(out)]
    assert names == ["googlenet", "densenet121", "densenet161", "densenet169", "densenet100", "densenet190"]
    code, _, err = command("nets", "vgg")
    assert code == 2 and "no net whose name begins with 'vgg'" in err


def test_a_run_keeps_the_options_of_its_net(command, tmp_path):
    data = branchwork.load_data("sample")
    few = torch.arange(40)
    data = dataclasses.replace(data, train=data.train.pick(few), test=data.test.pick(few))
    recipe = branchwork.fast().but({"epochs": 1, "batch_size": 20, "validation": 0.0})
    branchwork.train("resnet20[shortcut=gate-only]", data=data, recipe=recipe, out=tmp_path / "run")
    assert json.loads((tmp_path / "run/model.json").read_text())["net"] == "resnet20[shortcut=gate-only]"
    code, out, _ = command("inspect", tmp_path / "run")
    assert code == 0 and "resnet20-gate-only" in out and "shortcut.gate" in out
