import time

import torch
import torch.nn as nn
from torch.utils.tensorboard import SummaryWriter
from torchsummary import summary
from tqdm import tqdm

writer = SummaryWriter("runs/experiment")
start = time.time()
log = open("train.log", "a")


class Net(nn.Module):
    def __init__(self, writer=None):
        super().__init__()
        self.writer = writer
        self.conv = nn.Conv2d(1, 5, 5, bias=False)
        self.depthwise = nn.Conv2d(5, 10, 3, groups=5)
        self.fc = nn.Linear(10, 10)

    def forward(self, x):
        x = self.depthwise(self.conv(x))
        if self.training and self.writer:
            writer.add_histogram("x", x)
        return self.fc(x.amax((2, 3)))

    def fit(self, loader, epochs):
        for epoch in tqdm(range(epochs)):
            for x, y in loader:
                log.write("%f" % (time.time() - start))


net = Net(writer)
summary(net, (1, 28, 28), device="cpu")
writer.add_graph(net, torch.zeros(1, 1, 28, 28))
writer.close()
