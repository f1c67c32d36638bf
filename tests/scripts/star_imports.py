from torch import *
from torch.nn import *
from torch.nn.functional import relu, max_pool2d
from fastai.vision.all import *

path = untar_data(URLs.MNIST)
dls = ImageDataLoaders.from_folder(path, bs=64)


class Net(Module):
    def __init__(self):
        super().__init__()
        self.c = Conv2d(1, 6, 3)
        self.l = Linear(6 * 13 * 13, 10)

    def forward(self, x):
        return self.l(flatten(max_pool2d(relu(self.c(x)), 2), 1))


learn = Learner(dls, Net())
learn.fit_one_cycle(1)
