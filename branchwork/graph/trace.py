"""The trace: what a net does to one image, operation by operation, with what each costs, as rows for people."""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import fx, nn

from branchwork.graph.costs import VIEWS, Field, argument, field_of, macs_of, operation, pair, window_of
from branchwork.graph.joins import Join, find_joins
from branchwork.graph.program import Graph, Shape, module_of, tensor_of
from branchwork.graph.read import read


@dataclass(frozen=True)
class Node:
    """One operation.

    `name` is unique: the path of the module that made it, with the operation where a module's own `forward` made it
    (`incep1.cat`) and `@2` for the second use. `path` is that module alone, "" for the net itself. `inputs` are names;
    the net's input is `input`. `output_shape` is without the batch. `kernel`, `groups` and `channels`, the ones that
    come in, are a convolution's, and None, 1 and 0 elsewhere. `window` is how much of its input one output sees, height
    and width, and `stride` the step from one output to the next; both are 1 but for convolutions and poolings, and None
    where an operation mixes positions in another way. `parameters` are those used here for the first time, so
    that they add up; `macs` are multiply-accumulates an image; `activation_bytes` is 0 for a view. `field` is the
    receptive field, height and width in pixels of the input, None where an operation mixes all of it. `file` and
    `line` are the place in the user's own code.
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
    field: tuple[int, int] | None
    file: str | None
    line: int | None


@dataclass(frozen=True)
class Trace:
    """A net's graph for one input size, in the order in which it runs.

    `outputs` are the names of the nodes that the net gives back. `parameters` are all of the net's, those in
    `unreached` included, which no operation uses. `classes` has the class of each module by its path, "" for the net
    itself.
    """

    input_shape: Shape
    nodes: tuple[Node, ...]
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
        return sum(node.macs for node in self.nodes)


def trace(net: nn.Module, input_shape: Sequence[int]) -> Trace:
    """Return the trace of `net`, in eval mode, for one image of `input_shape` (C, H, W).

    `net` is left as it was. If its operations depend on the pixels, they are those for a black image, and
    `depends_on_pixels` says so. Raises `NetError` if its forward fails.
    """
    return trace_graph(read(net, input_shape))


def trace_graph(graph: Graph) -> Trace:
    """Return the trace of a net that has been read."""
    parameters = dict(graph.net.named_parameters())
    nodes, unreached = _rows(graph, parameters)
    return Trace(
        input_shape=graph.input_shape,
        nodes=tuple(nodes),
        joins=tuple(find_joins(graph)),
        outputs=tuple(name for name in map(graph.name, graph.outputs) if name is not None),
        parameters=sum(parameter.numel() for parameter in parameters.values()),
        weight_bytes=sum(p.numel() * p.element_size() for p in parameters.values()),
        unreached=tuple(unreached),
        classes={path: type(module).__name__ for path, module in graph.net.named_modules()},
        peak_activation_bytes=_peak(nodes, graph.input_shape),
        depends_on_pixels=graph.depends_on_pixels,
    )


def _rows(graph: Graph, parameters: Mapping[str, nn.Parameter]) -> tuple[list[Node], dict[str, nn.Parameter]]:
    """Return the operations, and the parameters that none of them uses."""
    unreached = dict(parameters)
    fields = {graph.input: Field.of_image(graph.input_shape[1:]) if len(graph.input_shape) == 3 else None}
    rows: list[Node] = []
    for node, name in graph.names.items():
        if node.target is operator.getitem:
            fields[node] = fields.get(node.args[0])  # type: ignore[arg-type]
            continue
        op, output = operation(node), tensor_of(node)
        assert output is not None, "only operations that give tensors have names"
        sources = [parent for parent in node.all_input_nodes if graph.name(parent) is not None]
        fields[node] = seen = field_of(op, node, [fields.get(parent) for parent in sources])
        used = [str(parent.target) for parent in node.all_input_nodes if parent.op == "get_attr"]
        fresh = [parameter for key in used if (parameter := unreached.pop(key, None)) is not None]
        window, stride = window_of(op, node) or (None, None)
        shape = _single(node)
        file, line = node.meta.get("line") or (None, None)
        rows.append(
            Node(
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
                field=seen.size(graph.input_shape[1:]) if seen is not None else None,
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
    """What tells one operation of a kind from another: kernel, stride, padding; for a view, the product."""
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


def _geometry(kernel: Any, node: fx.Node, **places: int) -> str:
    """`5×5, padding 2`: the kernel, and what is not as usual. A pooling's usual stride is its kernel."""
    usual = {"stride": kernel if "pool" in str(node.target) else 1, "padding": 0, "dilation": 1, "groups": 1}
    words = ["×".join(map(str, pair(kernel)))]
    for word, place in places.items():
        value = argument(node, place, None)
        if value is None or value == []:
            continue
        if isinstance(value, str) or pair(value) != pair(usual[word]):
            words.append(f"{_SHORT.get(word, word)} {value if isinstance(value, str | int) else _short(pair(value))}")
    return ", ".join(words)


_SHORT = {"padding": "pad"}


def _short(numbers: tuple[int, int]) -> str:
    return str(numbers[0]) if numbers[0] == numbers[1] else f"{numbers[0]}×{numbers[1]}"


def _peak(nodes: Sequence[Node], input_shape: Shape) -> int:
    """The most bytes of activations that are needed at one time, in float32, without gradients.

    A tensor is kept from the operation that makes it to the last that reads it or a view of it.
    """
    source = {"input": "input"}
    size = {"input": 4 * int(torch.Size(input_shape).numel())}
    last: dict[str, int] = {"input": -1}
    for index, node in enumerate(nodes):
        is_view = node.activation_bytes == 0 and node.inputs
        source[node.name] = source[node.inputs[0]] if is_view else node.name
        size[node.name] = node.activation_bytes
        for name in (node.name, *node.inputs):
            last[source[name]] = index
    live, peak = size["input"], 0
    for index, node in enumerate(nodes):
        live += size[node.name]
        peak = max(peak, live)
        live -= sum(size[name] for name, end in last.items() if end == index)
    return peak
