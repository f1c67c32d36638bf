"""Errors that teach: where a forward fails, the shapes up to that point, what is wrong, and what to write instead."""

import difflib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import gcd, prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from branchwork.blocks import keeping_padding, options, pair, short, size_changes
from branchwork.errors import FAILURES, NetError, did_you_mean, with_line
from branchwork.graph.mend import Mend, handed_on, renamed, respelt, with_arguments
from branchwork.graph.record import RecordedCall, Recorder, call
from branchwork.graph.untouched import blank, borrowed, eval_copy, has_script
from branchwork.language import say, times

# How many lines before the failure are shown.
_SHOWN = 10


class ForwardError(NetError):
    """The forward of a net fails. `mends` are the lines that would put it right, where replacing them is enough."""

    mends: tuple[Mend, ...] = ()


def mends_of(error: NetError) -> tuple[Mend, ...]:
    """Return the lines that would put right what `error` says of a user's file, as far as replacing them is enough."""
    if isinstance(error, ForwardError):
        return error.mends
    mend = respelt(error.__cause__) if isinstance(error.__cause__, AttributeError) else None
    return () if mend is None else (mend,)


def failure(net: nn.Module, input_shape: Sequence[int], *, train: bool = False) -> ForwardError | None:
    """Return why `net` cannot take images C×H×W, for a learner to read; None if it can.

    The net runs in eval mode, or with `train` in its current mode, and is left as it was.
    """
    recorder = Recorder(net)
    images = blank(net, 2, input_shape)
    try:
        with borrowed(net, train=train), torch.no_grad(), recorder:
            call(net, images)
        return None
    except FAILURES as reason:
        case = _Case(net, recorder, reason, tuple(input_shape))
        problem = str(reason)
        if not isinstance(reason, NetError):  # a join has already said what does not fit
            problem = with_line(_diagnose(case), reason)
    error = ForwardError("{problem}\n{flow}", problem=problem, flow=_flow(recorder.calls, tuple(input_shape)))
    error.mends = tuple(mend for mend in case.mends if mend is not None)
    return error


def _flow(calls: Sequence[RecordedCall], input_shape: tuple[int, ...]) -> str:
    """Return the shapes up to the failure, one line per operation."""
    rows = [(say("input"), "", times(input_shape))]
    for recorded in calls:
        shape = "✗" if recorded.output is None else times(recorded.output.shape[1:])
        rows.append((recorded.path or "forward", recorded.op, shape))
    if len(rows) > _SHOWN:
        rows = [*rows[:1], ("…", "", ""), *rows[-_SHOWN:]]
    wide = [max(len(row[column]) for row in rows) for column in (0, 1)]
    return "\n".join(f"  {name:<{wide[0]}}  {op:<{wide[1]}}  {shape}".rstrip() for name, op, shape in rows)


@dataclass
class _Case:
    """Why the forward of `net` on images C×H×W failed, what ran before, and the lines that would mend it."""

    net: nn.Module
    recorder: Recorder
    reason: BaseException
    input_shape: tuple[int, ...]
    mends: list[Mend | None] = field(default_factory=list)

    @property
    def call(self) -> RecordedCall:
        """The operation that failed."""
        assert self.recorder.failed is not None, "asked for by the rules about operations"
        return self.recorder.failed

    @property
    def layer(self) -> nn.Module:
        """The module that called the operation that failed, the net itself if none of its layers did."""
        return self.net.get_submodule(self.call.path)

    def mend(self, path: str, **arguments: str) -> None:
        """Note that the layer at `path` should be made with these arguments."""
        self.mends.append(with_arguments(self.net, path, **arguments))


def _diagnose(case: _Case) -> str:
    """Return what is wrong and what to write, in one or two lines."""
    if case.recorder.passed is not None:
        path, name = case.recorder.passed
        return say(
            "`{path}` was given the module `{name}` itself, not its output: write self.{path}(self.{name}(x))",
            path=path,
            name=name,
        )
    if case.recorder.failed is not None:
        if lesson := _mixed_images(case):
            return lesson
        about = {
            "linear": _linear, "conv2d": _conv, "max_pool2d": _too_small, "avg_pool2d": _too_small, "cat": _cat,
            "add": _add, "view": _view,
        }.get(case.call.op)  # fmt: skip
        lesson = about(case) if about else None
        if lesson:
            return lesson
    return _python(case)


