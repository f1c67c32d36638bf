import torch
from torch import nn


def conv(i, o):
    return nn.Sequential(nn.Conv2d(i, o, 3, padding=1), nn.LeakyReLU(0.1))


if __name__ == "__main__":
    torch.multiprocessing.freeze_support()
    width = 9

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = conv(1, width), conv(width, width)
            self.fc = nn.Linear(width * 28 * 28, 10)

        def forward(self, x):
            return self.fc(torch.flatten(self.b(self.a(x)), 1))

    net = Net()
    x = torch.randn(2, 1, 28, 28)
    print(net(x).shape)
    torch.onnx.is_in_onnx_export()
    torch.save(net, "net.pt")
