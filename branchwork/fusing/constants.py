"""Weights of a net in eval mode: constants are computed once, in float64, and batch norm is folded where it can be.

Into dense convolutions and linear layers, batch norm goes with the rest of its affine segment (collapse.py). Here it
goes into grouped convolutions, and into the branches of a concatenation, where it can be folded then.
"""

from collections.abc import Collection
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from branchwork.fusing.passes import is_operation, is_single_use
from branchwork.graph.affine import LAYERS
from branchwork.graph.costs import argument, op_name
from branchwork.graph.program import image_nodes, shape_of

aten = torch.ops.aten

# What a batch norm behind it can be folded into.
_FOLDABLE = ("conv2d", "linear", "batch_norm", "cat")


def fold_constants(module: fx.GraphModule) -> None:
    """Replace everything that depends only on weights by one weight, of the dtype that its readers compute in."""
    graph, known = module.graph, dict[fx.Node, Any]()
    with torch.no_grad():
        for node in list(graph.nodes):
            if node.op == "get_attr":
                known[node] = _weight(module, str(node.target))
            elif node.all_input_nodes and all(parent in known for parent in node.all_input_nodes):
                known[node] = _run(module, node, known)
    for node in [node for node in known if node.op != "get_attr"]:
        value = known[node]
        if isinstance(value, Tensor) and any(user not in known for user in node.users):
            name = f"{node.name}_constant"
            value = value.to(_dtype(node, known)) if value.is_floating_point() else value
            # A kernel of one pixel may have the strides of another order, which exporters take for that of the images.
            module.register_buffer(name, value.clone(memory_format=torch.contiguous_format))
            with graph.inserting_before(node):
                constant = graph.get_attr(name)
            constant.meta["val"] = value.to("meta")
            node.replace_all_uses_with(constant, delete_user_cb=lambda user: user not in known)
        elif value is None:
            node.replace_all_uses_with(None, delete_user_cb=lambda user: user not in known)  # type: ignore[arg-type]
    graph.eliminate_dead_code()
    module.recompile()


def _dtype(node: fx.Node, known: Collection[fx.Node]) -> torch.dtype:
    """Return the dtype for a constant: that of the images which a layer multiplies by it, else that of its operation.

    A half convolution beside a float batch norm stays one.
    """
    reader = next(user for user in node.users if user not in known)
    images = [parent.meta["val"] for parent in reader.all_input_nodes if parent not in known and "val" in parent.meta]
    multiplied = reader.op == "call_module" or op_name(reader) in LAYERS
    dtype: torch.dtype = (images[0] if images and (multiplied or "val" not in node.meta) else node.meta["val"]).dtype
    return dtype


def _weight(module: fx.GraphModule, name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    weight = getattr(module.get_submodule(path), attribute)
    assert isinstance(weight, Tensor), f"{name} is a weight"
    return weight


def _run(module: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    args, kwargs = pytree.tree_map_only(fx.Node, lambda parent: _exact(known[parent]), (node.args, node.kwargs))
    target: Any = module.get_submodule(str(node.target)) if node.op == "call_module" else node.target
    return target(*args, **kwargs)


def _exact(value: Any) -> Any:
    return value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value


def norm_before_concat(graph: fx.Graph) -> None:
    """Move batch norm in eval mode into the branches of a concatenation, where it can be folded."""
    images = image_nodes(graph)
    norms = [node for node in graph.nodes if node in images and _is_norm(node)]
    while norms:
        norm = norms.pop()
        concat: Any = norm.args[0]
        if not is_single_use(concat, "cat") or concat.args[1:] not in ((1,), (-3,)):
            continue
        if all(any(is_single_use(part, op) for op in _FOLDABLE) for part in concat.args[0]):
            norms += _push(graph, norm)


def norm_into_groups(graph: fx.Graph) -> None:
    """Fold batch norm in eval mode into the weights of the grouped convolution before it."""
    images = image_nodes(graph)
    for norm in list(graph.nodes):
        if norm not in images or not _is_norm(norm):
            continue
        conv: Any = norm.args[0]
        if not is_single_use(conv, "conv2d") or argument(conv, 6, 1) == 1:
            continue
        _, scale, shift, mean, variance, _, _, eps, *_ = norm.args
        kernel, bias = conv.args[1], argument(conv, 2, None)
        with graph.inserting_before(conv):
            factor = _on_weights(graph, aten.rsqrt.default, _on_weights(graph, aten.add.Tensor, variance, eps))
            if scale is not None:
                factor = _on_weights(graph, aten.mul.Tensor, factor, scale)
            centred = (
                _on_weights(graph, aten.neg.default, mean)
                if bias is None
                else _on_weights(graph, aten.sub.Tensor, bias, mean)
            )
            folded = _on_weights(graph, aten.mul.Tensor, centred, factor)
            if shift is not None:
                folded = _on_weights(graph, aten.add.Tensor, folded, shift)
            column = _on_weights(graph, aten.reshape.default, factor, [-1, 1, 1, 1])
            conv.args = (conv.args[0], _on_weights(graph, aten.mul.Tensor, kernel, column), folded, *conv.args[3:])
        norm.replace_all_uses_with(conv)
        graph.erase_node(norm)


def _is_norm(node: fx.Node) -> bool:
    return is_operation(node, "batch_norm") and not node.args[5]


def _on_weights(graph: fx.Graph, op: Any, *arguments: Any) -> fx.Node:
    """Add an operation on weights, with the shape that it gives."""
    node = graph.call_function(op, arguments)
    node.meta["val"] = op(*(a.meta["val"] if isinstance(a, fx.Node) else a for a in arguments))
    return node


def _push(graph: fx.Graph, norm: fx.Node) -> list[fx.Node]:
    """Replace `norm` behind a concatenation by one norm in each branch, and return them."""
    concat: Any = norm.args[0]
    normed: list[fx.Node] = []
    start = 0
    with graph.inserting_before(norm):
        for part in concat.args[0]:
            channels = shape_of(part)[0]
            weights = [
                None if weight is None else _on_weights(graph, aten.narrow.default, weight, 0, start, channels)
                for weight in norm.args[1:5]
            ]
            normed.append(graph.call_function(norm.target, (part, *weights, *norm.args[5:])))  # type: ignore[arg-type]
            normed[-1].meta["val"] = part.meta["val"]
            start += channels
        joined = graph.call_function(concat.target, (normed, 1))
    joined.meta = dict(concat.meta)
    norm.replace_all_uses_with(joined)
    graph.erase_node(norm)
    graph.erase_node(concat)
    return normed
