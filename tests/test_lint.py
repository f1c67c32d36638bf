"""Each rule meets a script that has its mistake and one that nearly has it; nets that are right have no findings."""

import inspect
from pathlib import Path

import pytest
import torch
from helpers.lecture import InceptionNet, ResidualNet, TiedNet
from torch import nn
from torch.nn import functional as F

from branchwork import Add, Concat
from branchwork.catalogue.builders import NETS
from branchwork.errors import NetError
from branchwork.inspection.lint import Finding, lint


def conv(c, k, **more):
    return nn.Sequential(nn.LazyConv2d(c, k, bias=False, **more), nn.BatchNorm2d(c), nn.ReLU())


def built(net: nn.Module, shape=(3, 16, 16)) -> nn.Module:
    """The lazy layers of `net` given their sizes."""
    net.eval()(torch.zeros(1, *shape))
    return net.train()


def only(rule: str, net: nn.Module, shape=(3, 16, 16)) -> Finding:
    (finding,) = lint(net, shape)
    assert finding.rule == rule
    return finding


def source(finding: Finding) -> str:
    return Path(finding.file).read_text(encoding="utf-8").splitlines()[finding.line - 1].strip()


class Forward(nn.Module):
    """Modules by name, and a function of them and the image as the forward."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x):
        return self.function(self, x)


# Nets that are right.


class Bottleneck(nn.Module):
    """A ResNet's: 1×1, 3×3, 1×1, and a projection where the shape changes. A zero at the end stops no gradient."""

    def __init__(self, channels, middle, out, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, middle, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(middle)
        self.conv2 = nn.Conv2d(middle, middle, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(middle)
        self.conv3 = nn.Conv2d(middle, out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = None
        if stride != 1 or channels != out:
            self.downsample = nn.Sequential(nn.Conv2d(channels, out, 1, stride, bias=False), nn.BatchNorm2d(out))
        nn.init.zeros_(self.bn3.weight)

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn3(self.conv3(self.relu(self.bn2(self.conv2(y)))))
        y += x if self.downsample is None else self.downsample(x)
        return self.relu(y)


class PreActivation(nn.Module):
    """He et al. 2016, with the projection on the raw sum, as many write it."""

    def __init__(self, channels, out, stride):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(out)
        self.conv1 = nn.Conv2d(channels, out, 3, stride, 1, bias=False)
        self.conv2 = nn.Conv2d(out, out, 3, 1, 1, bias=False)
        self.shortcut = nn.Conv2d(channels, out, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x):
        return self.shortcut(x) + self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x))))))


class DenseLayer(nn.Module):
    def __init__(self, channels, growth):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(channels), nn.BatchNorm2d(4 * growth)
        self.conv1 = nn.Conv2d(channels, 4 * growth, 1, bias=False)
        self.conv2 = nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False)

    def forward(self, x):
        return torch.cat([x, F.dropout(self.conv2(F.relu(self.bn2(self.conv1(F.relu(self.bn1(x)))))), 0.2)], 1)


class InvertedResidual(nn.Module):
    """MobileNetV2's: the narrow end has a norm and no activation, on purpose."""

    def __init__(self, channels, out):
        super().__init__()
        self.narrow = channels == out
        self.body = nn.Sequential(
            conv(6 * channels, 1), conv(6 * channels, 3, padding=1, groups=6 * channels),
            nn.LazyConv2d(out, 1, bias=False), nn.BatchNorm2d(out),
        )  # fmt: skip

    def forward(self, x):
        return x + self.body(x) if self.narrow else self.body(x)


def fused_inverted(channels, out):
    """EfficientNetV2's: a 3×3 widens, a 1×1 narrows, and the next 3×3 reads it without an activation, on purpose."""
    return nn.Sequential(conv(4 * channels, 3, padding=1), nn.LazyConv2d(out, 1, bias=False), nn.BatchNorm2d(out))


