import argparse
import os

import torch
import torch.nn as nn
import torchvision.transforms as transforms
from torchvision import datasets

os.makedirs("images", exist_ok=True)

parser = argparse.ArgumentParser()
parser.add_argument("--n_epochs", type=int, default=3)
parser.add_argument("--batch_size", type=int, default=32, help="images per step")
parser.add_argument("--lr", type=float, default=0.0002)
parser.add_argument("--b1", type=float, default=0.5)
parser.add_argument("--b2", type=float, default=0.999)
parser.add_argument("--width", type=int, default=20)
parser.add_argument("--channels", type=int, default=1)
opt = parser.parse_args()
opt.out = 10
print(opt)

cuda = True if torch.cuda.is_available() else False


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()

        def block(i, o, normalize=True):
            layers = [nn.Conv2d(i, o, 4, stride=2, padding=1)]
            if normalize:
                layers.append(nn.BatchNorm2d(o, 0.1))
            layers.append(nn.LeakyReLU(0.2, inplace=True))
            return layers

        self.model = nn.Sequential(*block(opt.channels, opt.width, normalize=False), *block(opt.width, 2 * opt.width))
        self.head = nn.Linear(2 * opt.width * 7 * 7, opt.out)

    def forward(self, img):
        out = self.model(img)
        return self.head(out.view(out.shape[0], -1))


net = Classifier()
if cuda:
    net.cuda()
dataloader = torch.utils.data.DataLoader(
    datasets.MNIST("data", train=True, download=True, transform=transforms.ToTensor()),
    batch_size=opt.batch_size,
    shuffle=True,
)
optimizer = torch.optim.Adam(net.parameters(), lr=opt.lr, betas=(opt.b1, opt.b2))
for epoch in range(opt.n_epochs):
    for i, (imgs, labels) in enumerate(dataloader):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(imgs), labels)
        loss.backward()
        optimizer.step()
        if i == 0:
            torch.save(net.state_dict(), "images/%d.pt" % epoch)
