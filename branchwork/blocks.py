"""The two joins, and the lecture's blocks built on them.

A block is a set of named branches that read one input and meet in a join: `Concat` stacks their channels,
`Add` sums them. The joins know their branches and nothing of strides, norms or activations. The names of the
branches are module paths and state-dict keys: `incep1.b5.conv2.weight`.
"""

import math
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from branchwork.errors import NetError
from branchwork.language import say, times

# The layers that may change height and width.
SIZED = (nn.Conv2d, nn.AvgPool2d, nn.MaxPool2d)


class _Join(nn.Module):
    """Named branches that read one input. Subclasses say how the outputs meet."""

    def __init__(self, **branches: nn.Module) -> None:
        super().__init__()
        if not branches:
            raise NetError(f"{type(self).__name__} needs at least one branch: {type(self).__name__}(b1=nn.Conv2d(…))")
        for name, branch in branches.items():
            if not isinstance(branch, nn.Module):
                raise NetError(
                    f"the branch {name} is a {type(branch).__name__}, and a module is needed: nn.Identity() …"
                )
            self.add_module(name, branch)

    def branches(self) -> dict[str, nn.Module]:
        """Every branch by its name; one module that is several branches is there as often."""
        return {name: branch for name, branch in self._modules.items() if branch is not None}

    def _outputs(self, x: Tensor) -> dict[str, Tensor]:
        outputs = {name: branch(x) for name, branch in self.branches().items()}
        for name, output in outputs.items():
            if not isinstance(output, Tensor):
                raise NetError(f"the branch {name} gives a {type(output).__name__}, and a tensor is needed")
        return outputs

    def _size_advice(self, names: Iterable[str]) -> list[str]:
        """For each layer in these branches that changes height and width, what keeps them."""
        return [
            line
            for name in names
            for path, layer in self.branches()[name].named_modules(prefix=name)
            for line in size_changes(path, layer)
        ]

    def _refuse(self, x: Tensor, outputs: Mapping[str, Tensor], need: str, advice: str) -> NetError:
        width = max(map(len, outputs))
        shapes = "\n".join(f"  {name:<{width}}  {times(output.shape[1:])}" for name, output in outputs.items())
        kind = type(self).__name__
        return NetError(
            say(
                f"the branches of this {kind} do not fit: {need}.\n"
                f"  its input is {times(x.shape[1:])}; the branches give\n{shapes}\n{advice}",
                f"这个 {kind} 的分支合不到一起：{need}。\n"
                f"  输入是 {times(x.shape[1:])}，各分支给出\n{shapes}\n{advice}",
            )
        )


class Concat(_Join):
    """Branches stacked along channels: N×C×H×W in, N×(C₁+C₂+…)×H′×W′ out, in the order of the arguments.

    Every branch must give the same H′ and W′; `NetError` names the one that does not. The join of Inception
    (Szegedy et al. 2014, section 4) and DenseNet (Huang et al. 2017, section 3).
    """

    def forward(self, x: Tensor) -> Tensor:
        outputs = self._outputs(x)
        sizes = [tuple(output.shape[2:]) for output in outputs.values()]
        if any(size != sizes[0] for size in sizes):
            raise self._refuse(
                x,
                outputs,
                say("Concat needs equal height and width", "Concat 要求高和宽都相同"),
                self._advice(x, outputs),
            )
        return torch.cat(list(outputs.values()), dim=1)

    def _advice(self, x: Tensor, outputs: Mapping[str, Tensor]) -> str:
        """The padding or stride to change, for each branch whose size is not the one that most branches have."""
        sizes = [tuple(output.shape[2:]) for output in outputs.values()]
        same = tuple(x.shape[2:])
        usual = same if same in sizes else max(sizes, key=sizes.count)
        odd = [name for name, output in outputs.items() if tuple(output.shape[2:]) != usual]
        return "\n".join(self._size_advice(odd)) or say(
            "Change the odd branch so that all give one height and width.",
            "修改不一致的那条分支，使各分支的高和宽相同。",
        )