def _mixed_images(case: _Case) -> str | None:
    """Return what is wrong if an operation up to the failure changed the number of images in the batch."""
    for made in case.recorder.calls:
        x: Any = made.arguments[0] if made.arguments else None
        if made.op == "cat" and made.argument("dim", 1) in (None, 0) and all(map(_are_images, x)):
            return say("torch.cat joins along dim=0 here, the images of the batch: write dim=1 to join channels")
        if made.op == "view" and made.output is not None and _are_images(x) and made.output.shape[:1] != x.shape[:1]:
            return say(
                "this view turns {images} images into {rows} rows: write x.view(x.size(0), -1)",
                images=len(x),
                rows=times(tuple(made.output.shape[:1])),
            )
    return None


def _are_images(value: object) -> bool:
    return isinstance(value, Tensor) and value.dim() == 4


def _linear(case: _Case) -> str | None:
    x, weight = case.call.arguments[0], case.call.weight()
    name, (out, needed), shape = case.call.path or "linear", weight.shape, tuple(x.shape[1:])
    if len(shape) == 3:
        features = prod(shape)
        change = "" if features == needed else f", nn.Linear({features}, {out})"
        return say(
            "`{name}` expects a row of numbers per image, but {shape} arrives: flatten it first, "
            "x = x.view(x.size(0), -1){change}",
            name=name,
            shape=times(shape),
            change=change,
        )
    if shape[-1] == needed:
        return None
    layer = case.layer
    if isinstance(layer, nn.Linear):
        case.mend(case.call.path, in_features=str(shape[-1]))
    source = case.recorder.maker(x)
    before = tuple(source.arguments[0].shape[1:]) if source is not None and source.op in ("view", "flatten") else ()
    arrive = f"{times(before)} = {shape[-1]}" if prod(before) == shape[-1] else str(shape[-1])
    return say(
        "`{name}` expects {needed} features, but {arrive} arrive: nn.Linear({shape}, {out})",
        name=name,
        needed=needed,
        arrive=arrive,
        shape=shape[-1],
        out=f"{out}, bias=False" if isinstance(layer, nn.Linear) and layer.bias is None else out,
    )


