import torch
import torch.nn as nn

NUM_CLASSES, IN_CHANNELS = 100, 3


class Net(nn.Module):
    """For CIFAR-100"""

    def __init__(self, in_channels=IN_CHANNELS, num_classes=NUM_CLASSES, channels=16):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, channels, 3, padding=1)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, x):
        return self.fc(torch.relu(self.conv(x)).mean((2, 3)))


assert Net()(torch.zeros(1, 3, 32, 32)).shape == (1, 100)
