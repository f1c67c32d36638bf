"""Whole blocks of channels for ONNX Runtime, whose convolutions fill blocks up by themselves and whose poolings do not.

It lays channels in blocks of a vector's length. A pooling of so many channels that a block is left unfilled makes it
bring the larger image before the pooling into plain order, and pool there. So the convolution before gets channels of
zeros, which it computes in any case, and they are cut off behind the pooling (LOG.md has what that gains).
"""

from typing import Any

import torch
from torch import fx
from torch.nn import functional as F

from branchwork.fusing.reorder import is_alone
from branchwork.graph.costs import argument, operation
from branchwork.graph.program import shape_of

# Numbers in the longest vectors of an x86 processor.
BLOCK = 16


def fill_blocks(graph: fx.Graph) -> None:
    """Whole blocks for each max pooling of a convolution, with a ReLU between them or not."""
    for pool in list(graph.nodes):
        if pool.op != "call_function" or operation(pool) != "max_pool2d":
            continue
        before: Any = pool.args[0]
        chain = [before.args[0], before, pool] if is_alone(before, "relu") else [before, pool]
        channels = shape_of(pool)[0]
        if is_alone(chain[0], "conv2d") and argument(chain[0], 6, 1) == 1 and channels % BLOCK:
            _fill(graph, chain, channels, -channels % BLOCK)


def _fill(graph: fx.Graph, chain: list[fx.Node], channels: int, missing: int) -> None:
    convolution, pool = chain[0], chain[-1]
    for place in (1, 2):
        weight: Any = argument(convolution, place, None)
        if weight is not None:
            sides = [0, 0] * (weight.meta["val"].dim() - 1) + [0, missing]
            with graph.inserting_before(convolution):
                filled = graph.call_function(torch.ops.aten.constant_pad_nd.default, (weight, sides))
            filled.meta["val"] = F.pad(weight.meta["val"], sides)
            convolution.update_arg(place, filled)
    for node in chain:
        count, _, *size = node.meta["val"].shape
        node.meta["val"] = node.meta["val"].new_empty(count, channels + missing, *size)
    _cut(graph, pool, channels)


def _cut(graph: fx.Graph, pool: fx.Node, channels: int) -> None:
    """Where the channels lie last, in which order blocks can be had at no cost; what goes back is often taken back."""
    users, found = list(pool.users), pool
    for operator, arguments in (
        (torch.ops.aten.permute.default, ([0, 2, 3, 1],)),
        (torch.ops.aten.narrow.default, (3, 0, channels)),
        (torch.ops.aten.permute.default, ([0, 3, 1, 2],)),
    ):
        with graph.inserting_after(found):
            after = graph.call_function(operator, (found, *arguments))
        after.meta["val"] = operator(found.meta["val"], *arguments)
        found = after
    for user in users:
        user.replace_input_with(pool, found)
