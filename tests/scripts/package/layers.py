from torch import nn

from .ops import *


class ConvBNReLU(nn.Sequential):
    def __init__(self, cin, cout, k, groups=1):
        super().__init__(
            nn.Conv2d(cin, cout, k, padding=same(k), groups=groups, bias=False), nn.BatchNorm2d(cout), nn.ReLU()
        )
