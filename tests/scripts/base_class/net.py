import base
import torch.nn as nn


class MyNet(base.Classifier):
    hidden = 20

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 7, stride=3)

    def forward(self, x):
        return self.head(self.conv(x).relu())


if __name__ == "__main__":
    net = MyNet()
    import torch

    print(net(torch.zeros(1, 1, 28, 28)).shape)
