import os

import torch
from torch import nn, optim

os.makedirs("checkpoints", exist_ok=True)
if not os.path.exists("log"):
	os.mkdir("log")


class AlexLike(nn.Module):
	def __init__(self, n_class=10):
		super(AlexLike, self).__init__()
		self.features = nn.Sequential(
			nn.Conv2d(1, 16, 3, 2, 1),
			nn.ReLU(inplace=True),
			nn.Conv2d(16, 32, 3, 2, 1),
			nn.ReLU(inplace=True),
		)
		self.classifier = nn.Sequential(nn.Dropout(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, n_class))

	def forward(self, x):
		x = self.features(x)
		x = torch.flatten(x, 1)
		return self.classifier(x)


net = AlexLike()
optimizer = optim.RMSprop(net.parameters(), lr=3e-4, alpha=0.9)
for epoch in range(1):
	out = net(torch.randn(4, 1, 28, 28))
	torch.save(net.state_dict(), "checkpoints/%d.pth" % epoch)
