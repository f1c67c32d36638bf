"""A CUDA graph for a machine without a GPU: the operations of a step are recorded, and replayed on the same tensors.

As with a graph, what Python does between the operations is not done again: numbers, addresses and decisions stay what
they were at the recording. And as with a graph, an operation that gives Python a number is refused.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
# What needs a number from the device, or, with `lift_fresh`, sends one to it.
WAITING = {
    aten._local_scalar_dense, aten.is_nonzero, aten.equal, aten.nonzero, aten.masked_select, aten.unique_dim,
    aten._unique2, aten.repeat_interleave, aten.bincount, aten.lift_fresh,
}  # fmt: skip

INDEXING = {aten.index, aten.index_put, aten.index_put_}  # with a mask, they count its members


class Recorder(TorchDispatchMode):
    """Runs operations, and keeps them with their tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        masked = func.overloadpacket in INDEXING and any(t.dtype == torch.bool for t in tensors(args[1]))
        if masked or func.overloadpacket in WAITING:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        result = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, result))
        return result

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, result in self.calls:
            read = {place(tensor) for tensor in tensors((args, kwargs))}
            again = func(*args, **kwargs)
            for old, new in zip(tensors(result), tensors(again), strict=True):
                if place(old) not in read:  # neither a view nor changed in place
                    old.copy_(new)


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def place(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata


def record(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Stand in for `captured.record_graph`. Unlike a graph, it also does the work once."""
    with Recorder() as recorder:
        result = work()
    return recorder.replay, result
