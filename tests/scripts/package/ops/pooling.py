import torch.nn as nn


class GlobalPool(nn.Module):
    def forward(self, x):
        return x.mean((-2, -1))


class Half(nn.AvgPool2d):
    def __init__(self):
        super().__init__(2)
