import torch
import torch.nn as nn
from torchvision import transforms
from torchvision import datasets
from torch.utils.data import DataLoader
import torch.nn.functional as F
import torch.optim as optim

# 1. 准备数据
batch_size = 64
transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
train_dataset = datasets.MNIST(root="../dataset/mnist", train=True, download=True, transform=transform)
train_loader = DataLoader(train_dataset, shuffle=True, batch_size=batch_size)
test_dataset = datasets.MNIST(root="../dataset/mnist", train=False, download=True, transform=transform)
test_loader = DataLoader(test_dataset, shuffle=False, batch_size=batch_size)


# 2. 模型：四个分支
class Inception(nn.Module):
    def __init__(self, cin):
        super(Inception, self).__init__()
        self.b1 = nn.Conv2d(cin, 16, kernel_size=1)
        self.b2_1 = nn.Conv2d(cin, 16, kernel_size=1)
        self.b2_2 = nn.Conv2d(16, 24, kernel_size=5, padding=2)
        self.b3_1 = nn.Conv2d(cin, 16, kernel_size=1)
        self.b3_2 = nn.Conv2d(16, 24, kernel_size=3, padding=1)
        self.b3_3 = nn.Conv2d(24, 24, kernel_size=3, padding=1)
        self.b4 = nn.Conv2d(cin, 24, kernel_size=1)

    def forward(self, x):
        y1 = self.b1(x)
        y2 = self.b2_2(self.b2_1(x))
        y3 = self.b3_3(self.b3_2(self.b3_1(x)))
        y4 = self.b4(F.avg_pool2d(x, kernel_size=3, stride=1, padding=1))
        return torch.cat((y1, y2, y3, y4), dim=1)  # 通道方向拼接


class Net(nn.Module):
    def __init__(self):
        super(Net, self).__init__()
        self.conv1 = nn.Conv2d(1, 10, kernel_size=5)
        self.conv2 = nn.Conv2d(88, 20, kernel_size=5)
        self.incep1 = Inception(10)
        self.incep2 = Inception(20)
        self.mp = nn.MaxPool2d(2)
        self.fc = nn.Linear(1408, 10)

    def forward(self, x):
        n = x.size(0)
        x = F.relu(self.mp(self.conv1(x)))
        x = self.incep1(x)
        x = F.relu(self.mp(self.conv2(x)))
        x = self.incep2(x)
        x = x.view(n, -1)
        return self.fc(x)


model = Net()
device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
model.to(device)

# 3. 损失和优化器
criterion = torch.nn.CrossEntropyLoss()
optimizer = optim.SGD(model.parameters(), lr=0.01, momentum=0.5)


# 4. 训练和测试
def train(epoch):
    total = 0.0
    for i, data in enumerate(train_loader, 0):
        inputs, target = data
        inputs, target = inputs.to(device), target.to(device)
        optimizer.zero_grad()
        outputs = model(inputs)
        loss = criterion(outputs, target)
        loss.backward()
        optimizer.step()
        total += loss.item()
    print("[%d] loss: %.3f" % (epoch + 1, total))


def test():
    correct = 0
    with torch.no_grad():
        for images, labels in test_loader:
            predicted = model(images.to(device)).argmax(dim=1)
            correct += (predicted == labels.to(device)).sum().item()
    print("测试集准确率: %d %%" % (100 * correct / len(test_dataset)))


if __name__ == "__main__":
    for epoch in range(10):
        train(epoch)
        test()
