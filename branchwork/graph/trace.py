"""The trace of a net on one image: its operations and their costs, as rows for people."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import fx, nn

from branchwork.blocks import pair
from branchwork.graph.costs import VIEWS, argument, macs_of, op_name, tensor_of
from branchwork.graph.joins import Join, joins_of
from branchwork.graph.program import Graph, Shape, module_of
from branchwork.graph.read import read
from branchwork.graph.receptive_field import ReceptiveField, field_of, window_of
from branchwork.graph.untouched import alone


@dataclass(frozen=True)
class Operation:
    """One operation of a graph, for a single image.

    `name` is unique: the path of the layer that called it; with the operation if a module's own `forward` did
    (`incep1.cat`), and with `@2` at the second use. `path` is the path of that module, "" for the net itself. `inputs`
    are names; the net's input is `input`. `output_shape` leaves out the batch.

    `kernel`, `groups` and `channels`, those of the input, are a convolution's; elsewhere None, 1 and 0. `window` and
    `stride`, as height and width, are how much of the input one output reads and the step to the next; None if the
    operation mixes positions in another way. `receptive_field` is in pixels of the image, None if unknown.

    `parameters` counts those that no earlier operation uses, so that they add up. `macs` are multiply-accumulates, and
    `activation_bytes` is 0 for a view. `file` and `line` are in the user's own code.
    """

    name: str
    path: str
    op: str
    detail: str
    inputs: tuple[str, ...]
    output_shape: Shape
    kernel: tuple[int, int] | None
    groups: int
    channels: int
    window: tuple[int, int] | None
    stride: tuple[int, int] | None
    parameters: int
    macs: int
    activation_bytes: int
    receptive_field: tuple[int, int] | None
    file: str | None
    line: int | None


@dataclass(frozen=True)
class Trace:
    """What a net does to one image, in the order in which it runs.

    `outputs` are the names of the operations that the net returns. `parameters` counts all of the net's, also those in
    `unreached`, which no operation uses. `classes` has the class of each module by its path, "" for the net itself.
    """

    input_shape: Shape
    operations: tuple[Operation, ...]
    joins: tuple[Join, ...]
    outputs: tuple[str, ...]
    parameters: int
    weight_bytes: int
    unreached: tuple[str, ...]
    classes: dict[str, str]
    peak_activation_bytes: int
    depends_on_pixels: bool

    @property
    def macs(self) -> int:
        return sum(operation.macs for operation in self.operations)


def trace(net: nn.Module, input_shape: Sequence[int]) -> Trace:
    """Return the trace of `net`, in eval mode, for one image of `input_shape` (C, H, W).

    `net` is left as it was. If its operations depend on the pixels, the trace is that of a black image,
    and `depends_on_pixels` is True. Raises `NetError` if its forward fails.
    """
    return trace_graph(read(net, input_shape, single=True))


@alone()
def trace_graph(graph: Graph) -> Trace:
    """Return the trace of a net that has been read."""
    parameters = dict(graph.net.named_parameters())
    operations, unreached = _rows(graph, parameters)
    return Trace(
        input_shape=graph.input_shape,
        operations=tuple(operations),
        joins=tuple(joins_of(graph)),
        outputs=tuple(name for name in map(graph.name, graph.outputs) if name is not None),
        parameters=sum(parameter.numel() for parameter in parameters.values()),
        weight_bytes=sum(p.numel() * p.element_size() for p in parameters.values()),
        unreached=tuple(unreached),
        classes={path: type(module).__name__ for path, module in graph.net.named_modules()},
        peak_activation_bytes=_peak(operations, graph.input_shape),
        depends_on_pixels=graph.depends_on_pixels,
    )


def _rows(graph: Graph, parameters: Mapping[str, nn.Parameter]) -> tuple[list[Operation], dict[str, nn.Parameter]]:
    """Return the operations, and the parameters that none of them uses."""
    unreached = dict(parameters)
    fields = {graph.input: ReceptiveField.of_image(graph.input_shape[1:]) if len(graph.input_shape) == 3 else None}
    rows: list[Operation] = []
    for node, name in graph.names.items():
        if node.target is operator.getitem:
            fields[node] = fields.get(node.args[0])  # type: ignore[arg-type]
            continue
        op, output = op_name(node), tensor_of(node)
        assert output is not None, "only operations that give tensors have names"
        sources = [parent for parent in node.all_input_nodes if graph.name(parent) is not None]
        fields[node] = receptive_field = field_of(op, node, [fields.get(parent) for parent in sources])
        used = [str(parent.target) for parent in node.all_input_nodes if parent.op == "get_attr"]
        fresh = [parameter for key in used if (parameter := unreached.pop(key, None)) is not None]
        window, stride = window_of(op, node) or (None, None)
        shape = _single(node)
        file, line = node.meta.get("line") or (None, None)
        rows.append(
            Operation(
                name=name,
                path=module_of(graph.net, node)[0],
                op=op,
                detail=_detail(op, node),
                inputs=tuple(dict.fromkeys(str(graph.name(parent)) for parent in sources)),
                output_shape=shape[1:],
                kernel=_kernel(node) if op == "conv2d" else None,
                groups=argument(node, 6, 1) if op == "conv2d" else 1,
                channels=_single(node.args[0])[1] if op == "conv2d" else 0,
                window=window,
                stride=stride,
                parameters=sum(parameter.numel() for parameter in fresh),
                macs=macs_of(node) // (graph.images if node in graph.image_nodes else 1),
                activation_bytes=0 if op in VIEWS else prod(shape) * output.element_size(),
                receptive_field=receptive_field.size(graph.input_shape[1:]) if receptive_field is not None else None,
                file=file,
                line=line,
            )
        )
    return rows, unreached


def _single(node: Any) -> Shape:
    """Return the shape of an output, or the first of several, for a single image."""
    shape = node.meta["shape"]
    return tuple(shape[0]) if isinstance(shape, list) else tuple(shape)


def _detail(op: str, node: fx.Node) -> str:
    """Return what tells operations of one name apart: kernel, stride, padding; for a flattening, the product."""
    if op == "conv2d":
        return _geometry(_kernel(node), node, stride=3, padding=4, dilation=5, groups=6)
    if op in ("max_pool2d", "avg_pool2d"):
        return _geometry(argument(node, 1, ()), node, stride=2, padding=3)
    if op in ("view", "flatten"):
        before, after = _single(node.args[0])[1:], _single(node)[1:]
        if len(before) > len(after) == 1:
            return f"{'×'.join(map(str, before))} = {after[0]}"
    return ""


def _kernel(node: fx.Node) -> tuple[int, int]:
    return pair(_single(node.args[1])[2:])


def _geometry(kernel: Any, node: fx.Node, **positions: int) -> str:
    """Return `5×5, pad 2`: the kernel, and those arguments at `positions` that are not the default."""
    defaults = {"stride": kernel if "pool" in str(node.target) else 1, "padding": 0, "dilation": 1, "groups": 1}
    parts = ["×".join(map(str, pair(kernel)))]
    for name, position in positions.items():
        value = argument(node, position, None)
        if value is None or value == []:
            continue
        if isinstance(value, str) or pair(value) != pair(defaults[name]):
            label = "pad" if name == "padding" else name
            parts.append(f"{label} {value if isinstance(value, str | int) else _short(pair(value))}")
    return ", ".join(parts)


def _short(size: tuple[int, int]) -> str:
    return str(size[0]) if size[0] == size[1] else f"{size[0]}×{size[1]}"


def _peak(operations: Sequence[Operation], input_shape: Shape) -> int:
    """Return the most bytes of activations that are needed at one time, in float32, without gradients.

    A tensor is kept from the operation that makes it to the last one that reads it or a view of it.
    """
    source = {"input": "input"}
    size = {"input": 4 * prod(input_shape)}
    last = {"input": -1}
    for index, op in enumerate(operations):
        is_view = op.activation_bytes == 0 and op.inputs
        source[op.name] = source[op.inputs[0]] if is_view else op.name
        size[op.name] = op.activation_bytes
        for name in (op.name, *op.inputs):
            last[source[name]] = index
    freed: dict[int, int] = {}
    for name, index in last.items():
        freed[index] = freed.get(index, 0) + size[name]
    live = peak = size["input"]
    for index, op in enumerate(operations):
        live += size[op.name]
        peak = max(peak, live)
        live -= freed.get(index, 0)
    return peak