class EdgeSharpener(nn.Module):
    """Residual blocks whose sums have no activation, as in super-resolution (EDSR)."""

    def __init__(self):
        super().__init__()
        self.head = nn.Conv2d(3, 8, 3, padding=1)
        self.first = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.second = nn.ModuleList(nn.Conv2d(8, 8, 3, padding=1) for _ in range(2))
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = self.head(x)
        for first, second in zip(self.first, self.second, strict=True):
            x = x + second(F.relu(first(x)))
        return self.fc(x.mean((2, 3)))


class Attention(nn.Module):
    """CBAM's channel attention: one small net reads the mean and the maximum, by design."""

    def __init__(self, channels):
        super().__init__()
        self.mlp = nn.Sequential(nn.Conv2d(channels, 4, 1), nn.ReLU(), nn.Conv2d(4, channels, 1))

    def forward(self, x):
        return x * torch.sigmoid(self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1)))


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.deep = conv(8, 3, padding=1), conv(16, 3, padding=1)
        self.up = nn.ConvTranspose2d(16, 8, 2, stride=2)
        self.fuse, self.head = conv(8, 3, padding=1), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        skip = self.down(x)
        return self.head(self.fuse(torch.cat([skip, self.up(self.deep(F.max_pool2d(skip, 2)))], 1)))


class Recurrent(nn.Module):
    """Steps share their weights: the joins are sums of what each step reads."""

    def __init__(self):
        super().__init__()
        self.read, self.keep, self.out = nn.Linear(4, 8), nn.Linear(8, 8), nn.Linear(8, 2)

    def forward(self, x):
        state = torch.tanh(self.read(x[:, 0]))
        for step in range(1, 3):
            state = torch.tanh(self.keep(state) + self.read(x[:, step]))
        return self.out(state)


class WithAuxiliaryHead(nn.Module):
    """The head of training gives a loss of its own through an attribute; forward gives one tensor in either mode."""

    def __init__(self):
        super().__init__()
        self.body, self.aux, self.fc = conv(8, 3), nn.Linear(8, 10), nn.Linear(8, 10)

    def forward(self, x):
        x = self.body(x).mean((2, 3))
        return self.fc(x) + 0.3 * self.aux(x) if self.training else self.fc(x)


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=True)
        self.norm, self.fc = nn.LayerNorm(16), nn.Linear(16, 10)

    def forward(self, x):
        return self.fc(self.norm(self.block(self.patches(x).flatten(2).transpose(1, 2))).mean(1))


def googlenet_like() -> nn.Module:
    def block():
        return Concat(
            b1=conv(4, 1),
            b3=nn.Sequential(conv(4, 1), conv(8, 3, padding=1)),
            b5=nn.Sequential(conv(2, 1), conv(4, 5, padding=2)),
            pool=nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(4, 1)),
        )

    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.4), nn.LazyLinear(10))
    return nn.Sequential(conv(8, 3, padding=1), block(), nn.MaxPool2d(2), block(), *head)


RIGHT = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 10)),
    "resnet": lambda: nn.Sequential(conv(8, 3), Bottleneck(8, 4, 16, 1), Bottleneck(16, 4, 32, 2), *fresh_head()),
    "pre-activation": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), PreActivation(8, 8, 1), PreActivation(8, 16, 2), PreActivation(16, 16, 1),
        nn.BatchNorm2d(16), nn.ReLU(), *fresh_head(),
    ),
    "densenet": lambda: nn.Sequential(
        nn.Conv2d(3, 8, 3), DenseLayer(8, 4), DenseLayer(12, 4), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 1),
        nn.AvgPool2d(2), DenseLayer(8, 4), nn.BatchNorm2d(12), nn.ReLU(), *fresh_head(),
    ),
    "googlenet": googlenet_like,
    "mobilenet": lambda: nn.Sequential(
        conv(4, 3), InvertedResidual(4, 8), InvertedResidual(8, 8), InvertedResidual(8, 12), conv(16, 1), *fresh_head()
    ),
    "mobilenet v3": lambda: nn.Sequential(
        conv(16, 3), conv(16, 3, padding=1, groups=16), nn.LazyConv2d(16, 1, bias=False), nn.BatchNorm2d(16),
        conv(72, 1), *fresh_head(),
    ),
    "efficientnet": lambda: nn.Sequential(
        conv(4, 3), fused_inverted(4, 8), fused_inverted(8, 12), conv(16, 1), *fresh_head()
    ),
    "super-resolution": EdgeSharpener,
    "attention": lambda: nn.Sequential(conv(8, 3), Attention(8), conv(8, 3), *fresh_head()),
    "u-net": UNet,
    "autoencoder": lambda: nn.Sequential(
        nn.Flatten(), nn.Linear(768, 64), nn.ReLU(), nn.Linear(64, 8), nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 768)
    ),
    "transformer": Tokens,
    "auxiliary head": WithAuxiliaryHead,
}  # fmt: skip


