"""Independent references: torch's own counter of floating-point operations."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def torch_macs(net: nn.Module, shape: Sequence[int]) -> int:
    """Return the multiply-accumulates of `net`, in its mode, for one image C×H×W."""
    like = next(net.parameters(), torch.zeros(()))
    with FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, *shape, dtype=like.dtype))
    return counter.get_total_flops() // 2
