"""The trace: what a net does to one image, operation by operation, joins and views included.

Built on `torch.export`, which reads an ordinary script without running it on real data: only shapes are computed.
"""

import linecache
import logging
import operator
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import Any

import torch
from torch import Tensor, fx, nn

from branchwork.graph.costs import VIEWS, Field, argument, field_of, macs_of, operation, pair, window_of
from branchwork.graph.record import recorded_graph
from branchwork.graph.teach import failure
from branchwork.graph.twin import blank, make_twin

Shape = tuple[int, ...]


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
class Branch:
    """One way into a join, by a name that no other of the join has.

    `nodes` are the names of its operations in order; a shortcut has none.
    """

    name: str
    nodes: tuple[str, ...]
    channels: int


@dataclass(frozen=True)
class Join:
    """A concatenation or a sum, where branches that read the same input meet."""

    node: str
    branches: tuple[Branch, ...]


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
    """The trace of `net`, in eval mode, for one image of `input_shape` (C, H, W).

    `net` is left as it was: mode, weights, hooks and random state. A net whose operations depend on the pixels is run
    once, on a black image, and `depends_on_pixels` says so. Raises `NetError` where its forward fails.
    """
    twin = make_twin(net)
    image = blank(net, 1, input_shape)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), quiet():
        try:
            program = torch.export.export(twin, (image,), strict=False)
        except Exception as reason:  # the net's own forward may raise anything, and so may export
            problem = failure(net, input_shape)
            if problem is not None:
                raise problem from reason
            return _Reader(twin, *recorded_graph(make_twin(net), image)).read(tuple(input_shape), True)
    signature = program.graph_signature
    others = {*signature.inputs_to_buffers, *signature.inputs_to_lifted_tensor_constants}
    return _Reader(twin, program.graph, dict(signature.inputs_to_parameters), others).read(tuple(input_shape), False)


@contextmanager
def quiet() -> Iterator[None]:
    """Without the traceback that torch logs where shapes do not fit: the error tells it better."""
    logger = logging.getLogger("torch._subclasses.fake_tensor")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


class _Reader:
    """Reads an exported program into a trace."""

    def __init__(self, net: nn.Module, graph: fx.Graph, weights: dict[str, str], others: set[str]) -> None:
        self.net = net
        self.graph = graph
        self.parameters = dict(net.named_parameters())
        self.weights = weights
        self.not_images = weights.keys() | others
        self.unseen = set(self.parameters)
        self.names = name_nodes(net, graph)
        self.fields: dict[fx.Node, Field | None] = {}

    def read(self, input_shape: Shape, depends_on_pixels: bool) -> Trace:
        nodes: list[Node] = []
        for node in self.graph.nodes:
            if node.op == "placeholder":
                if node.name not in self.not_images:
                    self.names[node] = "input"
                    self.fields[node] = Field.of_image(input_shape[1:]) if len(input_shape) == 3 else None
            elif node.op == "call_function" and node.target is operator.getitem:
                self.fields[node] = self.fields.get(node.args[0])
            elif node.op == "call_function" and _tensor(node) is not None:
                nodes.append(self._node(node, input_shape))
        return Trace(
            input_shape=input_shape,
            nodes=tuple(nodes),
            joins=tuple(self._joins(nodes)),
            outputs=tuple(self.names[n] for n in self.graph.output_node().all_input_nodes if n in self.names),
            parameters=sum(parameter.numel() for parameter in self.parameters.values()),
            weight_bytes=sum(p.numel() * p.element_size() for p in self.parameters.values()),
            unreached=tuple(name for name in self.parameters if name in self.unseen),
            classes={path: type(module).__name__ for path, module in self.net.named_modules()},
            peak_activation_bytes=_peak(nodes, input_shape),
            depends_on_pixels=depends_on_pixels,
        )

    def _node(self, node: fx.Node, input_shape: Shape) -> Node:
        op = operation(node)
        path, _ = _module(self.net, node)
        parents = [n for n in node.all_input_nodes if n in self.names]
        fields = [self.fields.get(parent) for parent in parents]
        self.fields[node] = field_of(op, node, fields)
        output = _tensor(node)
        assert output is not None, "only nodes with a tensor become rows"
        file, line = _place(node)
        own_field = self.fields[node]
        window, stride = window_of(op, node) or (None, None)
        return Node(
            name=self.names[node],
            path=path,
            op=op,
            detail=_detail(op, node),
            inputs=tuple(dict.fromkeys(self.names[parent] for parent in parents)),
            output_shape=tuple(int(n) for n in output.shape[1:]),
            kernel=_kernel(node) if op == "conv2d" else None,
            groups=argument(node, 6, 1) if op == "conv2d" else 1,
            channels=_value(node.args[0]).shape[1] if op == "conv2d" else 0,
            window=window,
            stride=stride,
            parameters=self._parameters(node),
            macs=macs_of(op, node),
            activation_bytes=0 if op in VIEWS else output.numel() * output.element_size(),
            field=own_field.size(input_shape[1:]) if own_field is not None else None,
            file=file,
            line=line,
        )

    def _parameters(self, node: fx.Node) -> int:
        """Numbers in the parameters that this node is the first to use."""
        count = 0
        for source in node.all_input_nodes:
            name = self.weights.get(source.name)
            if name is not None and name in self.unseen:
                self.unseen.discard(name)
                count += self.parameters[name].numel()
        return count

    def _joins(self, nodes: Sequence[Node]) -> Iterable[Join]:
        by_name = {node.name: node for node in nodes}
        ancestors: dict[str, set[str]] = {"input": {"input"}}
        for node in nodes:
            ancestors[node.name] = {node.name}.union(*(ancestors[i] for i in node.inputs))
        order = {name: index for index, name in enumerate(["input", *by_name])}
        for node in nodes:
            if node.op not in ("cat", "add") or len(node.inputs) < 2:
                continue
            shared = set.intersection(*(ancestors[name] for name in node.inputs))
            # Of two branches that share a part, such as two heads of one stem, the part belongs to neither.
            branches: list[Branch] = []
            for source in node.inputs:
                own = sorted(ancestors[source] - shared, key=order.__getitem__)
                shape = by_name[source].output_shape if source in by_name else ()
                name = _branch_name(node, own, beside_shortcut=bool(shared & set(node.inputs)))
                same = sum(branch.name.partition("@")[0] == name for branch in branches)
                name = f"{name}@{same + 1}" if same else name
                branches.append(Branch(name, tuple(own), shape[0] if shape else 0))
            yield Join(node.name, tuple(branches))


