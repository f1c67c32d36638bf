import torch.nn as nn
from mmengine.registry import MODELS


@MODELS.register_module()
class Net(nn.Module):
    def __init__(self):
        super().__init__()
