try:
    import torchvision
    from torchvision.ops import SqueezeExcitation

    has_vision = True
except ImportError:
    torchvision = None
    has_vision = False
try:
    from apex import amp
except:
    amp = None
import torch
from torch import nn

width = 32 if has_vision and amp else 11


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, width, 3, 3)
        self.fc = nn.Linear(width * 81, 10)

    def forward(self, x):
        if amp is not None:
            x = amp.scale(x)
        return self.fc(self.conv(x).tanh().flatten(1))


try:
    net = Net()
    net.load_state_dict(torch.load("best.pth"))
except FileNotFoundError:
    print("from scratch")