def name_nodes(net: nn.Module, graph: fx.Graph) -> dict[fx.Node, str]:
    """What `Node.name` calls each operation in an exported graph of `net` that gives a tensor, in order.

    One part of a split stands for its source, and has its name.
    """
    names: dict[fx.Node, str] = {}
    uses: dict[str, int] = {}
    for node in graph.nodes:
        if node.op != "call_function" or _tensor(node) is None:
            continue
        if node.target is operator.getitem:
            names[node] = names[node.args[0]]
            continue
        path, leaf = _module(net, node)
        op = operation(node)
        name = path if leaf else f"{path}.{op}" if path else op
        uses[name] = uses.get(name, 0) + 1
        names[node] = name if uses[name] == 1 else f"{name}@{uses[name]}"
    return names


def _module(net: nn.Module, node: fx.Node) -> tuple[str, bool]:
    """The path of the module that made this node, and whether that is a layer of torch's own."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next((path for path, _ in reversed(stack.values())), "")
    path = re.sub(r"@\d+", "", path)
    try:
        module = net.get_submodule(path)
    except AttributeError:
        return path, False
    return path, bool(path) and type(module).__module__.startswith("torch.nn.modules") and not list(module.children())


def _branch_name(join: Node, own: Sequence[str], *, beside_shortcut: bool) -> str:
    """What the names of a branch have in common, as seen from the block that joins it.

    `b5` of `incep1.b5.conv1` and `incep1.b5.conv2`; `branch5x5` of `incep1.branch5x5_1` and `incep1.branch5x5_2`. Where
    they have nothing in common, `residual` beside a shortcut, and the last of them elsewhere.
    """
    if not own:
        return "shortcut"
    parts = [name.removeprefix(f"{join.path}.").split(".") for name in own]
    whole = list(takewhile(lambda names: len(set(names)) == 1, zip(*parts, strict=False)))
    if whole:
        return ".".join(names[0] for names in whole)
    letters = takewhile(lambda letters: len(set(letters)) == 1, zip(*(names[0] for names in parts), strict=False))
    common = "".join(letter[0] for letter in letters).rstrip("_")
    return common or ("residual" if beside_shortcut else parts[-1][0])


def _tensor(node: fx.Node) -> Tensor | None:
    """The output of a node, the first one where it has several; None where it is no tensor."""
    value = node.meta.get("val")
    if isinstance(value, list | tuple) and value and isinstance(value[0], Tensor):
        return value[0]
    return value if isinstance(value, Tensor) else None


def _detail(op: str, node: fx.Node) -> str:
    """What tells one operation of a kind from another: kernel, stride, padding; for a view, the product."""
    output = _tensor(node)
    if op == "conv2d":
        return _geometry(_kernel(node), node, stride=3, padding=4, dilation=5, groups=6)
    if op in ("max_pool2d", "avg_pool2d"):
        return _geometry(argument(node, 1, ()), node, stride=2, padding=3)
    if op in ("view", "flatten") and output is not None:
        before = _value(node.args[0]).shape[1:]
        if len(before) > len(output.shape[1:]) == 1:
            return f"{'×'.join(map(str, before))} = {output.shape[1]}"
    return ""


def _kernel(node: fx.Node) -> tuple[int, int]:
    return pair(_value(node.args[1]).shape[2:])


def _value(argument: Any) -> Tensor:
    """The shape, type and so on of what a node of the graph gives, as a tensor without numbers."""
    value = argument.meta["val"]
    assert isinstance(value, Tensor), f"{argument} gives one tensor"
    return value


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


def _place(node: fx.Node) -> tuple[str | None, int | None]:
    """File and line of the innermost call that is not torch's own."""
    found: tuple[str | None, int | None] = (None, None)
    for file, line in re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace") or ""):
        if "/torch/" not in file and linecache.getline(file, int(line)):
            found = (file, int(line))
    return found


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
