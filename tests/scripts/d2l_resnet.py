import torch
from d2l import torch as d2l
from torch import nn
from torch.nn import functional as F


class Res(nn.Module):
    """3x3, 3x3, and a 1x1 on the way around where the shape changes."""

    def __init__(self, cin, cout, stride=1):
        super().__init__()
        self.one = nn.Conv2d(cin, cout, 3, stride, 1)
        self.two = nn.Conv2d(cout, cout, 3, 1, 1)
        self.side = None if stride == 1 and cin == cout else nn.Conv2d(cin, cout, 1, stride)
        self.n1, self.n2 = nn.BatchNorm2d(cout), nn.BatchNorm2d(cout)

    def forward(self, X):
        Y = self.n2(self.two(F.relu(self.n1(self.one(X)))))
        Y += X if self.side is None else self.side(X)
        return F.relu(Y)


first = Res(3, 3)
first(torch.rand(4, 3, 6, 6)).shape


def stage(cin, cout, count):
    blocks = []
    for k in range(count):
        blocks.append(Res(cin if k == 0 else cout, cout, 2 if cin != cout and k == 0 else 1))
    return blocks


stem = nn.Sequential(nn.Conv2d(1, 8, 7, 2, 3), nn.BatchNorm2d(8), nn.ReLU())
s1 = nn.Sequential(*stage(8, 8, 2))
s2 = nn.Sequential(*stage(8, 16, 2))
net = nn.Sequential(stem, s1, s2, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 10))
train_iter, test_iter = d2l.load_data_fashion_mnist(64, resize=32)
net = net.to(d2l.try_gpu())
d2l.train_ch6(net, train_iter, test_iter, 2, 0.05, d2l.try_gpu())
