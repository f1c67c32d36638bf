"""The two joins, and the lecture's blocks built on them.

A block is a set of named branches that read the same input and meet in a join: `Concat` stacks their channels, `Add`
sums them. The joins know nothing of strides, norms or activations. A branch's name is part of its module path and of
its state-dict keys: `incep1.b5.conv2.weight`.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from branchwork.errors import NetError
from branchwork.language import say, times

# The layers that can change height and width.
SIZED = (nn.Conv2d, nn.AvgPool2d, nn.MaxPool2d)


class _Join(nn.Module):
    """Named branches that read the same input. Subclasses define how their outputs meet."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        if not branches:
            raise NetError("{name} needs at least one branch: {name}(b1=nn.Conv2d(…))", name=type(self).__name__)
        for name, branch in branches.items():
            if not isinstance(branch, nn.Module):
                raise NetError(
                    "branch {name} must be a torch.nn.Module, got a {type}", name=name, type=type(branch).__name__
                )
            self.add_module(name, branch)

    def branches(self) -> dict[str, nn.Module]:
        """Return the branches by name. A module used as several branches appears once per name."""
        return {name: branch for name, branch in self._modules.items() if branch is not None}

    def _outputs(self, x: Tensor) -> dict[str, Tensor]:
        outputs = {name: branch(x) for name, branch in self.branches().items()}
        for name, output in outputs.items():
            if not isinstance(output, Tensor):
                raise NetError(
                    "branch {name} must return a tensor, got a {type}", name=name, type=type(output).__name__
                )
        return outputs

    def _size_advice(self, names: Iterable[str]) -> list[str]:
        """Say, for each layer in these branches that changes height and width, how to keep them."""
        return [
            line
            for name in names
            for path, layer in self.branches()[name].named_modules(prefix=name)
            for line in size_changes(path, layer)
        ]

    def _mismatch(self, x: Tensor, outputs: Mapping[str, Tensor], need: str, advice: str) -> NetError:
        width = max(map(len, outputs))
        shapes = "\n".join(f"  {name:<{width}}  {times(output.shape[1:])}" for name, output in outputs.items())
        return NetError(
            "the branches of this {join} do not fit: {need}.\n"
            "  the input is {shape}; the branches return\n{shapes}\n{advice}",
            join=type(self).__name__,
            need=need,
            shape=times(x.shape[1:]),
            shapes=shapes,
            advice=advice,
        )


class Concat(_Join):
    """A concatenation of branches along channels, in the order of the arguments: N×C×H×W in, N×(C₁+C₂+…)×H′×W′ out.

    All branches must return the same H′ and W′; otherwise `NetError` shows every shape and what to change. The join of
    Inception (Szegedy et al. 2014, section 4) and DenseNet (Huang et al. 2017, section 3).
    """

    def forward(self, x: Tensor) -> Tensor:
        outputs = self._outputs(x)
        sizes = [tuple(output.shape[2:]) for output in outputs.values()]
        if any(size != sizes[0] for size in sizes):
            raise self._mismatch(x, outputs, say("Concat needs equal height and width"), self._advice(x, outputs))
        return torch.cat(list(outputs.values()), dim=1)

    def _advice(self, x: Tensor, outputs: Mapping[str, Tensor]) -> str:
        """Say which padding or stride to change in each branch whose size differs from the input or from most."""
        sizes = [tuple(output.shape[2:]) for output in outputs.values()]
        same = tuple(x.shape[2:])
        usual = same if same in sizes else max(sizes, key=sizes.count)
        odd = [name for name, output in outputs.items() if tuple(output.shape[2:]) != usual]
        return "\n".join(self._size_advice(odd)) or say(
            "Change the odd branch so that all have the same height and width."
        )


class Add(_Join):
    """A sum of branches: N×C×H×W in, N×C′×H′×W′ out.

    All branches must return the same shape; otherwise `NetError` shows every shape and what to change. The join of
    residual nets (He et al. 2015, section 3.2): one branch is the residual F(x), the other the shortcut, which is
    `nn.Identity()` if F keeps the shape.
    """

    def forward(self, x: Tensor) -> Tensor:
        outputs = self._outputs(x)
        shapes = [output.shape for output in outputs.values()]
        if any(shape != shapes[0] for shape in shapes):
            need = say("Add needs equal channels, height and width")
            raise self._mismatch(x, outputs, need, self._advice(x, outputs))
        total, *others = outputs.values()
        for other in others:
            total = total + other
        return total

    def _advice(self, x: Tensor, outputs: Mapping[str, Tensor]) -> str:
        shortcut = [name for name, branch in self.branches().items() if isinstance(branch, nn.Identity)]
        others = {name: output for name, output in outputs.items() if name not in shortcut}
        layers = [layer for name in others for layer in self.branches()[name].modules()]
        stride = math.prod(pair(layer.stride)[0] for layer in layers if isinstance(layer, SIZED))
        out = next(iter(others.values())).shape[1] if others else x.shape[1]
        lines = []
        if shortcut and (stride > 1 or x.shape[1] != out):
            step = f", stride={stride}" if stride > 1 else ""
            projection = f"{shortcut[0]}=nn.Conv2d({x.shape[1]}, {out}, 1{step})"
            lines = [
                say(
                    "Give the shortcut a 1×1 projection, {projection}, "
                    "or keep channels and stride in the other branch.",
                    projection=projection,
                )
            ]
        if stride == 1:
            lines += self._size_advice(others)
        return "\n".join(lines) or say("Change the odd branch so that all have the same shape.")


