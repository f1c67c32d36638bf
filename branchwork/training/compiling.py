"""Steps by torch.compile."""

from collections.abc import Collection
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn


class Compilable(nn.Module):
    """`net` through torch.compile for batches of `sizes` images, and as it is for others.

    For another size torch would compile it once more, for any size, which is slower for all sizes
    (docs/experiments/training.md).
    """

    def __init__(self, net: nn.Module, sizes: Collection[int]) -> None:
        super().__init__()
        self.net, self.sizes = net, sizes

    @cached_property  # which keeps it from being a second module with the same parameters
    def _compiled_net(self) -> Any:
        return torch.compile(self.net, dynamic=False)

    def forward(self, images: Tensor) -> Any:
        return self._compiled_net(images) if len(images) in self.sizes else self.net(images)


def is_of_compiler(reason: BaseException) -> bool:
    """Whether torch.compile could not compile; told by the module of the error, which takes a second to import."""
    return type(reason).__module__.startswith(("torch._dynamo", "torch._inductor"))
