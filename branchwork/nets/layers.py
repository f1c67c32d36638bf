"""What several nets of the catalogue are made of."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from branchwork.blocks import chain
from branchwork.nets.input_size import ImageSize, flat_features, height_and_width

Stem = Literal["auto", "small", "large"]

# The sides up to which a small stem is taken by itself: larger images would stay too large for what follows.
SMALL = 96


def conv_norm(in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, eps: float = 1e-5) -> nn.Sequential:
    """A convolution that keeps height and width but for its stride, and batch norm in place of its bias."""
    return chain(
        conv=nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
        norm=nn.BatchNorm2d(out_channels, eps=eps),
    )


def conv_norm_relu(
    in_channels: int, out_channels: int, kernel: int, stride: int = 1, *, eps: float = 1e-5
) -> nn.Sequential:
    return chain(**dict(conv_norm(in_channels, out_channels, kernel, stride, eps=eps).named_children()), relu=nn.ReLU())


def takes_small_stem(stem: Stem, image_size: ImageSize) -> bool:
    return stem == "small" or (stem == "auto" and max(height_and_width(image_size)) <= SMALL)


def with_head(
    name: str,
    body: dict[str, nn.Module],
    width: int,
    in_channels: int,
    num_classes: int,
    image_size: ImageSize,
    dropout: float = 0.0,
) -> nn.Sequential:
    """`body`, the mean over height and width of the `width` channels that it gives, and a linear layer: logits N×K.

    Weights are initialised for ReLU (He et al. 2015b, section 2.2). Raises `NetError` where the images are too small.
    """
    net = chain(**body)
    flat_features(net, in_channels, image_size, name)
    net.add_module("mean", nn.AdaptiveAvgPool2d(1))
    net.add_module("flatten", nn.Flatten())
    if dropout:
        net.add_module("dropout", nn.Dropout(dropout))
    net.add_module("fc", nn.Linear(width, num_classes))
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return net


def without_norms(net: nn.Module) -> None:
    """Take the batch norms out of `net`, in place; each convolution that has no bias gets one, of zeros."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                delattr(module, name)
        if isinstance(module, nn.Conv2d) and module.bias is None:
            module.bias = nn.Parameter(torch.zeros(module.out_channels, device=module.weight.device))


def torch_init(net: nn.Module) -> None:
    """Give the kernels of `net` the weights that PyTorch gives a fresh layer, whose variance is a sixth of He's."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))


class Scale(nn.Module):
    """x, times a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def extra_repr(self) -> str:
        return f"{self.factor:g}"


class Subsample(nn.Module):
    """Every `stride`-th pixel, and zeros in further channels: N×C×H×W to N×C′×⌈H/s⌉×⌈W/s⌉, without parameters.

    The shortcut "A" of He et al. 2015, section 3.3.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.more, self.stride = out_channels - in_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        seen = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(seen, (0, 0, 0, 0, 0, self.more))

    def extra_repr(self) -> str:
        return f"{self.more} more channels, stride={self.stride}"


class Gate(nn.Module):
    """body(x) · g(x), or with `closed` body(x) · (1 − g(x)), where g is the sigmoid of a 1×1 convolution.

    `gate` is that convolution; two gates may share one (He et al. 2016, section 3.1).
    """

    def __init__(self, gate: nn.Conv2d, body: nn.Module, *, closed: bool) -> None:
        super().__init__()
        self.gate, self.body, self.closed = gate, body, closed

    def forward(self, x: Tensor) -> Tensor:
        opening = self.gate(x)
        # 1 − sigmoid(z) is sigmoid(−z), without the rounding.
        shared: Tensor = (-opening if self.closed else opening).sigmoid() * self.body(x)
        return shared
