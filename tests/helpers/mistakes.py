"""Mistakes that learners make: one class for each, a net that is right except for one thing."""

import torch
import torch.nn as nn
import torch.nn.functional as F


class Right(nn.Module):
    """The net before anything went wrong: 1×28×28 → 20×4×4 → 320 → 10."""

    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, kernel_size=5)
        self.conv2 = nn.Conv2d(10, 20, kernel_size=5)
        self.mp = nn.MaxPool2d(2)
        self.fc = nn.Linear(320, 10)

    def convolve(self, x):
        x = F.relu(self.mp(self.conv1(x)))
        return F.relu(self.mp(self.conv2(x)))

    def forward(self, x):
        x = self.convolve(x)
        x = x.view(x.size(0), -1)
        return self.fc(x)


class WrongLinear(Right):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(300, 10)


class NotFlattened(Right):
    def forward(self, x):
        return self.fc(self.convolve(x))


class WrongView(Right):
    def forward(self, x):
        x = self.convolve(x)
        return self.fc(x.view(x.size(0), 300))


class MixedBatch(Right):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(160, 10)

    def forward(self, x):
        return self.fc(self.convolve(x).view(-1, 160))


class WrongChannels(Right):
    def __init__(self):
        super().__init__()
        self.conv2 = nn.Conv2d(16, 20, kernel_size=5)


class ColourFirst(Right):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 10, kernel_size=5)


class ModulePassed(Right):
    def convolve(self, x):
        x = F.relu(self.mp(self.conv1))
        return F.relu(self.mp(self.conv2(x)))


class ModuleToFunction(Right):
    def convolve(self, x):
        x = F.relu(self.conv1)
        return F.relu(self.mp(self.conv2(x)))


class TooSmall(Right):
    def __init__(self):
        super().__init__()
        self.conv3 = nn.Conv2d(20, 30, kernel_size=5)
        self.fc = nn.Linear(30, 10)

    def forward(self, x):
        x = F.relu(self.conv3(self.convolve(x)))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class WithOptions(Right):
    """What a mend must repeat."""

    def __init__(self):
        super().__init__()
        self.conv2 = nn.Conv2d(16, 20, kernel_size=5, padding=2, dilation=2, bias=False)


class WithoutBias(Right):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(300, 10, bias=False)


class NoReturn(Right):
    def forward(self, x):
        super().forward(x)


class Misspelt(Right):
    def convolve(self, x):
        x = F.relu(self.mp(self.conv1(x)))
        return F.relu(self.mp(self.conv_2(x)))


class MisspeltShort(Right):
    def convolve(self, x):
        x = F.relu(self.ap(self.conv1(x)))
        return F.relu(self.mp(self.conv2(x)))


class MisspeltMethod(Right):
    def forward(self, x):
        x = self.convolve(x)
        return self.fc(x.veiw(x.size(0), -1))


class MisspeltForward(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(784, 10)

    def forwad(self, x):
        return self.fc(x.view(x.size(0), -1))


class MisspeltInit(nn.Module):
    def __int__(self):
        super().__init__()
        self.fc = nn.Linear(784, 10)

    def forward(self, x):
        return self.fc(x.view(x.size(0), -1))


class TwoOutputs(Right):
    def forward(self, x):
        return super().forward(x), x


class TooManyClasses(Right):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(320, 12)


class ConvAfterFlatten(Right):
    def forward(self, x):
        x = F.relu(self.mp(self.conv1(x)))
        x = x.view(x.size(0), -1)
        return self.fc(self.conv2(x))


class ForwardOutside(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(784, 10)

        def forward(self, x):
            return self.fc(x.view(x.size(0), -1))


class NoSuper(nn.Module):
    def __init__(self):
        self.fc = nn.Linear(784, 10)

    def forward(self, x):
        return self.fc(x.view(x.size(0), -1))


class Inception(nn.Module):
    """Its 5×5 has no padding."""

    def __init__(self, c):
        super().__init__()
        self.branch1x1 = nn.Conv2d(c, 16, kernel_size=1)
        self.branch5x5_1 = nn.Conv2d(c, 16, kernel_size=1)
        self.branch5x5_2 = nn.Conv2d(16, 24, kernel_size=5)
        self.branch3x3 = nn.Conv2d(c, 24, kernel_size=3, padding=1)

    def forward(self, x):
        five = self.branch5x5_2(self.branch5x5_1(x))
        return torch.cat([self.branch1x1(x), five, self.branch3x3(x)], dim=1)


class ForgottenBranch(nn.Module):
    """One of its branches begins anew."""

    def __init__(self):
        super().__init__()
        self.b5_1 = nn.Conv2d(1, 16, kernel_size=1)
        self.b5_2 = nn.Conv2d(16, 24, kernel_size=5, padding=2)
        self.fc = nn.Linear(24, 10)

    def forward(self, x):
        y = F.relu(self.b5_1(x))
        y = self.b5_2(F.avg_pool2d(x, 2))
        return self.fc(y.mean((2, 3)))


class LostPadding(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 10, kernel_size=5)
        self.incep = Inception(10)
        self.fc = nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(self.incep(x))
        return self.fc(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Residual(nn.Module):
    def __init__(self, c, out, stride=1, padding=1):
        super().__init__()
        self.conv1 = nn.Conv2d(c, out, kernel_size=3, stride=stride, padding=padding)
        self.conv2 = nn.Conv2d(out, out, kernel_size=3, padding=1)

    def forward(self, x):
        return F.relu(x + self.conv2(F.relu(self.conv1(x))))


class OtherChannels(nn.Module):
    def __init__(self, out=32, stride=1, padding=1):
        super().__init__()
        self.conv1 = nn.Conv2d(1, 16, kernel_size=5)
        self.block = Residual(16, out, stride, padding)
        self.fc = nn.Linear(out, 10)

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        return self.fc(F.adaptive_avg_pool2d(self.block(x), 1).flatten(1))


class OtherStride(OtherChannels):
    def __init__(self):
        super().__init__(out=32, stride=2)


class ResidualPadding(OtherChannels):
    def __init__(self):
        super().__init__(out=16, padding=0)