def fresh_head() -> tuple[nn.Module, ...]:
    return nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.LazyLinear(10)


@pytest.mark.parametrize("name", RIGHT)
def test_nets_that_are_right_have_no_findings(name):
    assert lint(built(RIGHT[name]()), (3, 16, 16)) == ()


@pytest.mark.parametrize("net", [NETS["residual"], ResidualNet, TiedNet])
def test_the_residual_net_has_no_findings(net):
    assert lint(net(), (1, 28, 28)) == ()


def test_a_recurrent_net_has_no_findings():
    assert lint(Recurrent(), (3, 4)) == ()


# Affine segments.


@pytest.mark.parametrize("net", [NETS["inception"], InceptionNet])
def test_the_lectures_inception_is_affine_twice_and_nothing_else(net):
    first, second = lint(net(), (1, 28, 28))
    assert (first.rule, first.module) == ("affine", "incep1") and (second.rule, second.module) == ("affine", "incep2")
    assert first.message.startswith("`incep1` and `conv2` are one affine map: there is no activation in between.")
    # COURSE.md: 2,730,240 of the module and 2,816,000 of conv2, or 81·10·20·64.
    assert "5,546,240 MACs as written, 1,036,800 as one 9×9 convolution 10→20" in first.message
    assert second.message.startswith("`incep2` and `fc` are one affine map")
    assert "328,960 MACs as written, 3,200 as one 320→10 matrix" in second.message
    assert "ReLU" in first.message


def test_an_affine_block_is_found_at_its_first_line():
    finding, _ = lint(InceptionNet(), (1, 28, 28))
    assert finding.file.endswith("lecture.py") and source(finding) == "one = self.branch1x1(x)"


def chain(*layers):
    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), *layers, nn.ReLU(), *fresh_head())


def test_a_bottleneck_without_an_activation_says_that_it_is_cheaper_as_written():
    net = built(chain(nn.Conv2d(16, 4, 3, padding=1), nn.Conv2d(4, 16, 5, padding=2)))
    message = only("affine", net).message
    assert message.startswith("`2` and `3` are one affine map")
    written, whole = 256 * (9 * 16 * 4 + 25 * 4 * 16), 256 * 49 * 16 * 16
    assert f"{written:,} MACs as written, and {whole:,} as one 7×7" in message
    assert "the few channels in between make it cheaper as written" in message


@pytest.mark.parametrize("norm", [True, False])
def test_a_linear_bottleneck_is_a_choice_and_a_1x1_that_hardly_narrows_is_not(norm):
    def narrowed(middle):
        norms = [nn.BatchNorm2d(middle)] if norm else []
        return built(chain(nn.Conv2d(16, middle, 1), *norms, nn.Conv2d(middle, 16, 3, padding=1)))

    assert lint(narrowed(8), (3, 16, 16)) == ()
    assert bool(lint(narrowed(12), (3, 16, 16))) is not norm


class Pair(nn.Module):
    """A block that lacks an activation."""

    def __init__(self, c):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        return F.relu(x + self.conv2(self.conv1(x)))


