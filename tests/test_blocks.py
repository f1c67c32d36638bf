import pytest
import torch
from torch import nn
from torch.nn import functional as F

from branchwork import Add, Concat, InceptionA, ResidualBlock
from branchwork.errors import NetError

X = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def test_concat_stacks_channels_in_order_of_the_arguments():
    block = Concat(first=nn.Conv2d(3, 4, 1), second=nn.Identity(), third=nn.Conv2d(3, 2, 3, padding=1)).double()
    by_hand = torch.cat([block.first(X), X, block.third(X)], 1)
    assert block(X).shape == (2, 9, 8, 8)
    assert torch.equal(block(X), by_hand)


def test_add_sums_all_branches():
    block = Add(residual=nn.Conv2d(3, 3, 3, padding=1), shortcut=nn.Identity(), more=nn.Identity()).double()
    torch.testing.assert_close(block(X), block.residual(X) + 2 * X, rtol=1e-14, atol=1e-14)


def test_gradient_of_a_shortcut_is_that_of_the_residual_plus_one():
    block = Add(residual=nn.Conv2d(3, 3, 3, padding=1), shortcut=nn.Identity()).double()
    x = X.clone().requires_grad_()
    (whole,) = torch.autograd.grad(block(x).sum(), x)
    (part,) = torch.autograd.grad(block.residual(x).sum(), x)
    torch.testing.assert_close(whole, part + 1, rtol=1e-12, atol=1e-12)


def test_residual_block_is_the_lecture_formula():
    block = ResidualBlock(3).double()
    first, second = block.residual.conv1, block.residual.conv2
    by_hand = F.relu(
        X + F.conv2d(F.relu(F.conv2d(X, first.weight, first.bias, padding=1)), second.weight, second.bias, padding=1)
    )
    torch.testing.assert_close(block(X), by_hand, rtol=1e-13, atol=1e-13)


def test_inception_a_is_affine():
    # No activation anywhere, so f(x + y) − f(y) does not depend on y: what the lecture does not say.
    block = InceptionA(3).double()
    y = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    zero = torch.zeros_like(X)
    torch.testing.assert_close(block(X + y) - block(y), block(X) - block(zero), rtol=1e-10, atol=1e-12)


def test_a_block_without_branches_is_refused():
    with pytest.raises(NetError, match="at least one branch"):
        Concat()


def message(block: nn.Module, channels: int = 10, size: int = 12) -> str:
    with pytest.raises(NetError) as caught:
        block(torch.zeros(1, channels, size, size))
    return str(caught.value)


def test_a_branch_without_its_padding_is_named_with_the_padding_that_it_needs():
    block = Concat(b1=nn.Conv2d(10, 16, 1), b5=nn.Sequential(nn.Conv2d(10, 16, 1), nn.Conv2d(16, 24, 5)))
    text = message(block)
    assert "b1  16×12×12" in text and "b5  24×8×8" in text
    assert "`b5.1` has kernel 5 and padding 0: padding=2 keeps height and width" in text
    assert "`b1`" not in text and "`b5.0`" not in text
    block.b5[1].padding = (2, 2)
    assert block(torch.zeros(1, 10, 12, 12)).shape == (1, 40, 12, 12)  # the advice holds


@pytest.mark.parametrize(
    ("odd", "advice"),
    [
        (nn.Conv2d(10, 4, 3, padding=2), "kernel 3 and padding 2: padding=1"),
        (nn.Conv2d(10, 4, 3, dilation=2), "kernel 3 and padding 0: padding=2"),
        (nn.Conv2d(10, 4, (1, 5)), "kernel (1, 5) and padding 0: padding=(0, 2)"),
        (nn.Conv2d(10, 4, 3, padding="valid"), "kernel 3 and padding 0: padding=1"),
        (nn.Conv2d(10, 4, 4, padding=1), "even kernel"),
        (nn.AvgPool2d(3, padding=1), "stride 3: stride=1"),
        (nn.MaxPool2d(2), "stride 2: stride=1"),
    ],
)
def test_each_layer_that_changes_the_size_gets_its_remedy(odd, advice):
    text = message(Concat(fits=nn.Conv2d(10, 4, 1), pads=nn.Conv2d(10, 4, 3, padding="same"), odd=odd))
    assert "`odd`" in text and advice in text, text


def test_concat_of_branches_that_shrink_alike_blames_the_one_that_does_not():
    text = message(Concat(a=nn.Conv2d(10, 4, 3), b=nn.Conv2d(10, 4, 3), c=nn.Conv2d(10, 4, 5)))
    assert "`c` has kernel 5" in text and "`a`" not in text


def test_unequal_channels_of_a_residual_branch_call_for_a_projection():
    text = message(Add(residual=nn.Conv2d(10, 16, 3, padding=1), shortcut=nn.Identity()))
    assert "residual  16×12×12" in text and "shortcut  10×12×12" in text
    assert "shortcut=nn.Conv2d(10, 16, 1)," in text


def test_a_stride_in_the_residual_branch_calls_for_a_projection_with_that_stride():
    block = Add(residual=nn.Conv2d(10, 16, 3, stride=2, padding=1), shortcut=nn.Identity())
    assert "nn.Conv2d(10, 16, 1, stride=2)" in message(block)
    block.shortcut = nn.Conv2d(10, 16, 1, stride=2)
    assert block(torch.zeros(1, 10, 12, 12)).shape == (1, 16, 6, 6)


def test_a_residual_branch_that_lost_its_padding_is_told_which():
    assert "`residual` has kernel 3 and padding 0: padding=1" in message(
        Add(residual=nn.Conv2d(10, 10, 3), shortcut=nn.Identity())
    )


def test_one_module_in_two_branches_counts_twice():
    shared = nn.Conv2d(3, 4, 1)
    assert Concat(a=shared, b=shared)(X.float()).shape == (2, 8, 8, 8)
    same = nn.Identity()
    torch.testing.assert_close(Add(a=same, b=same)(X), 2 * X)


def test_a_lost_padding_that_halves_a_small_image_is_not_taken_for_a_stride():
    text = message(Add(residual=nn.Conv2d(10, 10, 3), shortcut=nn.Identity()), size=4)
    assert "padding=1" in text and "stride" not in text
