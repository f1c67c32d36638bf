import torch.nn as nn
from torchsummary import summary

WIDTH = 12


class Block(nn.Module):
    def __init__(self, c, expand=2):
        super().__init__()
        self.net = nn.Sequential(
            nn.BatchNorm2d(c), nn.Conv2d(c, c * expand, 1), nn.ReLU6(), nn.Conv2d(c * expand, c, 1)
        )

    def forward(self, x):
        return x + self.net(x)


print("model.py is imported")
summary(Block(WIDTH), (WIDTH, 8, 8))
