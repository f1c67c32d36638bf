"""What the page knows of a net: its operations and weights, and numbers from torch that it checks itself by."""

import base64
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from branchwork.errors import ExportError
from branchwork.graph.costs import op_name
from branchwork.graph.program import Graph

# Operations that give the same numbers in another shape, or the numbers themselves.
_RESHAPES = {
    "view", "flatten", "unsqueeze", "squeeze", "unflatten", "clone", "dropout", "feature_dropout", "alpha_dropout",
    "alias", "detach", "identity",
}  # fmt: skip
# Those that kernels.js computes.
KERNELS = {
    "conv2d", "max_pool2d", "avg_pool2d", "adaptive_avg_pool2d", "adaptive_max_pool2d", "linear", "batch_norm", "relu",
    "relu6", "sigmoid", "tanh", "silu", "neg", "hardswish", "hardsigmoid", "leaky_relu", "elu", "gelu", "hardtanh",
    "clamp", "softmax", "log_softmax", "cat", "mean", "add", "sub", "mul", "div", "pad", "slice", "permute",
}  # fmt: skip
# Numbers of each operation's output that the page compares with torch's.
_SAMPLED = 16


def image_operations(graph: Graph) -> list[fx.Node]:
    """Return the input and the operations that depend on it, in order: what the page runs."""
    return [node for node in graph.module.graph.nodes if node in graph.image_nodes]


def operations_as_json(graph: Graph, name: str) -> tuple[list[dict[str, Any]], list[Tensor]]:
    """Return the operations on one image, and the weights that they name by number.

    Raises `ExportError` for operations that the page cannot compute.
    """
    nodes = image_operations(graph)
    missing = sorted({op_name(node) for node in nodes if node.op == "call_function"} - KERNELS - _RESHAPES)
    if missing:
        raise ExportError(
            "the page cannot compute {operations}, which {name} has: export it as onnx, or write it without them",
            name=name,
            operations=", ".join(missing),
        )
    weights: list[Tensor] = []
    numbers = {node: index for index, node in enumerate(nodes)}

    def argument(value: Any) -> Any:
        if isinstance(value, fx.Node):
            if value in numbers:
                return {"n": numbers[value]}
            weights.append(graph.run(wanted=[value])[0].detach())
            return {"w": len(weights) - 1}
        if isinstance(value, list | tuple):
            return [argument(item) for item in value]
        return value if isinstance(value, int | float | str | bool | None) else str(value)

    return [_operation(graph, node, argument) for node in nodes], weights


def _operation(graph: Graph, node: fx.Node, argument: Callable[[Any], Any]) -> dict[str, Any]:
    shape = [int(side) for side in node.meta["shape"][1:]]
    if node.op == "placeholder":
        return {"name": "input", "op": "input", "shape": shape, "args": []}
    op = op_name(node)
    if op in _RESHAPES:
        return {"name": graph.name(node), "op": "view", "shape": shape, "args": [argument(node.args[0]), shape]}
    options = [node.kwargs[key] for key in ("alpha", "approximate") if key in node.kwargs]
    return {"name": graph.name(node), "op": op, "shape": shape, "args": [*map(argument, node.args), *options]}


def encode(tensors: Sequence[Tensor], dtype: type[np.floating[Any]]) -> dict[str, Any]:
    """Return tensors as one base64 text of little-endian numbers, with the shape of each."""
    data = b"".join(tensor.float().cpu().numpy().astype(dtype).tobytes() for tensor in tensors)
    return {"shapes": [list(tensor.shape) for tensor in tensors], "data": base64.b64encode(data).decode()}


def sampled_outputs(graph: Graph, image: Tensor) -> list[dict[str, Any]]:
    """Return, for each operation, some numbers of its output for a normalised `image` C×H×W, as torch computes them."""
    generator = np.random.default_rng(0)
    with torch.no_grad():
        values = graph.run(image[None], wanted=image_operations(graph))
    samples = []
    for value in values:
        flat = value[0].flatten()
        chosen = generator.choice(flat.numel(), min(_SAMPLED, flat.numel()), replace=False)
        samples.append({"at": chosen.tolist(), "values": [float(flat[index]) for index in chosen]})
    return samples
