"""The tour of the page: the lecture's questions that a net can answer, each with the layer that answers it."""

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

# What a learner can still watch: a unit picture is run for each number that enters the affine tail.
_MOST_INPUTS = 2048


def steps_of(
    operations: Sequence[dict[str, Any]],
    weights: Sequence[Tensor],
    joins: Sequence[dict[str, Any]],
    tail: dict[str, Any] | None,
) -> Iterator[dict[str, Any]]:
    """Yield the steps that suit a net.

    Each has the names of its question and its words, the node to show, the figures in its words, and, where it needs
    them, the pixel to work out (`at`), what to ask the page (`ask`), and the branch to switch off (`off`).
    """
    stacked = [join["node"] for join in joins if operations[join["node"]]["op"] == "cat"]
    sums = [join for join in joins if operations[join["node"]]["op"] == "add"]
    kernels = {i: _kernel(op, weights) for i, op in enumerate(operations) if op["op"] == "conv2d"}
    shape = operations[stacked[0]]["shape"] if stacked else []
    before = [i for i in kernels if stacked and i < stacked[0] and operations[i]["shape"][1:] == shape[1:]]
    padded = [i for i in before if kernels[i] > 1]
    if padded:
        widest = max(padded, key=lambda i: (kernels[i], i))
        yield _step("stack", widest, at=[0, 0], channels=shape[0], side=shape[1], kernel=kernels[widest])
    elif sums:
        shape = operations[sums[0]["node"]]["shape"]
        yield _step("add", sums[0]["node"], at=[shape[1] // 2, shape[2] // 2], shape="×".join(map(str, shape)))
    flat = next((i for i, op in enumerate(operations) if op["op"] == "view" and len(op["shape"]) == 1), None)
    if flat is not None:
        maps = operations[operations[flat]["args"][0]["n"]]["shape"]
        yield _step("flat", flat, shape="×".join(map(str, maps)), count=operations[flat]["shape"][0])
    one = next((i for i, kernel in kernels.items() if kernel == 1 and operations[i]["shape"][1] > 1), None)
    if one is not None:
        shape = operations[one]["shape"]
        yield _step(
            "one", one, at=[shape[1] // 2, shape[2] // 2], inputs=weights[operations[one]["args"][1]["w"]].shape[1]
        )
    deep = [i for i in kernels if operations[i]["shape"][1] > 1]
    if deep:
        shape = operations[deep[-1]]["shape"]
        yield _step("field", deep[-1], at=[shape[1] // 2, shape[2] // 2])
    if joins:
        yield _step("branch", joins[-1]["node"], ask="worth")
    if sums:
        off = [join for join in sums if any(branch["name"] == "shortcut" for branch in join["branches"])]
        if off:
            yield _step("shortcut", off[0]["node"], off=f"{off[0]['node']}/shortcut")
    if tail is not None and tail["convolutions"] > 1 and tail["inputs"] <= _MOST_INPUTS:
        yield _step("collapse", tail["entry"], ask="collapse", **tail)


def _kernel(operation: dict[str, Any], weights: Sequence[Tensor]) -> int:
    *_, height, width = weights[operation["args"][1]["w"]].shape
    return int(max(height, width))


def _step(
    name: str, node: int, *, at: Sequence[int] = (), ask: str = "", off: str = "", **values: object
) -> dict[str, Any]:
    step = {"question": f"tour-{name}", "words": f"tour-{name}-words", "node": node, "values": values}
    return step | {key: value for key, value in (("at", at), ("ask", ask), ("off", off)) if value}
