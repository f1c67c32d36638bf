"""GoogLeNet (Szegedy et al. 2014, Table 1) with batch norm and without auxiliary heads: N×3×224×224 to 1,000 logits."""

from collections import OrderedDict

from torch import nn

from branchwork.blocks import Concat

Channels = tuple[int, tuple[int, int], tuple[int, int], int]

# Rows 3a to 5b: the 1×1; the 3×3 and the 5×5, each with the 1×1 before it; the 1×1 after the pool.
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


def conv(in_channels: int, out_channels: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False),
        nn.BatchNorm2d(out_channels, eps=0.001),
        nn.ReLU(),
    )


def inception(in_channels: int, b1: int, b3: tuple[int, int], b5: tuple[int, int], pool: int) -> Concat:
    return Concat(
        b1=conv(in_channels, b1, 1),
        b3=nn.Sequential(conv(in_channels, b3[0], 1), conv(*b3, 3)),
        b5=nn.Sequential(conv(in_channels, b5[0], 1), conv(*b5, 5)),
        pool=nn.Sequential(nn.MaxPool2d(3, 1, 1), conv(in_channels, pool, 1)),
    )


def googlenet() -> nn.Sequential:
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=conv(3, 64, 7, stride=2),
        pool1=nn.MaxPool2d(3, 2, ceil_mode=True),
        conv2=conv(64, 64, 1),
        conv3=conv(64, 192, 3),
        pool2=nn.MaxPool2d(3, 2, ceil_mode=True),
    )
    width = 192
    for name, (b1, b3, b5, pool) in MODULES.items():
        if name in ("4a", "5a"):
            layers[f"pool{name[0]}"] = nn.MaxPool2d(3, 2, ceil_mode=True)
        layers[f"incep{name}"] = inception(width, b1, b3, b5, pool)
        width = b1 + b3[1] + b5[1] + pool
    head = {"mean": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(width, 1000)}
    return nn.Sequential(layers | head)
