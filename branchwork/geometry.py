"""How layers change height and width, and what would preserve them."""

from torch import nn

from branchwork.language import say

# Layers that may change height and width.
SIZED = (nn.Conv2d, nn.AvgPool2d, nn.MaxPool2d)


def size_changes(path: str, layer: nn.Module) -> list[str]:
    """Say why the layer at `path` changes height and width, and what would preserve them; nothing if it does."""
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
                f"`{path}` has an even kernel, {short(kernel)}, which cannot keep height and width: use an odd one.",
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
    """Return a parameter of a layer, one number for both axes or one for each, as two numbers."""
    if value == "valid":
        return (0, 0)
    assert not isinstance(value, str), value
    return (value, value) if isinstance(value, int) else tuple(value)


def short(numbers: tuple[int, ...]) -> str:
    return str(numbers[0]) if numbers[0] == numbers[1] else str(numbers)
