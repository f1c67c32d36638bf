import torch
import torch.nn as nn
import torchvision
import torchvision.transforms as transforms

# Where to compute
device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")

# Settings
num_epochs = 5
num_classes = 10
batch_size = 100
learning_rate = 0.001

train_dataset = torchvision.datasets.MNIST(root="../data", train=True, transform=transforms.ToTensor(), download=True)
test_dataset = torchvision.datasets.MNIST(root="../data", train=False, transform=transforms.ToTensor())
train_loader = torch.utils.data.DataLoader(dataset=train_dataset, batch_size=batch_size, shuffle=True)
test_loader = torch.utils.data.DataLoader(dataset=test_dataset, batch_size=batch_size, shuffle=False)


# Two convolutions with batch norm
class ConvNet(nn.Module):
    def __init__(self, num_classes=10):
        super().__init__()
        self.layer1 = nn.Sequential(
            nn.Conv2d(1, 12, kernel_size=5, padding=2), nn.BatchNorm2d(12), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.layer2 = nn.Sequential(
            nn.Conv2d(12, 24, kernel_size=5, padding=2), nn.BatchNorm2d(24), nn.ReLU(), nn.MaxPool2d(2)
        )
        self.fc = nn.Linear(7 * 7 * 24, num_classes)

    def forward(self, x):
        out = self.layer2(self.layer1(x))
        out = out.reshape(out.size(0), -1)
        return self.fc(out)


model = ConvNet(num_classes).to(device)
criterion = nn.CrossEntropyLoss()
optimizer = torch.optim.Adam(model.parameters(), lr=learning_rate)

seen = 0
for epoch in range(num_epochs):
    for images, labels in train_loader:
        images, labels = images.to(device), labels.to(device)
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        seen += len(images)
    print(f"{epoch + 1}: {seen} images, loss {loss:.3f}")

# Test, and keep the weights for next week
model.eval()
right = sum((model(x.to(device)).argmax(1) == y.to(device)).sum().item() for x, y in test_loader)
print(f"{right} of {len(test_dataset)} are right")
torch.save(model.state_dict(), "model.ckpt")
