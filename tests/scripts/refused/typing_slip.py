import torch.nn as nn


class Net(nn.Modul):
    def __init__(self):
        super().__init__()
