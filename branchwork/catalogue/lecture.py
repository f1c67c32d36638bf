"""The two networks of the lecture ("Advanced CNN", lecture 11 of《PyTorch 深度学习实践》).

Each is a chain that is read from top to bottom. With the lecture's input, 1×28×28 and ten classes, `inception` has
97,298 parameters and 6,019,200 MACs per image, `residual` 41,514 and 2,013,184.
"""

from typing import Literal

from torch import nn

from branchwork.blocks import InceptionA, ResidualBlock, chain
from branchwork.catalogue.input_size import ImageSize, flat_features


def inception(
    *,
    in_channels: int = 1,
    num_classes: int = 10,
    image_size: ImageSize = 28,
    bottleneck: Literal["16", "8", "4", "none"] = "16",
) -> nn.Sequential:
    """Build conv 5×5, pool, InceptionA, twice, then one linear layer: N×C×H×W in, logits N×K out.

    `bottleneck` is the number of channels behind the 1×1 before the 5×5 and the double 3×3. Raises `NetError` if the
    images are too small.
    """
    channels = 0 if bottleneck == "none" else int(bottleneck)
    body = chain(
        conv1=nn.Conv2d(in_channels, 10, 5),
        pool1=nn.MaxPool2d(2),
        relu1=nn.ReLU(),
        incep1=InceptionA(10, channels),
        conv2=nn.Conv2d(InceptionA.out_channels, 20, 5),
        pool2=nn.MaxPool2d(2),
        relu2=nn.ReLU(),
        incep2=InceptionA(20, channels),
        flatten=nn.Flatten(),
    )
    return _with_head(body, "inception", in_channels=in_channels, num_classes=num_classes, image_size=image_size)


def residual(
    *,
    in_channels: int = 1,
    num_classes: int = 10,
    image_size: ImageSize = 28,
    width: Literal["16", "24", "32", "64"] = "16",
    norm: Literal["none", "batch"] = "none",
) -> nn.Sequential:
    """Build conv 5×5, pool, residual block, twice, then one linear layer: N×C×H×W in, logits N×K out.

    `width` is the number of channels in the first half; the second has twice as many. With `norm="batch"`, a batch norm
    follows each convolution in place of its bias (Ioffe and Szegedy 2015, section 3.2), after the pooling if there is
    one, so that it normalises a quarter of the numbers. Raises `NetError` if the images are too small.
    """
    body: dict[str, nn.Module] = {}
    channels = in_channels
    for number, out in enumerate((int(width), 2 * int(width)), 1):
        layers: dict[str, nn.Module] = {"conv": nn.Conv2d(channels, out, 5, bias=norm == "none")}
        if norm == "batch":
            layers |= {"pool": nn.MaxPool2d(2), "norm": nn.BatchNorm2d(out), "relu": nn.ReLU()}
        else:
            layers |= {"relu": nn.ReLU(), "pool": nn.MaxPool2d(2)}
        body |= {f"{name}{number}": layer for name, layer in layers.items()}
        body[f"rblock{number}"] = ResidualBlock(out, norm=norm == "batch")
        channels = out
    body["flatten"] = nn.Flatten()
    return _with_head(
        chain(**body), "residual", in_channels=in_channels, num_classes=num_classes, image_size=image_size
    )


def _with_head(
    net: nn.Sequential, name: str, *, in_channels: int, num_classes: int, image_size: ImageSize
) -> nn.Sequential:
    net.add_module("fc", nn.Linear(flat_features(net, in_channels, image_size, name=name), num_classes))
    return net
