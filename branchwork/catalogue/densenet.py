"""DenseNet (Huang et al. 2017): each layer stacks a few new channels on all those before it. Its join is `Concat`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from branchwork.blocks import Concat, chain
from branchwork.catalogue.input_size import ImageSize
from branchwork.catalogue.layers import Stem, conv_norm_relu, takes_small_stem, with_head


@dataclass(frozen=True)
class DenseDesign:
    """The layers of each block, the channels that every layer adds, and the channels of the stem."""

    layers: tuple[int, ...]
    growth: int
    width: int


# Table 1, and torchvision's 161; then the nets "BC" for CIFAR of Table 2.
IMAGENET = {
    121: DenseDesign((6, 12, 24, 16), 32, 64),
    161: DenseDesign((6, 12, 36, 24), 48, 96),
    169: DenseDesign((6, 12, 32, 32), 32, 64),
    201: DenseDesign((6, 12, 48, 32), 32, 64),
}
CIFAR = {
    100: DenseDesign((16, 16, 16), 12, 24),
    190: DenseDesign((31, 31, 31), 40, 80),
    250: DenseDesign((41, 41, 41), 24, 48),
}


def densenet(
    name: str,
    design: DenseDesign,
    *,
    in_channels: int = 3,
    num_classes: int = 1000,
    image_size: ImageSize = 224,
    stem: Stem = "auto",
) -> nn.Sequential:
    """Build a DenseNet: N×C×H×W in, logits N×K out. Between blocks, channels and sides are halved (section 3)."""
    width = design.width
    body: dict[str, nn.Module] = {}
    if takes_small_stem(stem, image_size):
        body["conv1"] = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
    else:
        body["conv1"] = conv_norm_relu(in_channels, width, 7, stride=2)
        body["pool1"] = nn.MaxPool2d(3, 2, 1)
    for block, count in enumerate(design.layers, 1):
        layers: dict[str, nn.Module] = {}
        for number in range(1, count + 1):
            layers[f"layer{number}"] = Concat(input=nn.Identity(), new=_new_channels(width, design.growth))
            width += design.growth
        body[f"block{block}"] = chain(**layers)
        if block < len(design.layers):
            body[f"halve{block}"] = chain(
                norm=nn.BatchNorm2d(width),
                relu=nn.ReLU(),
                conv=nn.Conv2d(width, width // 2, 1, bias=False),
                pool=nn.AvgPool2d(2),
            )
            width //= 2
    body |= {"norm": nn.BatchNorm2d(width), "relu": nn.ReLU()}
    return with_head(name, body, in_channels=in_channels, num_classes=num_classes, image_size=image_size, width=width)


def _new_channels(in_channels: int, growth: int) -> nn.Sequential:
    return chain(
        norm1=nn.BatchNorm2d(in_channels),
        relu1=nn.ReLU(),
        conv1=nn.Conv2d(in_channels, 4 * growth, 1, bias=False),
        norm2=nn.BatchNorm2d(4 * growth),
        relu2=nn.ReLU(),
        conv2=nn.Conv2d(4 * growth, growth, 3, padding=1, bias=False),
    )


def dense_nets() -> dict[str, Callable[..., nn.Sequential]]:
    """Return the builders by name: `densenet121` and so on."""
    for_cifar: dict[str, Any] = {"num_classes": 10, "image_size": 32, "stem": "small"}
    nets: dict[str, Callable[..., nn.Sequential]] = {}
    for depth, design in IMAGENET.items():
        nets[f"densenet{depth}"] = partial(densenet, f"densenet{depth}", design)
    for depth, design in CIFAR.items():
        nets[f"densenet{depth}"] = partial(densenet, f"densenet{depth}", design, **for_cifar)
    return nets
