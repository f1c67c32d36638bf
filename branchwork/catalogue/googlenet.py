"""GoogLeNet (Szegedy et al. 2014, section 5 and Table 1), with batch norm: Inception modules with their true 5×5."""

from typing import Literal

from torch import nn

from branchwork.blocks import Concat, chain
from branchwork.catalogue.input_size import ImageSize
from branchwork.catalogue.layers import Stem, conv_norm_relu, takes_small_stem, with_head

Channels = tuple[int, tuple[int, int], tuple[int, int], int]

# Channels of rows 3a to 5b: the 1×1; the 3×3 and the 5×5, each after its 1×1; the 1×1 behind the pool.
MODULES: dict[str, Channels] = {
    "3a": (64, (96, 128), (16, 32), 32),
    "3b": (128, (128, 192), (32, 96), 64),
    "4a": (192, (96, 208), (16, 48), 64),
    "4b": (160, (112, 224), (24, 64), 64),
    "4c": (128, (128, 256), (24, 64), 64),
    "4d": (112, (144, 288), (32, 64), 64),
    "4e": (256, (160, 320), (32, 128), 128),
    "5a": (256, (160, 320), (32, 128), 128),
    "5b": (384, (192, 384), (48, 128), 128),
}
EPS = 1e-3
# The layers that the auxiliary heads read in training.
TAPS = ("incep4a", "incep4d")


def googlenet(
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    image_size: ImageSize = 224,
    stem: Stem = "auto",
    b5: Literal["5x5", "3x3"] = "5x5",
) -> nn.Sequential:
    """Build GoogLeNet: N×C×H×W in, logits N×K out.

    With `stem="small"`, the default up to 96 pixels, the first convolution is a 3×3 that keeps height and width; the
    poolings stay. `b5="3x3"` has 3×3 kernels in place of the paper's 5×5, as the published weights need. Raises
    `NetError` if the images are too small.
    """
    small = takes_small_stem(stem, image_size)
    body: dict[str, nn.Module] = {
        "conv1": _conv(in_channels, 64, 3) if small else _conv(in_channels, 64, 7, stride=2),
        "pool1": nn.MaxPool2d(3, 2, ceil_mode=True),
        "conv2": _conv(64, 64, 1),
        "conv3": _conv(64, 192, 3),
        "pool2": nn.MaxPool2d(3, 2, ceil_mode=True),
    }
    width = 192
    for name, (b1, b3, five, pool) in MODULES.items():
        if name == "4a":
            body["pool3"] = nn.MaxPool2d(3, 2, ceil_mode=True)
        if name == "5a":
            # The published weights were trained with a 2×2 window here, the paper has 3×3.
            body["pool4"] = nn.MaxPool2d(3 if b5 == "5x5" else 2, 2, ceil_mode=True)
        body[f"incep{name}"] = _inception(width, b1=b1, b3=b3, b5=five, pool=pool, kernel=5 if b5 == "5x5" else 3)
        width = b1 + b3[1] + five[1] + pool
    return with_head(
        "googlenet",
        body,
        in_channels=in_channels,
        num_classes=num_classes,
        image_size=image_size,
        width=width,
        dropout=0.4,
    )


def _inception(
    in_channels: int, *, b1: int, b3: tuple[int, int], b5: tuple[int, int], pool: int, kernel: int
) -> Concat:
    """Build an Inception module: N×C×H×W in, N×(b1 + b3[1] + b5[1] + pool)×H×W out (Figure 2b)."""
    return Concat(
        b1=_conv(in_channels, b1, 1),
        b3=chain(conv1=_conv(in_channels, b3[0], 1), conv2=_conv(*b3, 3)),
        b5=chain(conv1=_conv(in_channels, b5[0], 1), conv2=_conv(*b5, kernel)),
        pool=chain(pool=nn.MaxPool2d(3, 1, 1), conv=_conv(in_channels, pool, 1)),
    )


def _conv(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1) -> nn.Sequential:
    return conv_norm_relu(in_channels, out_channels, kernel, stride=stride, eps=EPS)
