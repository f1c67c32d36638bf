import os

import torch
import torch.nn as nn

checkpoint = torch.load("model.ckpt", map_location="cpu") if os.path.exists("model.ckpt") else None
start_epoch = checkpoint["epoch"] if checkpoint else 0


class CNN(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Sequential(nn.Conv2d(1, 16, 5, 1, 2), nn.ReLU(), nn.MaxPool2d(2))
        self.out = nn.Linear(16 * 14 * 14, 10)

    def forward(self, x):
        return self.out(self.conv1(x).view(x.size(0), -1))

    def resume(self):
        self.load_state_dict(checkpoint["net"])


cnn = CNN()
if checkpoint:
    cnn.load_state_dict(checkpoint["net"])
torch.save({"net": cnn.state_dict(), "epoch": start_epoch}, "model.ckpt")
