import sys

import torch
from torch import nn

if sys.version_info < (3, 6):
    raise RuntimeError("too old")

if torch.cuda.device_count() > 64:
    print("many GPUs")

    class Head(nn.Linear):
        def __init__(self):
            super().__init__(4000, 10)
else:
    print("few GPUs")

    class Head(nn.Linear):
        def __init__(self):
            super().__init__(4 * 49, 10)


try:
    from torch.nn import NoSuchLayer as Mish
except ImportError:
    Mish = nn.Mish


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c, self.act, self.h = nn.Conv2d(1, 4, 4, 4), Mish(), Head()

    def forward(self, x):
        return self.h(self.act(self.c(x)).flatten(1))
