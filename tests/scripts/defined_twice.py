import torch.nn as nn


# 第一版
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(784, 10)

    def forward(self, x):
        return self.fc(x.flatten(1))


print(Net())


# 第二版，效果更好
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 9, 4, dilation=2)
        self.fc = nn.Linear(9 * 22 * 22, 10)

    def forward(self, x):
        return self.fc(self.conv(x).flatten(1))


print(Net())
