from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

import torch
from torch import nn


class Act(Enum):
    RELU = "relu"
    GELU = "gelu"


@dataclass
class Config:
    width: int = 14
    depth: int = 2
    act: Act = Act.GELU
    kernels: list[int] = field(default_factory=lambda: [3, 5])


cfg = Config(depth=3)


class Net(nn.Module):
    def __init__(self, config: Config = cfg) -> None:
        super().__init__()
        act = nn.GELU if config.act is Act.GELU else nn.ReLU
        layers: list[nn.Module] = [nn.Conv2d(1, config.width, config.kernels[1], padding=2)]
        for _ in range(config.depth):
            layers += [act(), nn.Conv2d(config.width, config.width, config.kernels[0], padding=1, groups=2)]
        self.body, self.fc = nn.Sequential(*layers), nn.Linear(config.width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.body(x).amax((2, 3)))


print(Net())
