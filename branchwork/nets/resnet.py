"""Residual nets for ImageNet and CIFAR (He et al. 2015), with pre-activation (He et al. 2016), and without shortcuts.

A net is a row of the table and two loops. A block is an `Add` of a residual and a shortcut; a plain net has the
residual alone.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from branchwork.blocks import Add, chain
from branchwork.nets.input_size import ImageSize
from branchwork.nets.layers import (
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
Width = Literal["4", "8", "16"]


@dataclass(frozen=True)
class Design:
    """Blocks by stage and the width of the first one; each further stage has half the pixels and twice the channels."""

    blocks: tuple[int, ...]
    width: int
    bottleneck: bool = False

    @property
    def for_cifar(self) -> bool:
        return self.width == 16


# By the number of layers with weights: He et al. 2015, Table 1 and section 4.2; 164 is from He et al. 2016, section 5;
# 8 and 14 are shallower by the same rule, 6n + 2.
DESIGNS = {
    18: Design((2, 2, 2, 2), 64),
    34: Design((3, 4, 6, 3), 64),
    50: Design((3, 4, 6, 3), 64, bottleneck=True),
    101: Design((3, 4, 23, 3), 64, bottleneck=True),
    152: Design((3, 8, 36, 3), 64, bottleneck=True),
    8: Design((1, 1, 1), 16),
    14: Design((2, 2, 2), 16),
    20: Design((3, 3, 3), 16),
    32: Design((5, 5, 5), 16),
    44: Design((7, 7, 7), 16),
    56: Design((9, 9, 9), 16),
    110: Design((18, 18, 18), 16),
    164: Design((18, 18, 18), 16, bottleneck=True),
}


def resnet(
    name: str,
    design: Design,
    *,
    in_channels: int,
    num_classes: int,
    image_size: ImageSize,
    stem: Stem,
    shortcut: Shortcut,
    preact: bool,
    norm: Norm = "batch",
    init: Init = "he",
    width: Width | None = None,
) -> nn.Sequential:
    """N×C×H×W in, logits N×K out.

    `shortcut` is the shortcut of every block that keeps its shape (He et al. 2016, Figure 2); where the shape changes
    it is a projection, or with CIFAR's nets zeros in the further channels, but with `none` there is no shortcut at
    all. With `preact`, norm and ReLU go before each convolution and nothing comes after the sum. A `small` stem is a
    3×3 convolution that keeps height and width, without pooling. Without `norm`, each convolution has a bias in its
    place. `init` is He's, or what PyTorch gives a convolution by itself. `width` is the first stage's, if it is not the
    design's own.
    """
    channels = first = design.width if width is None else int(width)
    body: dict[str, nn.Module] = {}
    small = design.for_cifar or takes_small_stem(stem, image_size)
    kernel, stride = (3, 1) if small else (7, 2)
    if preact:  # what comes next begins with norm and ReLU
        body["conv1"] = nn.Conv2d(in_channels, first, kernel, stride, kernel // 2, bias=False)
    else:
        body["conv1"] = conv_norm_relu(in_channels, first, kernel, stride)
    if not small:
        body["pool1"] = nn.MaxPool2d(3, 2, 1)
    for stage, count in enumerate(design.blocks):
        blocks: dict[str, nn.Module] = {}
        for number in range(count):
            inner, stride = first * 2**stage, 2 if stage > 0 and number == 0 else 1
            block = _Block(channels, inner, stride, design, preact)
            blocks[f"block{number + 1}"] = block.build(shortcut)
            channels = block.out_channels
        body[f"stage{stage + 1}"] = chain(**blocks)
    if preact:
        body |= {"norm": nn.BatchNorm2d(channels), "relu": nn.ReLU()}
    net = with_head(name, body, channels, in_channels, num_classes, image_size)
    if norm == "none":
        without_norms(net)
    if init == "torch":
        torch_init(net)
    return net


@dataclass(frozen=True)
class _Block:
    """N×C×H×W to N×C′×⌈H/s⌉×⌈W/s⌉ by two 3×3, or by 1×1, 3×3 and 1×1."""

    in_channels: int
    inner: int
    stride: int
    design: Design
    preact: bool

    @property
    def out_channels(self) -> int:
        return 4 * self.inner if self.design.bottleneck else self.inner

    def build(self, shortcut: Shortcut) -> nn.Module:
        keeps = self.in_channels == self.out_channels and self.stride == 1
        before, layers = self._layers()
        if not keeps and shortcut != "none":
            join: nn.Module = Add(residual=chain(**layers), shortcut=self._projection(shortcut))
        else:
            layers, before = before | layers, {}
            join = self._join(chain(**layers), shortcut)
        if self.preact:
            return chain(**before, join=join) if before else join
        return chain(join=join, relu=nn.ReLU())

    def _layers(self) -> tuple[dict[str, nn.Module], dict[str, nn.Module]]:
        """The layers of the residual: those that a projection reads as well, and the others."""
        geometry = [(self.in_channels, self.inner, 3, self.stride), (self.inner, self.inner, 3, 1)]
        if self.design.bottleneck:
            # The stride is in the 3×3, as in all published weights; the paper has it in the first 1×1.
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
            if self.preact:
                target = before if number == 1 else layers
                target |= {f"norm{number}": nn.BatchNorm2d(channels), f"relu{number}": nn.ReLU()}
                layers[f"conv{number}"] = conv
            else:
                layers |= {f"conv{number}": conv, f"norm{number}": nn.BatchNorm2d(out)}
                if number < len(geometry):
                    layers[f"relu{number}"] = nn.ReLU()
        return before, layers

    def _projection(self, shortcut: Shortcut) -> nn.Module:
        """The shortcut where the shape changes."""
        if self.preact:
            return nn.Conv2d(self.in_channels, self.out_channels, 1, self.stride, bias=False)
        if self.design.for_cifar and shortcut != "conv":
            return Subsample(self.in_channels, self.out_channels, self.stride)
        return conv_norm(self.in_channels, self.out_channels, 1, self.stride)

    def _join(self, residual: nn.Sequential, shortcut: Shortcut) -> nn.Module:
        """The block where the shape stays (He et al. 2016, Figure 2, with the settings that did best in Table 1)."""
        channels = self.out_channels
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
        nn.init.constant_(_bias(gate), -6.0)
        closed = Gate(gate, nn.Identity(), closed=True)
        return Add(residual=Gate(gate, residual, closed=False) if shortcut == "gated" else residual, shortcut=closed)


def _bias(conv: nn.Conv2d) -> Tensor:
    assert conv.bias is not None, "a gate has a bias"
    return conv.bias


def _for_imagenet(name: str, design: Design, *, preact: bool = False) -> Callable[..., nn.Sequential]:
    def build(
        *,
        in_channels: int = 3,
        num_classes: int = 1000,
        image_size: ImageSize = 224,
        stem: Stem = "auto",
        shortcut: Shortcut = "identity",
    ) -> nn.Sequential:
        sizes: dict[str, Any] = {"in_channels": in_channels, "num_classes": num_classes, "image_size": image_size}
        return resnet(name, design, **sizes, stem=stem, shortcut=shortcut, preact=preact)

    return build


def _for_cifar(name: str, design: Design, *, preact: bool = False) -> Callable[..., nn.Sequential]:
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
        sizes: dict[str, Any] = {"in_channels": in_channels, "num_classes": num_classes, "image_size": image_size}
        ways: dict[str, Any] = {"norm": norm, "init": init, "width": width}
        return resnet(name, design, **sizes, **ways, stem="small", shortcut=shortcut, preact=preact)

    return build


def residual_nets() -> dict[str, Callable[..., nn.Sequential]]:
    """The builders by name: `resnet18`, its plain twin `plain18` and `preact18`, and so on for each depth."""
    nets: dict[str, Callable[..., nn.Sequential]] = {}
    for depth, design in DESIGNS.items():
        family = _for_cifar if design.for_cifar else _for_imagenet
        nets[f"resnet{depth}"] = family(f"resnet{depth}", design)
        nets[f"plain{depth}"] = partial(family(f"plain{depth}", design), shortcut="none")
        nets[f"preact{depth}"] = family(f"preact{depth}", design, preact=True)
    return nets