def test_one_cause_is_one_finding_with_the_first_place():
    blocks = [Pair(16) for _ in range(33)]
    message = only("affine", built(nn.Sequential(nn.Conv2d(3, 16, 1), nn.ReLU(), *blocks, *fresh_head()))).message
    assert message.startswith("in 33 blocks (`2.conv1`, `3.conv1`, `4.conv1` … `34.conv1`): `2.conv1` and `2.conv2`")
    both = lint(built(nn.Sequential(conv(16, 1), Pair(16), SoftPair(16), *fresh_head())), (3, 16, 16))
    assert [finding.module for finding in both] == ["1.conv1", "2.conv1"]  # two classes are two causes


class SoftPair(Pair):
    def forward(self, x):
        return torch.sigmoid(x + self.conv2(self.conv1(x)))


def test_the_users_line_is_blamed_and_not_a_librarys(tmp_path, monkeypatch):
    packages = tmp_path / "site-packages"
    packages.mkdir()
    (packages / "somebodys.py").write_text(
        "from torch import nn\n\nclass Twice(nn.Sequential):\n    def forward(self, x):\n"
        "        return self[1](self[0](x))\n"
    )
    monkeypatch.syspath_prepend(packages)
    import somebodys

    twice = somebodys.Twice(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))
    assert only("affine", twice).file == str(packages / "somebodys.py")  # there is no other
    net = Forward(lambda self, x: F.relu(self.twice(x)), twice=twice)
    finding = only("affine", net)
    assert (
        finding.module == "twice"
        and source(finding) == "net = Forward(lambda self, x: F.relu(self.twice(x)), twice=twice)"
    )


# Outputs that nobody reads.


class Forgetful(nn.Module):
    """The commonest mistake in a residual block."""

    def __init__(self, c=8):
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(c, c, 3, padding=1), nn.Conv2d(c, c, 3, padding=1)

    def forward(self, x):
        y = F.relu(self.conv1(x))
        y = self.conv2(x)
        return F.relu(x + y)


class ForgetfulPreActivation(Forgetful):
    def __init__(self, c=8):
        super().__init__()
        self.bn1, self.bn2 = nn.BatchNorm2d(c), nn.BatchNorm2d(c)

    def forward(self, x):
        y = self.conv1(F.relu(self.bn1(x)))
        y = self.conv2(F.relu(self.bn2(x)))
        return x + y


@pytest.mark.parametrize("block", [Forgetful, ForgetfulPreActivation])
@pytest.mark.parametrize("mode", [True, False])
def test_a_layer_whose_output_is_never_used_is_told_with_the_one_that_should_read_it(block, mode):
    finding = only("unread-output", block().train(mode), (8, 16, 16))
    assert finding.message.startswith("`conv1`'s output is never used; did `conv2` mean to read it?")
    assert finding.module == "conv1" and source(finding).startswith("y = self.conv2(")
    many = only("unread-output", nn.Sequential(block(), nn.ReLU(), block(), nn.ReLU(), block()), (8, 16, 16))
    assert many.message.startswith("in 3 blocks (`0.conv1`, `2.conv1`, `4.conv1`): `0.conv1`'s output")


def test_only_a_layer_that_could_read_it_is_named():
    def forward(self, x):
        self.one(x)
        return self.two(x)

    for channels in (5, 8):
        layers = {"one": nn.Conv2d(3, channels, 1), "two": nn.Conv2d(3, 4, 3)}
        message = only("unread-output", Forward(forward, **layers)).message
        assert message == "`one`'s output is never used. Read it in what follows, or remove the call."


def in_training(self, x):
    x = F.relu(self.conv(x)).mean((2, 3))
    logits, aux = self.fc(x), self.aux(x)
    return (logits, aux) if self.training else logits


def kept(self, x):
    x = F.relu(self.conv(x)).mean((2, 3))
    self.features = self.aux(x)
    return self.fc(x)


def in_place(self, x):
    x = F.relu(self.conv(x)).mean((2, 3))
    logits = x.new_zeros(x.size(0), 8)
    logits[:, :4] = self.fc(x)
    logits[:, 4:] = self.aux(x)
    return logits


