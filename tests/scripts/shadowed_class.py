from torch import nn


class Net(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.c = nn.Conv2d(1, width, 5, stride=4)
        self.f = nn.Linear(width * 36, 10)

    def forward(self, x):
        return self.f(self.c(x).flatten(1))


Net = Net(6)
Net.train()
print(sum(p.numel() for p in Net.parameters()))
