import torch
import torch.nn as nn

layers = []
c = 1
for i, out in enumerate([4, 8, 16]):
    print("layer", i)
    layers.append(nn.Conv2d(c, out, 3, padding=1))
    layers += [nn.ReLU(), nn.MaxPool2d(2)]
    c = out
layers.extend([nn.Flatten(), nn.Linear(16 * 9, 10)])
model = nn.Sequential(*layers)
losses = []
optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=5e-4)
while len(losses) < 3:
    loss = model(torch.zeros(2, 1, 28, 28)).sum()
    losses.append(loss.item())