@pytest.mark.parametrize("forward", [in_training, kept, in_place])
def test_what_is_read_in_training_or_kept_or_written_into_another_is_used(forward):
    net = Forward(forward, conv=nn.Conv2d(3, 8, 3), fc=nn.Linear(8, 4), aux=nn.Linear(8, 4))
    assert "unread-output" not in [finding.rule for finding in lint(net, (3, 16, 16))]


def test_a_joint_kernel_sees_what_the_layers_see():
    layers = nn.Conv2d(16, 4, 3, stride=2), nn.AvgPool2d(2, 1), nn.Conv2d(4, 4, (1, 2), dilation=(1, 2))
    net = built(chain(*layers), (3, 32, 32))
    image = torch.zeros(1, 16, 32, 32, requires_grad=True)
    nn.Sequential(*layers)(image)[0, 0, 0, 0].backward()
    rows, columns = (image.grad[0].abs().sum(0).sum(axis).nonzero() for axis in (1, 0))
    assert (int(rows.max()) + 1, int(columns.max()) + 1) == (5, 9)
    assert "one 5×9 convolution 16→4" in only("affine", net, (3, 32, 32)).message


@pytest.mark.parametrize(
    "between",
    [
        nn.BatchNorm2d(16), nn.Dropout(0.5), nn.Identity(), nn.AvgPool2d(2),
        Add(a=nn.AvgPool2d(3, 1, 1), b=nn.Identity()), Concat(a=nn.Identity(), b=nn.AvgPool2d(3, 1, 1)),
        Forward(lambda self, x: -x * 3),
        Forward(lambda self, x: x * self.bn.weight[:, None, None], bn=nn.BatchNorm2d(16)),
    ],
)  # fmt: skip
def test_what_lies_between_is_affine(between):
    net = built(chain(nn.Conv2d(16, 16, 3), between, nn.LazyConv2d(16, 3)))
    assert "`2` and `4` are one affine map" in only("affine", net).message


@pytest.mark.parametrize("between", [nn.ReLU(), nn.MaxPool2d(2), nn.GroupNorm(4, 16), nn.Softmax(1), nn.Sigmoid()])
def test_an_activation_between_ends_a_segment(between):
    assert lint(built(chain(nn.Conv2d(16, 16, 3), between, nn.Conv2d(16, 16, 3))), (3, 16, 16)) == ()


def test_a_product_of_images_ends_a_segment():
    gate = Forward(lambda self, x: x * x)
    assert lint(built(chain(nn.Conv2d(16, 16, 3), gate, nn.Conv2d(16, 16, 3))), (3, 16, 16)) == ()


def test_a_layer_that_several_layers_alone_read_is_one_finding_with_them():
    def forward(self, x):
        x = self.stem(x)
        return self.fc(torch.cat([F.relu(self.one(x)), F.relu(self.three(x))], 1).mean((2, 3)))

    layers = {"stem": nn.Conv2d(3, 8, 3), "one": nn.Conv2d(8, 8, 1), "three": nn.Conv2d(8, 8, 3, padding=1)}
    finding = only("affine", Forward(forward, **layers, fc=nn.Linear(16, 10)))
    assert finding.message.startswith("`stem`, `one` and `three` are one affine map")


def test_three_layers_are_one_finding_and_parallel_layers_none():
    three = chain(*(nn.Conv2d(16, 16, 3, padding=1) for _ in range(3)))
    assert "`2`, `3` and `4` are" in only("affine", built(three)).message
    parallel = chain(Add(a=nn.Conv2d(16, 16, 3, padding=1), b=nn.Conv2d(16, 16, 1)))
    assert lint(built(parallel), (3, 16, 16)) == ()


def test_a_separable_convolution_is_no_mistake():
    depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
    for pair in ((depthwise, nn.Conv2d(16, 32, 1)), (nn.Conv2d(16, 16, 1), depthwise)):
        assert lint(built(chain(*pair)), (3, 16, 16)) == ()
    grouped = chain(nn.Conv2d(16, 16, 3, groups=2), nn.Conv2d(16, 32, 1))
    assert only("affine", built(grouped))