class Add(_Join):
    """Branches summed: N×C×H×W in, N×C′×H′×W′ out, which every branch must give alike.

    The join of residual nets (He et al. 2015, section 3.2): one branch is the residual F(x), the other the
    shortcut, `nn.Identity()` where F keeps the shape. `NetError` names the branch that does not fit.
    """

    def forward(self, x: Tensor) -> Tensor:
        outputs = self._outputs(x)
        shapes = [output.shape for output in outputs.values()]
        if any(shape != shapes[0] for shape in shapes):
            raise self._refuse(
                x,
                outputs,
                say("Add needs equal channels, height and width", "Add 要求通道数、高和宽都相同"),
                self._advice(x, outputs),
            )
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
                    f"Give the shortcut a 1×1 projection, {projection}, "
                    "or keep channels and stride in the other branch.",
                    f"给捷径加一个 1×1 投影：{projection}；或者让另一条分支保持通道数和步长。",
                )
            ]
        if stride == 1:
            lines += self._size_advice(others)
        return "\n".join(lines) or say(
            "Change the odd branch so that all give one shape.", "修改不一致的那条分支，使各分支的形状相同。"
        )


class InceptionA(Concat):
    """The lecture's Inception module: N×C×H×W in, N×88×H×W out, four branches and no activation anywhere.

    `b1` 1×1 to 16 · `b5` 1×1 to 16, 5×5 to 24 · `b3` 1×1 to 16, 3×3 to 24, 3×3 to 24 · `pool` average-pool 3
    (padding counted), 1×1 to 24; stacked in this order, 16+24+24+24 = 88 channels. `bottleneck` is what the 1×1 before
    the 5×5 and the double 3×3 give, 16 as the lecture has it; with 0 there is none.
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
    """The lecture's residual block: N×C×H×W in and out, relu(x + F(x)), F = 3×3, ReLU, 3×3, all with C channels.

    With `norm`, which the lecture's has not, a batch norm is in place of each bias, as in He et al. 2015 (section 3.4).
    """

    def __init__(self, channels: int, *, norm: bool = False) -> None:
        def layers(number: int) -> dict[str, nn.Module]:
            conv = nn.Conv2d(channels, channels, 3, padding=1, bias=not norm)
            return {f"conv{number}": conv} | ({f"norm{number}": nn.BatchNorm2d(channels)} if norm else {})

        super().__init__(residual=chain(**layers(1), relu=nn.ReLU(), **layers(2)), shortcut=nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x))


def chain(**modules: nn.Module) -> nn.Sequential:
    """One after the other, by name."""
    chain = nn.Sequential()
    for name, module in modules.items():
        chain.add_module(name, module)
    return chain


def size_changes(path: str, layer: nn.Module) -> list[str]:
    """Why the layer at `path` changes height and width, and what keeps them; nothing where it keeps them."""
    if not isinstance(layer, SIZED) or layer.padding == "same":
        return []
    kernel, stride, padding = (pair(getattr(layer, key)) for key in ("kernel_size", "stride", "padding"))
    dilation = pair(getattr(layer, "dilation", 1))
    span = tuple(d * (k - 1) for d, k in zip(dilation, kernel, strict=True))
    if stride != (1, 1):
        return [
            say(
                f"`{path}` has stride {short(stride)}: stride=1 keeps height and width.",
                f"`{path}` 的步长是 {short(stride)}：改成 stride=1 才能保持高和宽。",
            )
        ]
    if tuple(2 * p for p in padding) == span:
        return []
    if any(s % 2 for s in span):
        return [
            say(
                f"`{path}` has an even kernel, {short(kernel)}, which cannot keep height and width: take an odd one.",
                f"`{path}` 的卷积核边长 {short(kernel)} 是偶数，无法保持高和宽：请用奇数。",
            )
        ]
    keeps = short(tuple(s // 2 for s in span))
    k, p = short(kernel), short(padding)
    return [
        say(
            f"`{path}` has kernel {k} and padding {p}: padding={keeps} keeps height and width.",
            f"`{path}` 的核是 {k}，填充是 {p}：改成 padding={keeps} 才能保持高和宽。",
        )
    ]


def pair(value: int | str | tuple[int, ...]) -> tuple[int, ...]:
    """One number for both axes, or one for each, as two."""
    if value == "valid":
        return (0, 0)
    assert not isinstance(value, str), f"padding {value!r} is handled before"
    return (value, value) if isinstance(value, int) else tuple(value)


def short(numbers: tuple[int, ...]) -> str:
    return str(numbers[0]) if numbers[0] == numbers[1] else str(numbers)
