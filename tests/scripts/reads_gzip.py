import gzip
from os import path

import numpy as np
import pandas as pd
import torch
from torch import nn

here = path.dirname(path.abspath(__file__))


def images(name):
    with gzip.open(path.join(here, name)) as f:
        return np.frombuffer(f.read(), np.uint8)


x_train = images("train.gz")
frame = pd.read_csv(path.join(here, "labels.csv"))
mean = x_train.mean()
n = max(10, 4)


class Net(nn.Module):
    def __init__(self, normalize=False):
        super().__init__()
        self.mean = mean if normalize else 0.5
        self.conv = nn.Conv2d(1, n, 28)

    def forward(self, x):
        return self.conv(x - self.mean).squeeze(-1).squeeze(-1)


print(Net(True)(torch.tensor(x_train[:784]).view(1, 1, 28, 28).float()))
