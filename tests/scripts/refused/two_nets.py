import torch.nn as nn


class Block(nn.Module):
    def forward(self, x):
        return x


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.block = Block()

    def forward(self, x):
        return self.block(x)


class Large(Block):
    def forward(self, x):
        return x


big = nn.Sequential(Block(), nn.Flatten())
