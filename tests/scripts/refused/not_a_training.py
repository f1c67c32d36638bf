import torch.nn as nn

layers = []
for size in open("sizes.txt"):
    layers.append(nn.Linear(784, int(size)))
net = nn.Sequential(*layers)
