import torch
import torch.nn as nn

use_gpu = torch.cuda.is_available()
device = "cuda" if use_gpu else "cpu"
scale = 2.0
pos = torch.ones(1, 1, 28, 28).to(device)
steps = 0


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3)
        self.fc = nn.Linear(width, 10)

    def forward(self, x):
        global steps
        steps += 1
        x = x.to(device) * scale + pos
        return self.fc(torch.relu(self.conv(x)).mean([2, 3]))


width = 10
width = width + 5
net = Net().to(device)
scale = 3.0
for step in range(3):
    scale = scale * 0.9
    net(torch.zeros(1, 1, 28, 28, device=device)).sum().backward()