def test_linear_layers_without_an_activation():
    head = nn.Sequential(nn.Linear(64, 128), nn.Dropout(), nn.Linear(128, 10))
    net = Forward(lambda self, x: self.head(F.relu(self.fc(x.flatten(1)))), fc=nn.Linear(768, 64), head=head)
    finding = only("affine", net)
    assert finding.module == "head" and finding.message.startswith("`head` is one affine map")
    assert "9,472 MACs as written, 640 as one 64→10 matrix" in finding.message
    tokens = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 2))
    assert "one 8→8 matrix" in only("affine", tokens, (5, 8)).message


def test_an_output_that_something_else_needs_keeps_its_layer():
    def forward(self, x):
        features = self.first(x)
        return self.second(features), features.relu()

    net = Forward(forward, first=nn.Conv2d(3, 8, 1), second=nn.Conv2d(8, 8, 3))
    assert lint(net, (3, 16, 16)) == ()
    net.function = lambda self, x: (self.second(self.first(x)), self.first(x).relu())
    assert only("affine", net).message.startswith("`first` and `second`")
    both = Forward(lambda self, x: (y := self.first(x), self.second(y)), first=nn.Conv2d(3, 8, 1), second=net.second)
    assert lint(both, (3, 16, 16)) == ()


# Modules that are never called, and shared ones.


