import torch.nn as nn

with open("labels.txt") as f:
    labels = f.read().split()


class Net(nn.Module):
    def __init__(self, n=len(labels)):
        super().__init__()
        self.fc = nn.Linear(784, n)
