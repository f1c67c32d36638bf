#!/usr/bin/env python
# -*- coding: utf-8 -*-
from __future__ import print_function, division
import torch
import torch.nn as nn
from torch.autograd import Variable
import torch.nn.functional as F
torch.set_printoptions(profile="full")
torch.manual_seed(1)
torch.backends.cudnn.benchmark = True

kwargs = {"num_workers": 1, "pin_memory": True} if torch.cuda.is_available() else {}


class Net(nn.Module):
    def __init__(self):
        super(Net, self).__init__()
        self.conv1 = nn.Conv2d(1, 10, kernel_size=5)
        self.conv2 = nn.Conv2d(10, 20, kernel_size=5)
        self.conv2_drop = nn.Dropout2d()
        self.fc1 = nn.Linear(320, 50)
        self.fc2 = nn.Linear(50, 10)

    def forward(self, x):
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2_drop(self.conv2(x)), 2))
        x = F.relu(self.fc1(x.view(-1, 320)))
        return self.fc2(F.dropout(x, training=self.training))


model = Net()
x = Variable(torch.zeros(1, 1, 28, 28))
y = model(x)
print(y.data.numpy())
