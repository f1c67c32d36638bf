"""A net as a graph that can be rewritten: torch's operations on images, with the weights of the net itself."""

import operator
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import Dim

from branchwork.errors import NetError
from branchwork.tracing.costs import VIEWS, operation
from branchwork.tracing.graph import quiet
from branchwork.tracing.teach import failure
from branchwork.tracing.twin import blank

SymSize = torch.ops.aten.sym_size.int


def read_program(net: nn.Module, input_shape: Sequence[int]) -> fx.GraphModule:
    """The graph of `net` in its present mode, for any number of images C×H×W, over the parameters of `net` themselves.

    Raises `NetError` where the net fails on such images, or where its operations cannot be told beforehand.
    """
    # Two images, since torch.export takes a batch of one for a constant.
    image = blank(net, 2, input_shape).to(next((p.device for p in net.parameters()), "cpu"))
    with torch.random.fork_rng(devices=[]), quiet():
        try:
            program = torch.export.export(net, (image,), dynamic_shapes=({0: Dim("batch")},), strict=False)
        except Exception as reason:  # the net's own forward may raise anything, and so may export
            raise failure(net, input_shape) or _unreadable(net, reason) from reason
    signature = program.graph_signature
    names = signature.inputs_to_parameters | signature.inputs_to_buffers | signature.inputs_to_lifted_tensor_constants
    # Every name of a tensor that has several, as tied weights have.
    own = (net.named_parameters(remove_duplicate=False), net.named_buffers(remove_duplicate=False))
    held = {**dict(own[0]), **dict(own[1]), **program.constants}
    graph = fx.Graph()
    known: dict[fx.Node, fx.Node] = {}
    for node in program.graph.nodes:
        name = names.get(node.name)
        if node.op == "output":
            outputs = [known[part] for part in node.args[0]]
            if len(outputs) != 1:
                raise NetError(f"{type(net).__name__} gives {len(outputs)} tensors, and one is needed: the logits")
            graph.output(outputs[0])
        elif name is not None:
            known[node] = graph.get_attr(name)
        elif not (node.op == "call_function" and operation(node) in _CHECKS):
            known[node] = graph.node_copy(node, known.__getitem__)
        if node in known:
            known[node].meta = node.meta
    module = fx.GraphModule(held, graph)
    _make_functional(graph)
    _ask_input_for_batch(graph)
    for node in graph.nodes:
        if node.target is torch.ops.aten.view.default:  # which refuses what lies in memory with the channels last
            node.target = torch.ops.aten.reshape.default
    return module


# What torch.export adds to check its own assumptions.
_CHECKS = ("assert_scalar", "assert_tensor_metadata", "sym_constrain_range", "sym_constrain_range_for_size")


def _unreadable(net: nn.Module, reason: object) -> NetError:
    words = str(reason).strip().split("\n")[0]
    return NetError(
        f"{type(net).__name__} does not run the same operations on every batch of images, so its graph cannot be read "
        f"({words}): take branches on pixels out of its forward, and write x.size(0) for the number of images"
    )


def image_nodes(graph: fx.Graph) -> set[fx.Node]:
    """The nodes whose tensors hold something for each image, and not weights."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if _is_tensor(node) and (node.op == "placeholder" or any(parent in found for parent in node.all_input_nodes)):
            found.add(node)
    return found


def shape_of(node: fx.Node) -> tuple[int, ...]:
    """C×H×W or F of an image node: the shape without the batch."""
    return tuple(int(n) for n in node.meta["val"].shape[1:])


def size_of(node: fx.Node) -> tuple[int, int]:
    """Height and width; a vector is an image of one pixel."""
    shape = shape_of(node)
    return (shape[1], shape[2]) if len(shape) == 3 else (1, 1)


def elements(node: fx.Node) -> int:
    return prod(shape_of(node))


def parents(node: fx.Node, images: set[fx.Node]) -> Iterator[fx.Node]:
    return (parent for parent in node.all_input_nodes if parent in images)


def _is_tensor(node: fx.Node) -> bool:
    return isinstance(node.meta.get("val"), Tensor)


def _make_functional(graph: fx.Graph) -> None:
    """Operations in place on images, such as `relu_`, become those that give a new tensor."""
    images = image_nodes(graph)
    for node in list(graph.nodes):
        target: Any = node.target
        if node not in images or node.op != "call_function" or not target._schema.is_mutable:
            continue
        changed = node.args[0]
        name = str(target).removeprefix("aten.").split(".")
        functional = getattr(torch.ops.aten, name[0].rstrip("_"), None)
        shared = changed not in images or _is_view(changed) or any(map(_is_view, changed.users))
        if functional is None or not name[0].endswith("_") or shared:
            raise NetError(f"{name[0]} changes a tensor in place that others see: write it without the underscore")
        node.target = getattr(functional, name[1])
        order = {other: index for index, other in enumerate(graph.nodes)}
        later = {user for user in changed.users if order[user] > order[node]}
        changed.replace_all_uses_with(node, delete_user_cb=later.__contains__)


def _is_view(node: fx.Node) -> bool:
    """Whether `node` gives other tensors' memory: a view, or one part of a split."""
    return node.target is operator.getitem or (node.op == "call_function" and operation(node) in VIEWS)


def _ask_input_for_batch(graph: fx.Graph) -> None:
    """The number of images is that of the input, so that no tensor is kept only to be asked for it."""
    image = next(node for node in graph.nodes if node.op == "placeholder")
    asked = [node for node in graph.nodes if node.target is SymSize and node.args[1] == 0]
    if not asked:
        return
    with graph.inserting_after(image):
        batch = graph.call_function(SymSize, (image, 0))
        batch.meta = dict(asked[0].meta)
    for node in asked:
        node.replace_all_uses_with(batch)
        graph.erase_node(node)
