"""The lecture's two networks as a learner has them in a script: written from its facts, sharing nothing with ours."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class InceptionA(nn.Module):
    def __init__(self, in_channels):
        super().__init__()
        self.branch1x1 = nn.Conv2d(in_channels, 16, kernel_size=1)
        self.branch5x5_1 = nn.Conv2d(in_channels, 16, kernel_size=1)
        self.branch5x5_2 = nn.Conv2d(16, 24, kernel_size=5, padding=2)
        self.branch3x3_1 = nn.Conv2d(in_channels, 16, kernel_size=1)
        self.branch3x3_2 = nn.Conv2d(16, 24, kernel_size=3, padding=1)
        self.branch3x3_3 = nn.Conv2d(24, 24, kernel_size=3, padding=1)
        self.branch_pool = nn.Conv2d(in_channels, 24, kernel_size=1)

    def forward(self, x):
        one = self.branch1x1(x)
        five = self.branch5x5_2(self.branch5x5_1(x))
        three = self.branch3x3_3(self.branch3x3_2(self.branch3x3_1(x)))
        pooled = self.branch_pool(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return torch.cat([one, five, three, pooled], dim=1)


class InceptionNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, kernel_size=5)
        self.conv2 = nn.Conv2d(88, 20, kernel_size=5)
        self.incep1 = InceptionA(10)
        self.incep2 = InceptionA(20)
        self.mp = nn.MaxPool2d(2)
        self.fc = nn.Linear(1408, 10)

    def forward(self, x):
        n = x.size(0)
        x = F.relu(self.mp(self.conv1(x)))
        x = self.incep1(x)
        x = F.relu(self.mp(self.conv2(x)))
        x = self.incep2(x)
        return self.fc(x.view(n, -1))


class ResidualBlock(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, kernel_size=3, padding=1)

    def forward(self, x):
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class ResidualNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, kernel_size=5)
        self.conv2 = nn.Conv2d(16, 32, kernel_size=5)
        self.rblock1 = ResidualBlock(16)
        self.rblock2 = ResidualBlock(32)
        self.mp = nn.MaxPool2d(2)
        self.fc = nn.Linear(512, 10)

    def forward(self, x):
        n = x.size(0)
        x = self.rblock1(self.mp(F.relu(self.conv1(x))))
        x = self.rblock2(self.mp(F.relu(self.conv2(x))))
        return self.fc(x.view(n, -1))


class TooManyClasses(InceptionNet):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(1408, 11)


class NeedsAnArgument(nn.Module):
    def __init__(self, width):
        super().__init__()


class FailsInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1 // 0, 2, 3)


class TypeErrorInside(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 2)


class TiedNet(ResidualNet):
    """Uses one convolution under two names, and a constant that lies on the CPU."""

    def __init__(self):
        super().__init__()
        self.again = self.rblock1.conv1

    def forward(self, x):
        return super().forward(x + torch.zeros(1))


class Depends(ResidualNet):
    def forward(self, x):
        print("a word that must not be in the table")
        return super().forward(x if x.sum() > 0 else -x)


class Detached(ResidualNet):
    def forward(self, x):
        return super().forward(x).detach()


class NoParameters(nn.Module):
    def forward(self, x):
        return x.flatten(1)[:, :10]


class FailsLater(ResidualNet):
    calls = 0

    def forward(self, x):
        if 2 < len(x) < 1000:  # its graph is read with more
            FailsLater.calls += 1
        if FailsLater.calls == 2:
            raise ValueError("not today")
        return super().forward(x)


def make_residual():
    return ResidualNet()


def make_nothing():
    return None
