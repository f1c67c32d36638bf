"""Layers that several nets of the catalogue share."""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from branchwork.blocks import chain
from branchwork.catalogue.input_size import ImageSize, flat_features, height_and_width

Stem = Literal["auto", "small", "large"]

# The largest side for which `auto` takes a small stem: larger images would stay too large for the layers after it.
SMALL = 96


def conv_norm(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, eps: float = 1e-5) -> nn.Sequential:
    """Return a convolution padded to keep height and width at stride 1, and a batch norm in place of its bias."""
    return chain(
        conv=nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
        norm=nn.BatchNorm2d(out_channels, eps=eps),
    )


def conv_norm_relu(
    in_channels: int, out_channels: int, kernel: int, *, stride: int = 1, eps: float = 1e-5
) -> nn.Sequential:
    """Return `conv_norm` followed by a ReLU."""
    return chain(
        **dict(conv_norm(in_channels, out_channels, kernel, stride=stride, eps=eps).named_children()), relu=nn.ReLU()
    )


def takes_small_stem(stem: Stem, image_size: ImageSize) -> bool:
    """Tell whether the first convolution keeps height and width."""
    return stem == "small" or (stem == "auto" and max(height_and_width(image_size)) <= SMALL)


def with_head(
    name: str,
    body: dict[str, nn.Module],
    *,
    in_channels: int,
    num_classes: int,
    image_size: ImageSize,
    width: int,
    dropout: float = 0.0,
) -> nn.Sequential:
    """Put a head behind `body`: the mean over height and width of its `width` channels, and a linear layer.

    Kernels are initialised for ReLU (He et al. 2015b, section 2.2). Raises `NetError` if the images are too small.
    """
    net = chain(**body)
    flat_features(net, in_channels, image_size, name=name)
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
    """Remove the batch norms of `net` in place. Each convolution without a bias gets one, of zeros."""
    for module in list(net.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.BatchNorm2d):
                delattr(module, name)
        if isinstance(module, nn.Conv2d) and module.bias is None:
            module.bias = nn.Parameter(torch.zeros(module.out_channels, device=module.weight.device))


def torch_init(net: nn.Module) -> None:
    """Initialise the kernels of `net` as PyTorch does by default, with a sixth of the variance of He's."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_uniform_(module.weight, a=math.sqrt(5))


class Scale(nn.Module):
    """Multiplication by a constant."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor

    def extra_repr(self) -> str:
        return f"{self.factor:g}"


class Subsample(nn.Module):
    """Every `stride`-th pixel, with zeros in the added channels: N×C×H×W in, N×C′×⌈H/s⌉×⌈W/s⌉ out, no parameters.

    The shortcut "A" of He et al. 2015, section 3.3.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.more, self.stride = out_channels - in_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        pixels = x[:, :, :: self.stride, :: self.stride]
        return nn.functional.pad(pixels, (0, 0, 0, 0, 0, self.more))

    def extra_repr(self) -> str:
        return f"{self.more} more channels, stride={self.stride}"


class Gate(nn.Module):
    """body(x) · g(x), or body(x) · (1 − g(x)) if `closed`, where g is the sigmoid of a 1×1 convolution.

    `gate` is that convolution, which two gates may share (He et al. 2016, section 3.1).
    """

    def __init__(self, gate: nn.Conv2d, body: nn.Module, *, closed: bool) -> None:
        super().__init__()
        self.gate, self.body, self.closed = gate, body, closed

    def forward(self, x: Tensor) -> Tensor:
        logits = self.gate(x)
        # 1 − sigmoid(z) is sigmoid(−z), without the rounding.
        gated: Tensor = (-logits if self.closed else logits).sigmoid() * self.body(x)
        return gated
