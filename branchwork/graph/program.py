"""The graph of a net: its operations over its own weights, their names, and a way to run any part of it."""

import operator
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from branchwork.errors import NetError
from branchwork.graph.costs import op_name, tensor_of

Shape = tuple[int, ...]

SymSize = torch.ops.aten.sym_size.int


@dataclass(frozen=True, eq=False)
class Graph:
    """The operations of `net` on images of `input_shape` (C, H, W), as `read` returns them.

    `module` computes what the net computes, over the net's own parameters and buffers. Its nodes have in `meta` the
    module that called them (`path`), `line`, the file and line of the user's own code, `val`, a tensor
    without numbers for `images` images, and `shape`, that of the output for a single image, its batch of one included.
    `names` maps each node with a tensor, in the order of execution, to the name that people see.

    The graph is for any number of images, unless `images` is 1. `depends_on_pixels` is True if the operations depend on
    the pixels: these are those for a black image, and cannot be run. `changed` are the names of the attributes of the
    net that its forward changes. `obstacle` says why the graph must not take the place of the net: one of these two, or
    operations that change a tensor that others see.
    """

    net: nn.Module
    input_shape: Shape
    module: fx.GraphModule
    names: dict[fx.Node, str]
    images: int
    depends_on_pixels: bool
    changed: tuple[str, ...]
    obstacle: str | None
    _plans: dict[object, list[tuple[fx.Node, list[fx.Node]]]] = field(default_factory=dict, repr=False)

    @cached_property
    def image_nodes(self) -> set[fx.Node]:
        """The nodes whose tensor (or tensors, for a split) depends on the images."""
        return image_nodes(self.module.graph)

    @cached_property
    def input(self) -> fx.Node:
        """The node that stands for the images."""
        (images,) = (node for node in self.module.graph.nodes if node.op == "placeholder")
        assert isinstance(images, fx.Node)
        return images

    @property
    def outputs(self) -> tuple[fx.Node, ...]:
        """The tensors that the net returns, in the order of its tuple, list or dict."""
        return tuple(self.module.graph.output_node().all_input_nodes)

    @cached_property
    def nodes(self) -> dict[str, fx.Node]:
        """The node of each name; of a split tensor, the split itself. `input` are the images."""
        nodes = {"input": self.input}
        for node, name in self.names.items():
            nodes.setdefault(name, node)
        return nodes

    def name(self, node: fx.Node) -> str | None:
        """Return the name of a node, `input` for the images; None for weights and numbers."""
        return "input" if node is self.input else self.names.get(node)

    def check_runnable(self) -> None:
        """Raise `NetError` if the graph cannot stand for the net, or returns anything but one tensor."""
        if self.obstacle is not None:
            raise NetError(self.obstacle)
        assert self.images > 1, "read without `single`"
        if len(self.outputs) != 1:
            kind = type(self.net).__name__
            raise NetError(
                "{kind} returns {outputs} tensors, but one is needed: the logits", kind=kind, outputs=len(self.outputs)
            )

    def rewritable(self) -> fx.GraphModule:
        """Return a copy of `module` to be rewritten, over the same weights. Raises `NetError` if that is unsafe."""
        self.check_runnable()
        graph, copies = fx.Graph(), dict[fx.Node, fx.Node]()
        graph.output(graph.graph_copy(self.module.graph, copies))
        return fx.GraphModule(self.module, graph)

    def run(
        self,
        images: Tensor | None = None,
        *,
        given: Mapping[fx.Node, Any] | None = None,
        wanted: Sequence[fx.Node] | None = None,
    ) -> list[Any]:
        """Return the values of the `wanted` nodes, by default of the outputs, for `images` N×C×H×W.

        The values in `given` are taken as they are, and what only they would need is not computed: a net from a join
        on, one branch, a net with one tensor replaced. Each value is freed after its last use. `images` may be left
        out if nothing depends on them. Raises `NetError` where the graph cannot stand for the net.
        """
        if self.obstacle is not None:
            raise NetError(self.obstacle)
        values: dict[fx.Node, Any] = dict(given or {})
        if images is not None:
            values.setdefault(self.input, images)
        wanted = self.outputs if wanted is None else wanted
        key = (frozenset(given or ()), tuple(wanted))
        if key not in self._plans:
            self._plans[key] = self._plan(*key)
        for node, last_used in self._plans[key]:
            values[node] = self._compute(node, values)
            for other in last_used:
                values.pop(other, None)
        return [values[node] for node in wanted]

    def _plan(self, given: Collection[fx.Node], wanted: Collection[fx.Node]) -> list[tuple[fx.Node, list[fx.Node]]]:
        """The nodes to compute, in order, each with those whose values nothing needs after it."""
        needed, kept = set(wanted), set(wanted)
        steps: list[tuple[fx.Node, list[fx.Node]]] = []
        for node in reversed(self.module.graph.nodes):
            if node in needed and node not in given and node.op != "placeholder":
                last_used = [parent for parent in node.all_input_nodes if parent not in kept]
                kept.update(last_used)
                needed.update(node.all_input_nodes)
                steps.append((node, last_used))
        return steps[::-1]

    def _compute(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        if node.op == "get_attr":
            return operator.attrgetter(str(node.target))(self.module)
        function: Any = node.target
        return function(*fx.map_arg(node.args, values.__getitem__), **fx.map_arg(node.kwargs, values.__getitem__))


def image_nodes(graph: fx.Graph) -> set[fx.Node]:
    """Return the nodes whose tensor (or tensors, for a split) depends on the images."""
    nodes: set[fx.Node] = set()
    for node in graph.nodes:
        depends = node.op == "placeholder" or any(parent in nodes for parent in node.all_input_nodes)
        if depends and isinstance(node.meta.get("val"), Tensor | list | tuple):
            nodes.add(node)
    return nodes


def shape_of(node: fx.Node) -> Shape:
    """Return C×H×W or F of a node that depends on the images: its shape without the batch."""
    return tuple(int(n) for n in node.meta["val"].shape[1:])


def size_of(node: fx.Node) -> tuple[int, int]:
    """Return the height and width of a node; a vector is an image of one pixel."""
    shape = shape_of(node)
    return (shape[1], shape[2]) if len(shape) == 3 else (1, 1)


def elements(node: fx.Node) -> int:
    """Return how many numbers a node has per image."""
    return prod(shape_of(node))


def parents(node: fx.Node, images: Collection[fx.Node]) -> Iterator[fx.Node]:
    """Yield the inputs of `node` that depend on the images."""
    return (parent for parent in node.all_input_nodes if parent in images)


def module_of(net: nn.Module, node: fx.Node) -> tuple[str, bool]:
    """Return the path of the module that called an operation, and whether that is one of torch's own layers."""
    path = node.meta.get("path", "")
    module = net.get_submodule(path) if path else net
    return path, bool(path) and type(module).__module__.startswith("torch.nn.modules") and not list(module.children())


def name_nodes(net: nn.Module, graph: fx.Graph) -> dict[fx.Node, str]:
    """Return the name of each operation with a tensor in a graph of `net`, in order.

    The name is the path of the layer that called it; followed by the operation if a module's own `forward` called it
    (`incep1.cat`), and by `@2` at the second use. A part of a split has the name of its source.
    """
    names: dict[fx.Node, str] = {}
    uses: dict[str, int] = {}
    for node in graph.nodes:
        if node.op != "call_function" or tensor_of(node) is None:
            continue
        if node.target is operator.getitem:
            names[node] = names[node.args[0]]
            continue
        path, is_layer = module_of(net, node)
        op = op_name(node)
        name = path if is_layer else f"{path}.{op}" if path else op
        uses[name] = uses.get(name, 0) + 1
        names[node] = name if uses[name] == 1 else f"{name}@{uses[name]}"
    return names
