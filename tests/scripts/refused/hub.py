import torch

net = torch.hub.load("pytorch/vision", "resnet18", pretrained=True)
net.fc = torch.nn.Linear(512, 10)
