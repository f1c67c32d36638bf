import torch
from d2l import torch as d2l
from torch import nn

lenet = nn.Sequential(
    nn.Conv2d(1, 5, 5, padding=2),
    nn.Sigmoid(),
    nn.AvgPool2d(2),
    nn.Conv2d(5, 12, 5),
    nn.Sigmoid(),
    nn.AvgPool2d(2),
    nn.Flatten(),
    nn.Linear(300, 60),
    nn.Sigmoid(),
    nn.Linear(60, 10),
)

# 看看每一层的形状
out = torch.zeros(1, 1, 28, 28)
for m in lenet:
    out = m(out)
    print(type(m).__name__, tuple(out.shape))

bs = 128
train_data, test_data = d2l.load_data_fashion_mnist(batch_size=bs)


def init(m):
    if isinstance(m, (nn.Linear, nn.Conv2d)):
        nn.init.xavier_uniform_(m.weight)


lenet.apply(init)
learning_rate, n_epochs = 0.9, 8
d2l.train_ch6(lenet, train_data, test_data, n_epochs, learning_rate, d2l.try_gpu())
