"""Constants are computed once: in float64, whatever the type of the net."""

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree


def fold_constants(module: fx.GraphModule) -> None:
    """Everything in the graph of `module` that depends on its weights alone becomes a weight."""
    graph, known = module.graph, dict[fx.Node, Any]()
    kinds: set[torch.dtype] = set()
    with torch.no_grad():
        for node in list(graph.nodes):
            if node.op == "get_attr":
                known[node] = _attribute(module, str(node.target))
                if known[node].dim():  # a single number takes the type of what it meets
                    kinds.add(known[node].dtype)
            elif node.all_input_nodes and all(parent in known for parent in node.all_input_nodes):
                known[node] = _run(module, node, known)
    kind = next(
        (kind for kind in (torch.float64, torch.float32, torch.bfloat16, torch.float16) if kind in kinds), torch.float32
    )
    for node in [node for node in known if node.op != "get_attr"]:
        value = known[node]
        if isinstance(value, Tensor) and any(user not in known for user in node.users):
            name = f"{node.name}_constant"
            value = value.to(kind) if value.is_floating_point() else value
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


def _attribute(module: fx.GraphModule, name: str) -> Tensor:
    path, _, attribute = name.rpartition(".")
    found = getattr(module.get_submodule(path), attribute)
    assert isinstance(found, Tensor), f"{name} is a weight"
    return found


def _run(module: fx.GraphModule, node: fx.Node, known: dict[fx.Node, Any]) -> Any:
    args, keywords = pytree.tree_map_only(fx.Node, lambda parent: _exact(known[parent]), (node.args, node.kwargs))
    target: Any = module.get_submodule(str(node.target)) if node.op == "call_module" else node.target
    return target(*args, **keywords)


def _exact(value: Any) -> Any:
    return value.detach().double() if isinstance(value, Tensor) and value.is_floating_point() else value