class InceptionA(Concat):
    """The lecture's Inception module: N×C×H×W in, N×88×H×W out, four branches and no activation anywhere.

    `b1` 1×1 to 16 · `b5` 1×1 to 16, 5×5 to 24 · `b3` 1×1 to 16, 3×3 to 24, 3×3 to 24 · `pool` average-pool 3
    (counting the padding), 1×1 to 24; stacked in this order, 16+24+24+24 = 88 channels. `bottleneck` is the number of
    channels behind the 1×1 before the 5×5 and before the double 3×3, 16 in the lecture; 0 leaves the 1×1 out.
    """

    def __init__(self, in_channels: int, bottleneck: int = 16) -> None:
        def reduced() -> dict[str, nn.Module]:
            return {"conv1": nn.Conv2d(in_channels, bottleneck, 1)} if bottleneck else {}

        width = bottleneck or in_channels
        super().__init__(
            b1=nn.Conv2d(in_channels, 16, 1),
            b5=chain(**reduced(), conv2=nn.Conv2d(width, 24, 5, padding=2)),
            b3=chain(
                **reduced(),
                conv2=nn.Conv2d(width, 24, 3, padding=1),
                conv3=nn.Conv2d(24, 24, 3, padding=1),
            ),
            pool=chain(pool=nn.AvgPool2d(3, stride=1, padding=1), conv=nn.Conv2d(in_channels, 24, 1)),
        )

    out_channels = 16 + 24 + 24 + 24


class ResidualBlock(Add):
    """The lecture's residual block, relu(x + F(x)) with F = 3×3, ReLU, 3×3: N×C×H×W in and out.

    With `norm`, which the lecture does not use, a batch norm replaces each bias (He et al. 2015, section 3.4).
    """

    def __init__(self, channels: int, *, norm: bool = False) -> None:
        def layers(number: int) -> dict[str, nn.Module]:
            conv = nn.Conv2d(channels, channels, 3, padding=1, bias=not norm)
            return {f"conv{number}": conv} | ({f"norm{number}": nn.BatchNorm2d(channels)} if norm else {})

        super().__init__(residual=chain(**layers(1), relu=nn.ReLU(), **layers(2)), shortcut=nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


def chain(**modules: nn.Module) -> nn.Sequential:
    """Return a sequential of named modules."""
    chain = nn.Sequential()
    for name, module in modules.items():
        chain.add_module(name, module)
    return chain


def size_changes(path: str, layer: nn.Module) -> list[str]:
    """Say how the layer at `path` changes height and width and how to keep them; empty if it keeps them."""
    if not isinstance(layer, SIZED) or layer.padding == "same":
        return []
    kernel, stride, padding = (pair(getattr(layer, key)) for key in ("kernel_size", "stride", "padding"))
    if stride != (1, 1):
        return [say("`{path}` has stride {stride}: stride=1 keeps height and width.", path=path, stride=short(stride))]
    keeps = keeping_padding(layer)
    if keeps == padding:
        return []
    if keeps is None:
        return [
            say(
                "`{path}` has an even kernel, {kernel}, which cannot keep height and width: use an odd one.",
                path=path,
                kernel=short(kernel),
            )
        ]
    k, p = short(kernel), short(padding)
    return [
        say(
            "`{path}` has kernel {k} and padding {p}: padding={keeps} keeps height and width.",
            path=path,
            k=k,
            p=p,
            keeps=short(keeps),
        )
    ]


def keeping_padding(layer: nn.Module) -> tuple[int, int] | None:
    """Return the padding with which a layer of `SIZED` keeps height and width at stride 1; None for an even kernel."""
    kernel, dilation = pair(layer.kernel_size), pair(getattr(layer, "dilation", 1))
    height, width = (d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    return None if height % 2 or width % 2 else (height // 2, width // 2)


def options(layer: nn.Conv2d, **changes: int) -> str:
    """Return what follows the channels where a convolution is made, with `changes`: `5, padding=2, bias=False`."""
    usual = {"stride": (1, 1), "padding": (0, 0), "dilation": (1, 1), "groups": 1, "padding_mode": "zeros"}
    values = {name: getattr(layer, name) for name in usual} | {"bias": layer.bias is not None} | changes
    texts = {name: short(value) if isinstance(value, tuple) else repr(value) for name, value in values.items()}
    others = (f"{name}={text}" for name, text in texts.items() if values[name] != usual.get(name, True))
    return ", ".join([short(pair(layer.kernel_size)), *others])


def pair(value: Any) -> tuple[int, int]:
    """Return height and width from one number for both or one for each; the padding `valid` is none."""
    if value == "valid":
        return (0, 0)
    assert not isinstance(value, str), f"padding {value!r} must be resolved first"
    numbers = [value] if isinstance(value, int) else list(value)
    return int(numbers[0]), int(numbers[-1])


def short(numbers: tuple[int, ...]) -> str:
    """Write a number for each axis as one number if they are equal."""
    return str(numbers[0]) if numbers[0] == numbers[1] else str(numbers)
