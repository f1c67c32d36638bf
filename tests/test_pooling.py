import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from branchwork.catalogue.resolve import build_net
from branchwork.fusing.fuse import collapse
from branchwork.fusing.pooling import PooledConvolution


def as_written(x, weight, bias, padding, pool, relu=False):
    y = F.max_pool2d(F.conv2d(x, weight, bias, padding=padding), pool)
    return F.relu(y) if relu else y


def gradients(y, to, seed=0):
    generator = torch.Generator().manual_seed(seed)
    towards = torch.randn(y.shape, dtype=torch.float64, generator=generator).to(y.dtype)
    return torch.autograd.grad(y, to, towards)


@settings(max_examples=80, deadline=None)
@given(
    images=st.integers(0, 3),
    channels=st.integers(1, 2),
    outputs=st.integers(1, 4),
    size=st.tuples(st.integers(7, 13), st.integers(7, 13)),
    kernel=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    padding=st.tuples(st.integers(0, 2), st.integers(0, 2)),
    pool=st.tuples(st.integers(1, 3), st.integers(2, 3)),
    grey=st.sampled_from([2, 4, 256]),
    biased=st.booleans(),
    relu=st.booleans(),
)
def test_outputs_and_gradients_are_those_of_torch(
    images, channels, outputs, size, kernel, padding, pool, grey, biased, relu
):
    """Few grey values and whole weights give many equal numbers, of which the first has the gradient."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(grey, (images, channels, *size), generator=generator).double()
    weight = torch.randint(-3, 4, (outputs, channels, *kernel), generator=generator).double().requires_grad_()
    # Whole as well, since rounding may make equal numbers unequal.
    bias = torch.randint(-3, 4, (outputs,), generator=generator).double().requires_grad_() if biased else None
    expected = as_written(x, weight, bias, padding, pool, relu)
    found = PooledConvolution(padding, pool, relu=relu)(x, weight, bias)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    to = [weight] if bias is None else [weight, bias]
    for own, other in zip(gradients(found, to), gradients(expected, to), strict=True):
        torch.testing.assert_close(own, other, rtol=1e-12, atol=1e-9)


def test_gradients_of_images_go_through_torchs_own_layers():
    x = torch.randn(2, 1, 9, 9, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(3, 1, 3, 3, dtype=torch.float64)
    (own,) = gradients(PooledConvolution((1, 1), (2, 2), relu=True)(x, weight, None), x)
    (other,) = gradients(as_written(x, weight, None, 1, 2, relu=True), x)
    torch.testing.assert_close(own, other)


def test_what_is_no_number_stays_so():
    x = torch.zeros(1, 1, 6, 6)
    x[0, 0, 0, 0] = float("nan")
    found = PooledConvolution((0, 0), (2, 2))(x, torch.ones(1, 1, 3, 3), None)
    assert found.isnan().tolist() == [[[[True, False], [False, False]]]]


def test_in_bf16_it_is_as_near_as_torch():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(8, 1, 28, 28, generator=generator)
    weight = torch.randn(10, 1, 5, 5, generator=generator).requires_grad_()
    exact = as_written(x.double(), weight.double(), None, 0, 2)
    with torch.autocast("cpu", torch.bfloat16):
        found = PooledConvolution((0, 0), (2, 2))(x, weight, None)
        usual = as_written(x, weight, None, 0, 2)
    assert found.dtype == torch.bfloat16
    assert (found - exact).abs().max() <= 2 * (usual - exact).abs().max()
    own, torchs, best = (gradients(y, weight)[0] for y in (found, usual, exact))
    assert (own - best).norm() <= 2 * (torchs - best).norm()


def pooled(net, shape=(1, 12, 12)):
    module = collapse(net, shape, batch=64)
    return module is not None and any(isinstance(part, PooledConvolution) for part in module.modules())


@pytest.mark.parametrize("training", [True, False])
def test_the_lectures_inception_has_one(training):
    assert pooled(build_net("inception").train(training), (1, 28, 28))


class Both(nn.Module):
    """Reads what lies between a convolution and its pooling."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)

    def forward(self, x):
        y = self.conv(x)
        return F.max_pool2d(y, 2).sum((2, 3)) + y.sum((2, 3))


def net(convolution=None, pool=None, channels=1):
    return nn.Sequential(convolution or nn.Conv2d(channels, 4, 3), pool or nn.MaxPool2d(2))


@pytest.mark.parametrize(
    ("written", "channels"),
    [
        (net(channels=3), 3),
        (net(nn.Conv2d(1, 8, 3)), 1),
        (net(nn.Conv2d(1, 4, 3, stride=2)), 1),
        (net(nn.Conv2d(1, 4, 3, dilation=2)), 1),
        (net(nn.Conv2d(1, 4, 3, padding="same")), 1),
        (net(nn.Conv2d(1, 4, 3, padding=1, padding_mode="reflect")), 1),
        (net(pool=nn.MaxPool2d(3, stride=2)), 1),
        (net(pool=nn.MaxPool2d(2, padding=1)), 1),
        (net(pool=nn.MaxPool2d(2, dilation=2)), 1),
        (net(pool=nn.MaxPool2d(3, ceil_mode=True)), 1),
        (net(pool=nn.MaxPool2d(1)), 1),
        (nn.Sequential(nn.Sigmoid(), *net()), 1),
        (Both(), 1),
    ],
)
def test_others_are_left_as_they_are(written, channels):
    assert not pooled(written, (channels, 12, 12))


def test_a_convolution_without_bias_and_its_norm_and_relu_train_alike():
    written = nn.Sequential(nn.Conv2d(1, 4, 3, bias=False), nn.ReLU(), nn.MaxPool2d(2), nn.BatchNorm2d(4)).double()
    step = collapse(written, (1, 12, 12), batch=64)
    assert step is not None
    x = torch.randn(5, 1, 12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    for own, other in zip(
        gradients(step(x), list(written.parameters())), gradients(written(x), list(written.parameters())), strict=True
    ):
        torch.testing.assert_close(own, other)
