import torch.nn as nn
from torchvision.ops import SqueezeExcitation


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.se = SqueezeExcitation(16, 4)