class Unused(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.fc = nn.Conv2d(3, 8, 3), nn.Linear(8, 10)
        self.extra = nn.Sequential(nn.Conv2d(8, 8, 3), nn.ReLU())
        self.pool = nn.MaxPool2d(2)

    def forward(self, x):
        return self.fc(F.relu(self.conv(x)).mean((2, 3)))


def test_a_module_that_is_never_called_is_found_at_the_forward_that_forgets_it():
    finding = only("unused-module", Unused())  # the pool has no parameters, and does no harm
    assert finding.module == "extra" and "584 parameters" in finding.message
    assert (finding.file, source(finding)) == (inspect.getfile(Unused), "def forward(self, x):")
    assert finding.line == inspect.getsourcelines(Unused.forward)[1]


def test_an_unused_layer_inside_a_block_is_found_in_the_blocks_forward():
    finding = only("unused-module", nn.Sequential(Unused()))
    assert finding.module == "0.extra" and finding.line == inspect.getsourcelines(Unused.forward)[1]


class SharedOneByOne(nn.Module):
    """The lecture's module, by someone who thinks that one 1×1 will do."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 8, 1)
        self.b3, self.b5 = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 5, padding=2)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(24, 10)

    def forward(self, x):
        three = self.relu(self.b3(self.relu(self.one(x))))
        five = self.relu(self.b5(self.relu(self.one(x))))
        x = torch.cat([self.relu(self.one(x)), three, five], 1)
        return self.fc(x.mean((2, 3)))


class OneStem(SharedOneByOne):
    """Calls it once and reads it three times: a stem."""

    def forward(self, x):
        x = self.relu(self.one(x))
        x = torch.cat([x, self.relu(self.b3(x)), self.relu(self.b5(x))], 1)
        return self.fc(x.mean((2, 3)))


def test_a_stem_of_two_branches_of_three_is_not_shared():
    def forward(self, x):
        stem = F.relu(self.one(x))
        return self.fc(torch.cat([x, stem, F.relu(self.b3(stem))], 1).mean((2, 3)))

    net = Forward(forward, one=nn.Conv2d(3, 8, 1), b3=nn.Conv2d(8, 8, 3, padding=1), fc=nn.Linear(19, 10))
    assert lint(net, (3, 16, 16)) == ()


def test_a_module_shared_by_branches_is_found_and_a_stem_is_not():
    finding = only("shared-module", SharedOneByOne())
    assert finding.module == "one" and "its own module" in finding.message
    assert source(finding) == "three = self.relu(self.b3(self.relu(self.one(x))))"
    assert lint(OneStem(), (3, 16, 16)) == ()


@pytest.mark.parametrize("pool", [nn.AvgPool2d(3, 1, 1), nn.MaxPool2d(3, 1, 1)])
def test_a_branch_that_pools_first_shares_too(pool):
    def forward(self, x):
        return self.fc(torch.cat([F.relu(self.one(x)), F.relu(self.one(self.pool(x)))], 1).mean((2, 3)))

    net = Forward(forward, one=nn.Conv2d(3, 8, 1), pool=pool, fc=nn.Linear(16, 10))
    assert only("shared-module", net).module == "one"


def test_a_shared_block_is_one_finding():
    block = nn.Sequential(conv(8, 1), conv(8, 3, padding=1))

    def forward(self, x):
        return self.fc(self.join(x).mean((2, 3)))

    net = built(Forward(forward, join=Add(a=block, b=block), fc=nn.Linear(8, 10)))
    assert only("shared-module", net).module == "join.a"


def test_what_is_used_twice_in_sequence_is_not_shared():
    def forward(self, x):
        x = F.relu(self.stem(x))
        once = F.relu(self.conv(x))
        twice = F.relu(self.conv(once))
        return self.fc(torch.cat([x, once, twice], 1).mean((2, 3)))

    net = Forward(forward, stem=nn.Conv2d(3, 8, 1), conv=nn.Conv2d(8, 8, 3, padding=1), fc=nn.Linear(24, 10))
    assert lint(net, (3, 16, 16)) == ()


def test_the_two_images_of_a_siamese_net_share_on_purpose():
    def chunks(self, x):
        one, two = x.chunk(2, 1)
        return self.fc(torch.cat([F.relu(self.conv(one)), F.relu(self.conv(two))], 1).mean((2, 3)))

    net = Forward(chunks, conv=nn.Conv2d(3, 8, 1), fc=nn.Linear(16, 2))
    assert lint(net, (6, 16, 16)) == ()
    net.function = lambda self, x: self.fc(
        torch.cat([F.relu(self.conv(x[:, :3])), F.relu(self.conv(x[:, 3:]))], 1).mean((2, 3))
    )
    assert lint(net, (6, 16, 16)) == ()


# Gradients.


def branches(forward) -> Forward:
    return Forward(forward, a=conv(8, 3, padding=1), b=conv(8, 3, padding=1), fc=nn.Linear(8, 10))


def detached(self, x):
    return self.fc((self.a(x) + self.b(x).detach()).mean((2, 3)))


def without_grad(self, x):
    with torch.no_grad():
        b = self.b(x)
    return self.fc((self.a(x) + b).mean((2, 3)))


@pytest.mark.parametrize("forward", [detached, without_grad])
def test_a_branch_that_no_gradient_reaches(forward):
    net = built(branches(forward))
    finding = only("no-gradient", net)
    assert finding.module == "b" and f"{8 * 3 * 9 + 16} parameters" in finding.message
    net.b.requires_grad_(False)  # frozen openly
    assert lint(net, (3, 16, 16)) == ()


def test_a_gradient_of_zero_is_a_gradient():
    net = built(branches(lambda self, x: self.fc((self.a(x) + 0 * self.b(x)).mean((2, 3)))))
    assert lint(net, (3, 16, 16)) == ()


def test_a_branch_that_is_only_cut_off_from_what_it_reads_is_no_mistake():
    def forward(self, x):
        x = self.a(x)
        return self.fc((x + self.b(x.detach())).mean((2, 3)))

    assert lint(built(branches(forward)), (3, 16, 16)) == ()


# Batch norm, softmax, outputs.


def test_batch_norm_of_one_pixel_wants_two_images():
    one = built(nn.Sequential(conv(8, 3), nn.AdaptiveAvgPool2d(1), conv(8, 1), conv(8, 1), nn.Flatten()))
    finding = only("batch-norm-one", one)
    assert finding.module == "2.1" and "(and 1 more)" in finding.message and "at least 2" in finding.message
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        one(torch.zeros(1, 3, 16, 16))  # what it warns of
    four = built(nn.Sequential(conv(8, 3), nn.AdaptiveAvgPool2d(2), conv(8, 1), nn.Flatten(), nn.Linear(32, 10)))
    assert lint(four, (3, 16, 16)) == ()


def test_a_softmax_at_the_end_is_applied_twice_and_a_log_softmax_changes_nothing():
    def forward(self, x):
        return F.softmax(self.fc(x.flatten(1)), dim=1)

    finding = only("softmax-end", Forward(forward, fc=nn.Linear(768, 10)))
    assert "ends in softmax" in finding.message and "logits" in finding.message
    assert source(finding).startswith("return F.softmax")
    logits = torch.randn(5, 10, dtype=torch.float64)
    torch.testing.assert_close(F.log_softmax(F.log_softmax(logits, 1), 1), F.log_softmax(logits, 1))
    for end in (nn.LogSoftmax(1), nn.Sequential(nn.LogSoftmax(1), nn.Flatten())):
        assert lint(nn.Sequential(nn.Flatten(), nn.Linear(768, 10), end), (3, 16, 16)) == ()


def test_a_softmax_in_the_middle_or_in_eval_mode_alone_is_no_mistake():
    def gate(self, x):
        x = F.relu(self.conv(x)).mean((2, 3))
        return self.fc(x * F.softmax(self.gate(x), 1))

    assert lint(Forward(gate, conv=nn.Conv2d(3, 8, 3), gate=nn.Linear(8, 8), fc=nn.Linear(8, 10)), (3, 16, 16)) == ()

    def in_eval(self, x):
        logits = self.fc(x.flatten(1))
        return logits if self.training else F.softmax(logits, 1)

    assert lint(Forward(in_eval, fc=nn.Linear(768, 10)), (3, 16, 16)) == ()


class Auxiliary(WithAuxiliaryHead):
    """What torchvision's GoogLeNet does."""

    def forward(self, x):
        x = self.body(x).mean((2, 3))
        return (self.fc(x), self.aux(x)) if self.training else self.fc(x)


def test_an_output_of_another_type_in_training():
    finding = only("output-type", built(Auxiliary()))  # and the auxiliary head is not taken for unused
    assert finding.module == "" and source(finding) == "def forward(self, x):"
    assert "tuple(a tensor of float32, a tensor of float32) in train mode" in finding.message
    assert "a tensor of float32 in eval mode" in finding.message


def test_classes_in_eval_mode_are_another_type_too():
    def forward(self, x):
        logits = self.fc(x.flatten(1))
        return logits if self.training else logits.argmax(1)

    assert "int64 in eval mode" in only("output-type", Forward(forward, fc=nn.Linear(768, 10))).message


# What lint leaves alone.


def test_the_net_is_left_as_it_was():
    net = built(nn.Sequential(conv(8, 3), nn.Dropout(), nn.Flatten(), nn.Linear(8 * 14 * 14, 10)))
    net[0].eval()
    net[0][0].weight.requires_grad_(False)
    net[3].weight.grad = torch.ones_like(net[3].weight)
    net[0].register_forward_hook(lambda module, arguments, output: None)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = torch.get_rng_state()
    assert lint(net, (3, 16, 16)) == ()
    assert torch.equal(torch.get_rng_state(), state)
    assert net.training and not net[0].training and not net[0][1].training and net[1].training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    assert not net[0][0].weight.requires_grad and net[0][1].weight.requires_grad
    assert net[0][0].weight.grad is None and torch.equal(net[3].weight.grad, torch.ones_like(net[3].weight))
    assert len(net[0]._forward_hooks) == 1


def test_a_net_that_fails_in_training_is_still_looked_at():
    def forward(self, x):
        assert not self.training, "needs targets"
        return self.fc(x.flatten(1))

    net = Forward(forward, fc=nn.Linear(768, 10), extra=nn.Linear(3, 3))
    assert only("unused-module", net).module == "extra"


def test_a_net_without_parameters_has_no_findings():
    assert lint(nn.Flatten(), (3, 16, 16)) == ()


def test_a_net_that_cannot_be_read_is_refused():
    with pytest.raises(NetError, match="expects 3 channels, but the images have 1"):
        lint(Unused(), (1, 16, 16))
