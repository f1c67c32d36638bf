from torchvision import models


class Net(models.ResNet):
    def __init__(self):
        super().__init__(models.resnet.BasicBlock, [2, 2, 2, 2], num_classes=10)


net = Net()
