# 手写数字识别
import torch, torch.nn as nn
from torchvision.datasets import MNIST

批大小 = 50
类别数 = 10
训练集 = MNIST("数据", train=True, download=True)


class 网络(nn.Module):
    """两层卷积，一层全连接"""

    def __init__(self):
        super().__init__()
        self.卷积 = nn.Sequential(
            nn.Conv2d(1, 6, 5), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(6, 12, 5), nn.Tanh(), nn.AvgPool2d(2)
        )
        self.全连接 = nn.Linear(12 * 4 * 4, 类别数)

    def forward(self, 输入):
        return self.全连接(self.卷积(输入).flatten(1))


模型 = 网络()
print("参数个数：", sum(p.numel() for p in 模型.parameters()))
torch.save(模型.state_dict(), "模型.pkl")
