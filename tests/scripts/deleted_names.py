import torch
from torch import nn

sizes = [1, 6, 12]
pairs = list(zip(sizes, sizes[1:]))
del sizes
convs = [nn.Conv2d(i, o, 3) for i, o in pairs]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.convs = nn.Sequential(*[nn.Conv2d(i, o, 3) for i, o in pairs])
        self.fc = nn.Linear(12 * 24 * 24, 10)

    def forward(self, x):
        return self.fc(self.convs(x).flatten(1))


net = Net()
del convs
torch.cuda.empty_cache()
