import torch.nn as nn


class Net(nn.Module):
    def __init__(self, hidden, depth, num_classes, dropout=0.1):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(hidden, hidden) for _ in range(depth))

    def forward(self, x):
        return x
