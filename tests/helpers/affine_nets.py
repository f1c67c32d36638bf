"""Random nets of affine layers, for tests: every kernel, stride, padding and join that can be collapsed.

Between them are layers that cannot be, and max poolings that can be taken into what is before them.
"""

from itertools import pairwise

import torch
from hypothesis import strategies as st
from torch import nn

from branchwork.blocks import Add, Concat


class ByChannel(nn.Module):
    """Images with numbers of their own for each channel, as a normalisation has it, or with one for all."""

    def __init__(self, channels: int, kind: int) -> None:
        super().__init__()
        self.kind = kind
        generator = torch.Generator().manual_seed(channels)
        self.shift = nn.Parameter(torch.randn(1, generator=generator))
        self.scale = nn.Parameter(1 + torch.rand(channels, 1, 1, generator=generator))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        kinds = (
            lambda: (x - self.shift) * self.scale,
            lambda: x / self.scale + self.scale,
            lambda: torch.sub(x, self.scale[None], alpha=2),
            lambda: x * self.shift,
        )
        return kinds[self.kind]()


@st.composite
def affine_nets(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, int, int]]:
    """A net in float64 and eval mode, hostile statistics included, and the shape of its images."""
    channels, height, width = draw(st.integers(1, 4)), draw(st.integers(5, 11)), draw(st.integers(5, 11))
    size = (height, width)
    layers: list[nn.Module] = []
    shape = (channels, *size)
    for _ in range(draw(st.integers(1, 3))):
        layer, shape = draw(_layers(shape, depth=2))
        layers.append(layer)
        if draw(st.integers(0, 4)) == 0:
            layers.append(nn.ReLU())
        window = draw(st.sampled_from([None, None, (2, 2), (1, 3), (2, 1)]))
        if window is not None and all(n >= k for n, k in zip(shape[1:], window, strict=True)):
            layers.append(nn.MaxPool2d(window))
            shape = _shape_after(layers[-1], shape)
    head = draw(st.sampled_from(["none", "flatten", "mean"]))
    if head == "flatten":
        layers += [nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 5), nn.Dropout(), nn.Linear(5, 3)]
    if head == "mean":
        layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(shape[0], 3)]
    net = nn.Sequential(*layers).double().eval()
    return net, (channels, height, width)


@st.composite
def _layers(draw: st.DrawFn, shape: tuple[int, int, int], depth: int) -> tuple[nn.Module, tuple[int, int, int]]:
    kind = draw(st.sampled_from(["conv", "conv", "conv", "pool", "norm", "pad", "concat", "add", "chain", "scale"]))
    channels, height, width = shape
    if kind in ("conv", "pool"):
        return draw(_windows(shape, kind))
    if kind == "norm":
        return nn.BatchNorm2d(channels), shape
    if kind == "scale":
        return ByChannel(channels, draw(st.integers(0, 3))), shape
    if kind == "pad":
        left, right, top, bottom = (draw(st.integers(-1 if min(height, width) > 2 else 0, 2)) for _ in range(4))
        return nn.ZeroPad2d((left, right, top, bottom)), (channels, height + top + bottom, width + left + right)
    if kind == "chain" or depth == 0:
        first, middle = draw(_windows(shape, "conv"))
        second, end = draw(_windows(middle, "conv"))
        return nn.Sequential(first, nn.BatchNorm2d(middle[0]), second), end
    # Branches that keep height and width, whatever their kernels.
    outputs = [draw(st.integers(1, 4)) for _ in range(draw(st.integers(2, 3)))]
    if kind == "add":
        outputs = [draw(st.integers(1, 4))] * len(outputs)
    branches = {f"b{i}": draw(_same_size(channels, out)) for i, out in enumerate(outputs)}
    if kind == "concat":
        return Concat(**branches), (sum(outputs), height, width)
    if outputs[0] == channels:
        branches["shortcut"] = nn.Identity()
    return Add(**branches), (outputs[0], height, width)


@st.composite
def _windows(draw: st.DrawFn, shape: tuple[int, int, int], kind: str) -> tuple[nn.Module, tuple[int, int, int]]:
    channels, height, width = shape
    kernel = tuple(draw(st.integers(1, 7)) for _ in range(2))
    stride = tuple(draw(st.sampled_from([1, 1, 2, 3])) for _ in range(2))
    if kind == "pool":
        padding = tuple(draw(st.integers(0, k // 2)) for k in kernel)
        dilation = (1, 1)
    else:
        padding = tuple(draw(st.integers(0, 3)) for _ in range(2))
        dilation = tuple(draw(st.sampled_from([1, 1, 1, 2])) for _ in range(2))
    spans = [d * (k - 1) + 1 for d, k in zip(dilation, kernel, strict=True)]
    if any(n + 2 * p < s for n, p, s in zip((height, width), padding, spans, strict=True)):
        return nn.Conv2d(channels, 2, 1), (2, height, width)
    if kind == "pool":
        pool = nn.AvgPool2d(
            kernel, stride, padding, ceil_mode=draw(st.booleans()), count_include_pad=draw(st.booleans()),
            divisor_override=draw(st.sampled_from([None, None, 5])),
        )  # fmt: skip
        return pool, _shape_after(pool, shape)
    groups = draw(st.sampled_from([g for g in (1, 2, 3, 4) if channels % g == 0]))
    out = groups * draw(st.integers(1, 3))
    conv = nn.Conv2d(channels, out, kernel, stride, padding, dilation, groups, bias=draw(st.booleans()))
    return conv, _shape_after(conv, shape)


@st.composite
def _same_size(draw: st.DrawFn, channels: int, out: int) -> nn.Module:
    """A branch that keeps height and width."""
    widths = [channels, *(draw(st.integers(1, 4)) for _ in range(draw(st.integers(0, 2)))), out]
    convs: list[nn.Module] = []
    for before, after in pairwise(widths):
        convs.append(nn.Conv2d(before, after, draw(st.integers(1, 7)), padding="same"))
        if draw(st.integers(0, 2)) == 0:
            convs.append(nn.BatchNorm2d(after))
    if draw(st.booleans()):
        convs.insert(0, nn.AvgPool2d(3, stride=1, padding=1, count_include_pad=draw(st.booleans())))
    return nn.Sequential(*convs)


def _shape_after(layer: nn.Module, shape: tuple[int, int, int]) -> tuple[int, int, int]:
    _, channels, height, width = layer(torch.zeros(1, *shape)).shape
    return channels, height, width