def _conv(case: _Case) -> str | None:
    x, weight, layer = case.call.arguments[0], case.call.weight(), case.layer
    groups = layer.groups if isinstance(layer, nn.Conv2d) else 1
    name, needed, channels = case.call.path or "conv2d", weight.shape[1] * groups, x.shape[1]
    if x.dim() != 4:
        return say(
            "`{name}` expects images N×C×H×W, but {shape} arrives: it must come before the flattening",
            name=name,
            shape=times(tuple(x.shape)),
        )
    if channels == needed:
        return _too_small(case)
    out, kernel, unread = weight.shape[0], short(tuple(weight.shape[2:])), _unread(case, needed)
    if isinstance(layer, nn.Conv2d):
        # A depthwise convolution stays one.
        out, groups = (out // needed * channels, channels) if groups == needed > 1 else (out, gcd(groups, channels))
        kernel = options(layer, groups=groups)
        if layer.groups == 1 and unread is None and case.recorder.maker(x) is not None:  # else the images may be wrong
            case.mend(case.call.path, in_channels=str(channels))
    if case.recorder.maker(x) is None:
        text = say(
            "`{name}` expects {needed} channels, but the images have {channels}: "
            "nn.Conv2d({channels}, {out}, {kernel}), or images of {needed}×{input_shape}",
            name=name,
            needed=needed,
            channels=channels,
            out=out,
            kernel=kernel,
            input_shape=times(case.input_shape[1:]),
        )
    elif owner := _made_several_times(case):
        text = say(
            "`{name}` expects {needed} channels, but {arrives} arrives: build `{owner}` with {channels} input channels",
            name=name,
            needed=needed,
            arrives=times(tuple(x.shape[1:])),
            owner=owner,
            channels=channels,
        )
    else:
        text = say(
            "`{name}` expects {needed} channels, but {arrives} arrives: {layer}",
            name=name,
            needed=needed,
            arrives=times(tuple(x.shape[1:])),
            layer=f"nn.Conv2d({channels}, {out}, {kernel})",
        )
    if unread is None:
        return text
    if unread.line is not None and case.call.line is not None:
        case.mends.append(handed_on(unread.line, case.call.line, name.rpartition(".")[2]))
    fitting = _source(case.recorder, unread.output)
    return say("{text}. Or should it read the output of {fitting}, which nothing reads?", text=text, fitting=fitting)


def _made_several_times(case: _Case) -> str | None:
    """Return the path of the block that the failing layer is in, if the net has others of its class."""
    path = case.call.path.rpartition(".")[0]
    kind = type(case.net.get_submodule(path))
    alike = sum(type(module) is kind for module in case.net.modules())
    return path if path and alike > 1 and not kind.__module__.startswith("torch.") else None


def _unread(case: _Case, channels: int) -> RecordedCall | None:
    """Return the last operation that gave images of so many channels, if nothing has read them."""
    read = {id(value) for call in case.recorder.calls for value in pytree.tree_leaves(call.arguments)}
    for made in reversed(case.recorder.calls):
        if made.output is not None and made.output.dim() == 4 and made.output.shape[1] == channels:
            return made if id(made.output) not in read else None
    return None


def _too_small(case: _Case) -> str | None:
    if not any(text in str(case.reason) for text in ("greater than actual input size", "too small")):
        return None
    size, shape = times(case.input_shape[1:]), times(tuple(case.call.arguments[0].shape[1:]))
    smallest = _smallest_above(case.net, case.input_shape)
    remedy = (
        say("the smallest size that works is {smallest}×{smallest}", smallest=smallest)
        if smallest
        else say("use fewer poolings, or pad the convolutions")
    )
    return say(
        "images of {size} are too small: only {shape} is left at `{path}`; {remedy}",
        size=size,
        shape=shape,
        path=case.call.path or case.call.op,
        remedy=remedy,
    )


def _cat(case: _Case) -> str | None:
    tensors = [tensor for tensor in case.call.arguments[0] if isinstance(tensor, Tensor)]
    sizes = [tuple(tensor.shape[2:]) for tensor in tensors]
    usual = max(sizes, key=sizes.count)
    if any(tensor.dim() != 4 for tensor in tensors) or len(set(sizes)) == 1:
        return None
    parts = ", ".join(f"{_source(case.recorder, tensor)} {times(tuple(tensor.shape[1:]))}" for tensor in tensors)
    advice: list[str] = []
    fitting = [tensor for tensor, size in zip(tensors, sizes, strict=True) if size == usual]
    for tensor, size in zip(tensors, sizes, strict=True):
        if size != usual:
            advice += _advice(case, tensor, fitting)
    return say(
        "torch.cat needs equal height and width, but its inputs are {parts}. {advice}",
        parts=parts,
        advice=" ".join(advice),
    ).rstrip()


def _add(case: _Case) -> str | None:
    tensors = [tensor for tensor in case.call.arguments[:2] if isinstance(tensor, Tensor)]
    if len(tensors) < 2 or any(tensor.dim() != 4 for tensor in tensors):
        return None
    a, b = tensors
    # The shortcut is the part that was computed first.
    first, last = sorted(tensors, key=lambda tensor: _index(case.recorder, tensor))
    parts = " + ".join(f"{_source(case.recorder, part)} {times(tuple(part.shape[1:]))}" for part in (a, b))
    if a.shape[1] != b.shape[1]:
        stride = max(1, round(first.shape[2] / last.shape[2]))
        stride_text = f", stride={stride}" if stride > 1 else ""
        layer = f"nn.Conv2d({first.shape[1]}, {last.shape[1]}, 1{stride_text})"
        return say(
            "a sum needs equal channels, height and width, but here it is {parts}: "
            "give the shortcut a 1×1 projection, {layer}",
            parts=parts,
            layer=layer,
        )
    advice = _advice(case, last, [first]) or _advice(case, first, [last])
    return say(
        "a sum needs equal channels, height and width, but here it is {parts}. {advice}",
        parts=parts,
        advice=" ".join(advice),
    ).rstrip()


def _view(case: _Case) -> str | None:
    x = case.call.arguments[0]
    shape = tuple(x.shape[1:])
    if not x.is_contiguous():
        return say("view needs a contiguous tensor, and this one is not: write x.reshape(…) instead")
    return say(
        "the sizes in this view do not match: each image is {shape} = {count} here; write "
        "x.view(x.size(0), -1), and make the next layer nn.Linear({count}, …)",
        shape=times(shape),
        count=prod(shape),
    )


def _python(case: _Case) -> str:
    """Return the message of Python or torch, with a hint where learners often need one."""
    reason = case.reason
    lines = str(reason).strip().splitlines() or [""]
    message = lines[-1 if lines[0].startswith("The following operation failed in the TorchScript") else 0]
    if isinstance(reason, AttributeError):
        case.mends.append(respelt(reason))
        hint = did_you_mean(reason) or _misspelt(case, type(reason.obj), "__init__")
        return f"{type(reason).__name__}: {message}.{hint}"
    if isinstance(reason, NotImplementedError) and "forward" in message:
        cls = next((type(m) for m in case.net.modules() if f"[{type(m).__name__}]" in message), nn.Module)
        text = say("the class has no forward: define `def forward(self, x)`, at the same indentation as __init__")
        hint = _misspelt(case, cls, "forward")
        return say("{text}.{hint}", text=text, hint=hint) if hint else text
    if "got (NoneType" in message or "not NoneType" in message:
        return say(
            "an operation got None: the forward of a module before it returns nothing; end that forward with `return x`"
        )
    passed = re.search(r"must be Tensor, not (\w+)", message)
    if passed and hasattr(nn, passed[1]):
        return say(
            "a module ({passed}) was passed where its output was meant: call it, as in F.relu(self.conv1(x))",
            passed=passed[1],
        )
    return f"{type(reason).__name__}: {message}".removesuffix(": ")


def _misspelt(case: _Case, cls: type, method: str) -> str:
    """Return the end of a message about a method that a class lacks: which of its own is nearly called so, if any."""
    own = {name: member for name, member in vars(cls).items() if hasattr(member, "__code__")}
    close = difflib.get_close_matches(method, own, n=1, cutoff=0.8)
    if method in own or not close:
        return ""
    code = own[close[0]].__code__
    case.mends.append(renamed(code.co_filename, code.co_firstlineno, old=close[0], new=method))
    return say(
        " {name} has a method `{close}` ({file}, line {line}): did you mean `{method}`?",
        name=cls.__name__,
        close=close[0],
        file=code.co_filename,
        line=code.co_firstlineno,
        method=method,
    )


def _source(recorder: Recorder, tensor: Tensor | None) -> str:
    maker = recorder.maker(tensor)
    return "x" if maker is None else f"`{maker.path.split('.')[-1] or maker.op}`"


def _index(recorder: Recorder, tensor: Tensor) -> int:
    return next((index for index, call in enumerate(recorder.calls) if call.output is tensor), -1)


def _advice(case: _Case, tensor: Tensor, others: Sequence[Tensor]) -> list[str]:
    """Return which operation of the tensor's branch changed its size, and what would keep it.

    Operations that lead to `others` too come before the branches, and are not to blame.
    """
    before = [made for other in others for made in _line(case, other)]
    for made in _line(case, tensor):
        if made in before:
            break
        layer, pooling = case.net.get_submodule(made.path), _pooling(made)
        if pooling is not None and not isinstance(layer, type(pooling)):
            where = f"F.{made.op} ({made.path})" if made.path else f"F.{made.op}"
            if lines := size_changes(where, pooling):
                return lines
        elif made.path and (lines := size_changes(made.path, layer)):
            if pair(layer.stride) == (1, 1) and (padding := keeping_padding(layer)):
                case.mend(made.path, padding=short(padding))
            return lines
    return []


def _line(case: _Case, tensor: Tensor) -> Iterator[RecordedCall]:
    """Yield the operations that led to `tensor`, from the last one back to a join."""
    maker = case.recorder.maker(tensor)
    while maker is not None and maker.op not in ("cat", "add"):
        yield maker
        maker = case.recorder.maker(maker.arguments[0]) if maker.arguments else None


def _pooling(made: RecordedCall) -> nn.Module | None:
    """Return the layer that would pool as a call of F.max_pool2d or F.avg_pool2d does; None for other operations."""
    kind = {"max_pool2d": nn.MaxPool2d, "avg_pool2d": nn.AvgPool2d}.get(made.op)
    if kind is None:
        return None
    kernel, stride, padding = (made.argument(n, i) for i, n in enumerate(("kernel_size", "stride", "padding"), 1))
    return kind(kernel, stride or kernel, padding or 0)


def _smallest_above(net: nn.Module, input_shape: tuple[int, ...]) -> int | None:
    """Return the side of the smallest square image, larger than this one, that works; None if none up to 512 does."""
    if has_script(net):
        return None
    meta = eval_copy(net).to("meta")
    for side in range(min(input_shape[1:]) + 1, 513):
        try:
            with torch.no_grad():
                meta(torch.empty(2, input_shape[0], side, side, device="meta"))
            return side
        except FAILURES:  # still too small, or a flattened size is typed in
            continue
    return None
