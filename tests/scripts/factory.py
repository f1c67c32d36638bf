import torch
import torch.nn as nn

conv_arch = ((1, 8), (1, 16), (2, 16))


def vgg_block(num_convs, in_channels, out_channels):
    layers = []
    for _ in range(num_convs):
        layers.append(nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1))
        layers.append(nn.ReLU())
        in_channels = out_channels
    layers.append(nn.MaxPool2d(kernel_size=2, stride=2))
    return nn.Sequential(*layers)


def vgg(conv_arch):
    blocks, c = [], 1
    for n, out in conv_arch:
        blocks.append(vgg_block(n, c, out))
        c = out
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(c * 3 * 3, 10))


def get_net(num_classes=10):
    print("building ...")
    net = vgg(conv_arch)
    return net


def train(net):
    opt = torch.optim.SGD(net.parameters(), lr=0.05)
    for _ in range(2):
        opt.zero_grad()
        net(torch.rand(2, 1, 28, 28)).sum().backward()
        opt.step()
    return net


trained = train(get_net())
