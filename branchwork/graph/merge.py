"""One graph for any number of images, from what a net does with few and with many."""

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from branchwork.graph.program import Shape, SymSize


@dataclass(frozen=True)
class Reading:
    """What a net does with `count` images: a graph that takes them, and the `tensors` that it holds, by name."""

    count: int
    graph: fx.Graph
    tensors: Mapping[str, Tensor]


def merge(few: Reading, many: Reading) -> fx.Graph:
    """Return the one graph that both readings are, over the tensors of `few`.

    Raises `ValueError` if they differ in anything but the number of images.
    """
    merged = _Merged(few, many)
    for one, other in merged.partners.items():
        merged.add(one, other)
    if not merged.batch.users:
        merged.graph.erase_node(merged.batch)
    return merged.graph


class _Merged:
    """A graph that grows by a node of `few` and its partner of `many` at a time.

    `nodes` has its node for each of `few`, and `batch` is its number of images.
    """

    def __init__(self, few: Reading, many: Reading) -> None:
        self.few, self.many = few, many
        self.partners = dict(zip(few.graph.nodes, many.graph.nodes, strict=False))
        self.graph = fx.Graph()
        (images,) = few.graph.find_nodes(op="placeholder")
        self.nodes = {images: self.graph.placeholder("input")}
        self.batch = self.graph.call_function(SymSize, (self.nodes[images], 0))

    def add(self, one: fx.Node, other: fx.Node) -> None:
        """Add the node that is `one` in `few` and `other` in `many`. Raises `ValueError` if they differ."""
        if one.op != other.op or str(one.target) != str(other.target) or one.kwargs.keys() != other.kwargs.keys():
            raise self._difference(one.target, other.target)
        if one.op == "output":
            leaves = [self.nodes[leaf] for leaf in pytree.tree_leaves(one.args) if isinstance(leaf, fx.Node)]
            self.graph.output(leaves[0] if len(leaves) == 1 else tuple(leaves))
            return
        if one.op == "get_attr":
            self._check_constant(str(one.target))
            self.nodes[one] = self.graph.get_attr(str(one.target))
        elif one.op == "call_function":
            keywords = {key: self._argument(value, other.kwargs[key]) for key, value in one.kwargs.items()}
            assert callable(one.target), "a call has a function"
            arguments = tuple(self._argument(one.args, other.args))
            self.nodes[one] = self.graph.call_function(one.target, arguments, keywords)
        meta = other.meta  # no net has so many channels or pixels that they could be taken for images
        meta["shape"] = self._shape(one.meta.get("val"), other.meta.get("val"))
        self.nodes[one].meta = meta

    def _check_constant(self, name: str) -> None:
        """Raise `ValueError` if the tensor `name`, made or kept by the forward, depends on the number of images."""
        in_few, in_many = self.few.tensors[name], self.many.tensors[name]
        if in_few is not in_many and not torch.equal(in_few, in_many):
            raise ValueError(f"another constant with {self.few.count} images than with {self.many.count}")

    def _argument(self, one: Any, other: Any) -> Any:
        """Return the merged argument that is `one` with few images and `other` with many."""
        if isinstance(one, fx.Node) and self.partners[one] is other:
            return self.nodes[one]
        if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
            return [self._argument(*items) for items in zip(one, other, strict=True)]
        if type(one) is type(other) and one == other:
            return one
        factor = self._images(one, other)
        return self.batch if factor == 1 else self.graph.call_function(operator.mul, (self.batch, factor))

    def _shape(self, one: Any, other: Any) -> Shape | list[Any] | None:
        """Return the shape of an output for a single image, or those of several; None for a number."""
        if isinstance(one, Tensor):
            sizes = zip(one.shape, other.shape, strict=True)
            return tuple(int(a) if a == b else self._images(int(a), int(b)) for a, b in sizes)
        return (
            [self._shape(*items) for items in zip(one, other, strict=True)] if isinstance(one, list | tuple) else None
        )

    def _images(self, one: Any, other: Any) -> int:
        """Return how many times the number of images a number is that is `one` with few and `other` with many."""
        factor: int = one // self.few.count if type(one) is type(other) is int else 0
        if not factor or (one, other) != (factor * self.few.count, factor * self.many.count):
            raise self._difference(one, other)
        return factor

    def _difference(self, one: Any, other: Any) -> ValueError:
        return ValueError(f"{one} with {self.few.count} images, {other} with {self.many.count}")
