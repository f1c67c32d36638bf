"""Part of a package: python -m package.net"""

from torch import nn

from package.ops import pooling as P

from . import layers
from .layers import ConvBNReLU
from .ops.pooling import GlobalPool


class SmallNet(nn.Module):
    def __init__(self, in_channels=3, num_classes=100):
        super().__init__()
        self.body = nn.Sequential(
            ConvBNReLU(in_channels, 16, 3), layers.ConvBNReLU(16, 16, 3, groups=4), P.Half(), ConvBNReLU(16, 32, 3)
        )
        self.pool = GlobalPool()
        self.fc = nn.Linear(32, num_classes)

    def forward(self, x):
        return self.fc(self.pool(self.body(x)))
