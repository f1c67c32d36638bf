"""A piece of an affine segment as one kernel and one bias, from the parameters of its layers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from branchwork.fusing.forms import Form, MapShape
from branchwork.fusing.kernel import Diagonal, Kernel, compose, total
from branchwork.fusing.rules import Reader, Weights, batch_norm, kernel_from, kernel_of, pads, pull, shifts
from branchwork.graph.affine import LAYERS
from branchwork.graph.costs import argument, macs_of, op_name
from branchwork.graph.program import shape_of, size_of


@dataclass(frozen=True)
class Piece:
    """A part of a segment that is computed at once: its nodes in order; the last one is its output.

    `entries` are the images that it reads, `weights` the other tensors, and `sizes` the inputs that are no tensors: the
    number of images.
    """

    nodes: tuple[fx.Node, ...]
    entries: tuple[fx.Node, ...]
    weights: tuple[fx.Node, ...]
    sizes: tuple[fx.Node, ...]

    @property
    def end(self) -> fx.Node:
        return self.nodes[-1]

    def kernels(self, weights: Weights) -> dict[fx.Node, Kernel]:
        """Return the kernel through which the end reads each entry. Raises `StridesDiffer` where no kernel can."""
        return _Composer(self, weights).kernels_of(self.end)

    def bias(self, weights: Weights) -> Tensor | None:
        """Return the end for entries of zeros, O×P×Q; None where that is zero as well."""
        like = weights(self.weights[0])
        # None stands for a tensor of zeros.
        values: dict[fx.Node, Any] = dict.fromkeys((*self.entries, *self.nodes))
        values.update((weight, weights(weight)) for weight in self.weights)
        values.update(dict.fromkeys(self.sizes, 1))
        for node in self.nodes:
            op, black = op_name(node), all(values[parent] is None for parent in self._images_of(node))
            if op == "batch_norm":  # not by torch, whose backward pass misreads gradients of one image
                scale, shift = batch_norm(node, weights)
                before = values[node.all_input_nodes[0]]
                values[node] = _everywhere(shift, node) if black else _along(scale, node) * before + _along(shift, node)
            elif not black or shifts(node):
                values[node] = _run(node, values, like)
            elif op in LAYERS:
                values[node] = _everywhere(values.get(argument(node, 2, None)), node)
        value = values[self.end]
        return None if value is None else value.view(-1, *size_of(self.end))

    def has_uniform_bias(self) -> bool:
        """Return whether `bias` is equal at all pixels, since only zeros are padded with zeros. False if in doubt."""
        black = set(self.entries)
        for node in self.nodes:
            if pads(node) and not black.issuperset(self._images_of(node)) and size_of(self.end) != (1, 1):
                return False
            biased = op_name(node) == "batch_norm" or shifts(node)
            biased = biased or (op_name(node) in LAYERS and argument(node, 2, None) is not None)
            if not biased and black.issuperset(self._images_of(node)):
                black.add(node)
        return True

    def bias_size(self) -> tuple[int, int] | None:
        """Return the height and width of `bias`: 1×1 where it is uniform whatever the weights, which random ones tell.

        None where the piece has no bias.
        """
        generator = torch.Generator().manual_seed(0)

        def weights(node: fx.Node) -> Tensor:
            return torch.rand(node.meta["val"].shape, dtype=torch.float64, generator=generator)

        with torch.no_grad():
            bias = self.bias(weights)
        if bias is None:
            return None
        uniform = torch.allclose(bias, bias[:, :1, :1].expand_as(bias), rtol=1e-9, atol=0)
        return (1, 1) if uniform else size_of(self.end)

    def bias_macs(self) -> int:
        """Return the multiply-accumulates of `bias`, at most."""
        return sum(macs_of(node) // int(node.meta["val"].shape[0]) for node in self.nodes)

    def shape(self, entry: fx.Node, kernel: Kernel) -> MapShape:
        channels, outputs = kernel.weight.shape[2:]
        dims = len(shape_of(entry)), len(shape_of(self.end))
        return MapShape(
            channels, size_of(entry), outputs, kernel.rows, kernel.columns,
            on_images=dims == (3, 3), to_vector=dims[1] == 1,
        )  # fmt: skip

    def _images_of(self, node: fx.Node) -> list[fx.Node]:
        return [parent for parent in node.all_input_nodes if parent in self.nodes or parent in self.entries]


def _run(node: fx.Node, values: Mapping[fx.Node, Any], like: Tensor) -> Tensor:
    def value(parent: fx.Node) -> Any:
        tensor = values.get(parent)
        return like.new_zeros(1, *shape_of(parent)) if tensor is None else tensor

    args, kwargs = fx.map_arg(node.args, value), fx.map_arg(node.kwargs, value)
    output: Tensor = node.target(*args, **kwargs)  # type: ignore[operator]
    return output


def _along(channels: Tensor, node: fx.Node) -> Tensor:
    return channels.view(1, -1, *[1] * (len(shape_of(node)) - 1))


def _everywhere(channels: Tensor | None, node: fx.Node) -> Tensor | None:
    return None if channels is None else _along(channels, node).expand(1, *shape_of(node))


class _Composer:
    """Composes the kernels of a piece, in an order that takes few products."""

    def __init__(self, piece: Piece, weights: Weights) -> None:
        self.piece, self.weights = piece, weights
        self.known: dict[fx.Node, dict[fx.Node, Kernel]] = {}

    def kernels_of(self, node: fx.Node) -> dict[fx.Node, Kernel]:
        """Return the kernel through which `node` reads each entry."""
        if node not in self.known:
            if op_name(node) in LAYERS:
                readers: list[tuple[fx.Node, Reader]] = [(node.all_input_nodes[0], kernel_of(node, self.weights))]
            else:
                like = self.weights(self.piece.weights[0])
                one = torch.ones(shape_of(node)[0], dtype=like.dtype, device=like.device)
                readers = list(pull(node, Diagonal(one, size_of(node)), self.weights))
            self.known[node] = self._to_entries(readers)
        return self.known[node]

    def _to_entries(self, readers: list[tuple[fx.Node, Reader]]) -> dict[fx.Node, Kernel]:
        """Follow readers of nodes within the piece back to its entries, and add up the kernels for each entry."""
        parts: dict[fx.Node, list[Kernel]] = {}
        while readers:
            node, reader = readers.pop()
            if node in self.piece.entries:
                parts.setdefault(node, []).append(kernel_from(reader))
            elif op_name(node) in LAYERS and isinstance(reader, Kernel) and self._is_smaller(reader, node):
                before = node.all_input_nodes[0]
                readers.append((before, compose(reader, kernel_of(node, self.weights))))
            elif op_name(node) in LAYERS or self._is_shared(node):
                for entry, kernel in self.kernels_of(node).items():
                    scaled = reader.of(kernel) if isinstance(reader, Diagonal) else compose(reader, kernel)
                    parts.setdefault(entry, []).append(scaled)
            else:
                readers += pull(node, reader, self.weights)
        return {entry: total(kernels) for entry, kernels in parts.items()}

    def _is_smaller(self, reader: Kernel, layer: fx.Node) -> bool:
        """Return whether composing `reader` with `layer` first takes fewer products than with all layers before."""
        weight = layer.all_input_nodes[1].meta["val"]
        channels = reader.weight.shape[2]
        return not self._is_shared(layer) and reader.weight.numel() // channels <= weight.numel() // weight.shape[1]

    def _is_shared(self, node: fx.Node) -> bool:
        """Return whether several nodes of the piece read `node`, so that it is composed once for all of them."""
        return sum(user in self.piece.nodes for user in node.users) > 1


class Merge(nn.Module):
    """Computes, from the parameters of a piece, its bias and what its forms multiply by.

    The bias is O×P×Q, or O×1×1 where it is uniform; None where the piece has none.
    """

    def __init__(self, piece: Piece, forms: Mapping[fx.Node, Form]) -> None:
        super().__init__()
        self._piece, self._forms = piece, dict(forms)
        self.bias_size = piece.bias_size()

    def forward(self, *weights: Tensor) -> tuple[Tensor | None, ...]:
        values = dict(zip(self._piece.weights, weights, strict=True))
        with torch.autocast(weights[0].device.type, enabled=False):
            kernels = self._piece.kernels(values.__getitem__)
            bias = self._piece.bias(values.__getitem__)
            if bias is not None and self.bias_size == (1, 1):
                bias = bias[:, :1, :1]
            return (bias, *(form.prepare(kernels[entry]) for entry, form in self._forms.items()))
