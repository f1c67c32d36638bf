"""A copy of a net that may be run, read and hooked without touching the net."""

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def make_twin(net: nn.Module) -> nn.Module:
    """A copy in eval mode that shares the tensors of `net`, so that a large net is not held twice."""
    own: dict[int, Any] = {id(p): nn.Parameter(p.detach(), p.requires_grad) for p in net.parameters()}
    own |= {id(b): b.detach() for b in net.buffers()}
    return copy.deepcopy(net, own).eval()


def blank(net: nn.Module, count: int, shape: Sequence[int]) -> Tensor:
    """So many black images C×H×W, of the type that the weights of `net` have, and where they are."""
    like = next((p for p in net.parameters() if p.is_floating_point()), torch.empty(0))
    return torch.zeros(count, *shape, dtype=like.dtype, device=like.device)
