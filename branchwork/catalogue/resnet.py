"""Residual nets for ImageNet and CIFAR (He et al. 2015), with pre-activation (He et al. 2016), and without shortcuts.

A net is a row of the table and two loops. A block is an `Add` of a residual and a shortcut; a plain net has
only the residual.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal

from torch import nn

from branchwork.blocks import Add, chain
from branchwork.catalogue.input_size import ImageSize
from branchwork.catalogue.layers import (
    Gate,
    Scale,
    Stem,
    Subsample,
    conv_norm,
    conv_norm_relu,
    takes_small_stem,
    torch_init,
    with_head,
    without_norms,
)

Shortcut = Literal["identity", "scale", "conv", "gated", "gate-only", "dropout", "none"]
Norm = Literal["batch", "none"]
Init = Literal["he", "torch"]
Width = Literal["4", "8", "16", "32", "64"]


@dataclass(frozen=True)
class ResidualDesign:
    """The blocks of each stage and the width of the first. Each stage halves the sides and doubles the channels."""

    blocks: tuple[int, ...]
    width: int
    bottleneck: bool = False

    @property
    def for_cifar(self) -> bool:
        return self.width == 16


# By the number of layers with weights: He et al. 2015, Table 1 and section 4.2; 164 is from He et al. 2016, section 5;
# 8 and 14 are shallower by the same rule, 6n + 2.
DESIGNS = {
    18: ResidualDesign((2, 2, 2, 2), 64),
    34: ResidualDesign((3, 4, 6, 3), 64),
    50: ResidualDesign((3, 4, 6, 3), 64, bottleneck=True),
    101: ResidualDesign((3, 4, 23, 3), 64, bottleneck=True),
    152: ResidualDesign((3, 8, 36, 3), 64, bottleneck=True),
    8: ResidualDesign((1, 1, 1), 16),
    14: ResidualDesign((2, 2, 2), 16),
    20: ResidualDesign((3, 3, 3), 16),
    32: ResidualDesign((5, 5, 5), 16),
    44: ResidualDesign((7, 7, 7), 16),
    56: ResidualDesign((9, 9, 9), 16),
    110: ResidualDesign((18, 18, 18), 16),
    164: ResidualDesign((18, 18, 18), 16, bottleneck=True),
}


@dataclass(frozen=True)
class Variant:
    """The options of a residual net.

    `shortcut` is used in every block that keeps its shape (He et al. 2016, Figure 2). Other blocks have a projection,
    or zeros in the added channels in nets for CIFAR; with `none` there is no shortcut at all. With
    `preact`, norm and ReLU precede each convolution and nothing follows the sum. A `small` stem is a 3×3 convolution
    that keeps height and width, without pooling. Without `norm`, each convolution has a bias in its place. `init` is
    He's, or PyTorch's default. `width` is the first stage's, by default the design's.
    """

    stem: Stem = "small"
    shortcut: Shortcut = "identity"
    preact: bool = False
    norm: Norm = "batch"
    init: Init = "he"
    width: Width | None = None


def resnet(
    name: str,
    design: ResidualDesign,
    variant: Variant,
    *,
    in_channels: int,
    num_classes: int,
    image_size: ImageSize,
) -> nn.Sequential:
    """Build a residual net: N×C×H×W in, logits N×K out."""
    channels = first = design.width if variant.width is None else int(variant.width)
    body: dict[str, nn.Module] = {}
    small = design.for_cifar or takes_small_stem(variant.stem, image_size)
    kernel, stride = (3, 1) if small else (7, 2)
    if variant.preact:  # the next layers begin with norm and ReLU
        body["conv1"] = nn.Conv2d(in_channels, first, kernel, stride, kernel // 2, bias=False)
    else:
        body["conv1"] = conv_norm_relu(in_channels, first, kernel, stride=stride)
    if not small:
        body["pool1"] = nn.MaxPool2d(3, 2, 1)
    for stage, count in enumerate(design.blocks):
        blocks: dict[str, nn.Module] = {}
        for number in range(count):
            inner, stride = first * 2**stage, 2 if stage > 0 and number == 0 else 1
            block = _Block(channels, inner, stride, design, variant)
            blocks[f"block{number + 1}"] = block.build()
            channels = block.out_channels
        body[f"stage{stage + 1}"] = chain(**blocks)
    if variant.preact:
        body |= {"norm": nn.BatchNorm2d(channels), "relu": nn.ReLU()}
    net = with_head(name, body, in_channels=in_channels, num_classes=num_classes, image_size=image_size, width=channels)
    if variant.norm == "none":
        without_norms(net)
    if variant.init == "torch":
        torch_init(net)
    return net


@dataclass(frozen=True)
class _Block:
    """A block of two 3×3, or of 1×1, 3×3 and 1×1: N×C×H×W in, N×C′×⌈H/s⌉×⌈W/s⌉ out."""

    in_channels: int
    inner: int
    stride: int
    design: ResidualDesign
    variant: Variant

    @property
    def out_channels(self) -> int:
        return 4 * self.inner if self.design.bottleneck else self.inner

    def build(self) -> nn.Module:
        keeps = self.in_channels == self.out_channels and self.stride == 1
        before, layers = self._layers()
        if not keeps and self.variant.shortcut != "none":
            join: nn.Module = Add(residual=chain(**layers), shortcut=self._projection())
        else:
            layers, before = before | layers, {}
            join = self._join(chain(**layers))
        if self.variant.preact:
            return chain(**before, join=join) if before else join
        return chain(join=join, relu=nn.ReLU())

    def _layers(self) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
        """Return the layers of the residual: those whose output a projection reads too, and the others."""
        geometry = [(self.in_channels, self.inner, 3, self.stride), (self.inner, self.inner, 3, 1)]
        if self.design.bottleneck:
            # The 3×3 has the stride, as in all published weights; in the paper it is the first 1×1.
            inner = self.inner
            geometry = [
                (self.in_channels, inner, 1, 1),
                (inner, inner, 3, self.stride),
                (inner, self.out_channels, 1, 1),
            ]
        before: dict[str, nn.Module] = {}
        layers: dict[str, nn.Module] = {}
        for number, (channels, out, kernel, stride) in enumerate(geometry, 1):
            conv = nn.Conv2d(channels, out, kernel, stride, kernel // 2, bias=False)
            if self.variant.preact:
                target = before if number == 1 else layers
                target |= {f"norm{number}": nn.BatchNorm2d(channels), f"relu{number}": nn.ReLU()}
                layers[f"conv{number}"] = conv
            else:
                layers |= {f"conv{number}": conv, f"norm{number}": nn.BatchNorm2d(out)}
                if number < len(geometry):
                    layers[f"relu{number}"] = nn.ReLU()
        return before, layers

    def _projection(self) -> nn.Module:
        """Return the shortcut of a block that changes the shape."""
        if self.variant.preact:
            return nn.Conv2d(self.in_channels, self.out_channels, 1, self.stride, bias=False)
        if self.design.for_cifar and self.variant.shortcut != "conv":
            return Subsample(self.in_channels, self.out_channels, self.stride)
        return conv_norm(self.in_channels, self.out_channels, 1, stride=self.stride)

    def _join(self, residual: nn.Sequential) -> nn.Module:
        """Return a block that keeps the shape (He et al. 2016, Figure 2, with the best settings of Table 1)."""
        channels, shortcut = self.out_channels, self.variant.shortcut
        if shortcut == "none":
            return residual
        if shortcut == "scale":
            return Add(residual=chain(layers=residual, scale=Scale(0.5)), shortcut=Scale(0.5))
        if shortcut == "conv":
            return Add(residual=residual, shortcut=conv_norm(channels, channels, 1))
        if shortcut == "dropout":
            return Add(residual=residual, shortcut=nn.Dropout(0.5))
        if shortcut == "identity":
            return Add(residual=residual, shortcut=nn.Identity())
        gate = nn.Conv2d(channels, channels, 1)
        assert gate.bias is not None
        nn.init.constant_(gate.bias, -6.0)
        closed = Gate(gate, nn.Identity(), closed=True)
        return Add(residual=Gate(gate, residual, closed=False) if shortcut == "gated" else residual, shortcut=closed)


def _for_imagenet(name: str, design: ResidualDesign, *, preact: bool = False) -> Callable[..., nn.Sequential]:
    def build(
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        image_size: ImageSize = 224,
        stem: Stem = "auto",
        shortcut: Shortcut = "identity",
    ) -> nn.Sequential:
        variant = Variant(stem, shortcut, preact)
        return resnet(name, design, variant, in_channels=in_channels, num_classes=num_classes, image_size=image_size)

    return build


def _for_cifar(name: str, design: ResidualDesign, *, preact: bool = False) -> Callable[..., nn.Sequential]:
    def build(
        *,
        in_channels: int = 3,
        num_classes: int = 10,
        image_size: ImageSize = 32,
        shortcut: Shortcut = "identity",
        norm: Norm = "batch",
        init: Init = "he",
        width: Width = "16",
    ) -> nn.Sequential:
        variant = Variant("small", shortcut, preact, norm, init, width)
        return resnet(name, design, variant, in_channels=in_channels, num_classes=num_classes, image_size=image_size)

    return build


def residual_nets() -> dict[str, Callable[..., nn.Sequential]]:
    """Return the builders by name: for each depth `resnet18`, its twin without shortcuts `plain18`, and `preact18`."""
    nets: dict[str, Callable[..., nn.Sequential]] = {}
    for depth, design in DESIGNS.items():
        family = _for_cifar if design.for_cifar else _for_imagenet
        nets[f"resnet{depth}"] = family(f"resnet{depth}", design)
        nets[f"plain{depth}"] = partial(family(f"plain{depth}", design), shortcut="none")
        nets[f"preact{depth}"] = family(f"preact{depth}", design, preact=True)
    return nets
