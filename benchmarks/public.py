"""The fast public recipe tuomaso/train_mnist_fast, rewritten after its last notebook.

    python -m benchmarks.public --seed 0 --json FILE

Its data are normalised in memory, in one random order that was fixed when they were saved; epochs do not shuffle. One
epoch, batch 256, Adam with torch's default OneCycleLR (rising for 0.3 of the steps from 1/25 of the peak), float32,
default memory layout. Its published time of 0.76 s on a GTX 1660 Ti excludes loading, as ours does.
"""

from collections import OrderedDict

import torch
from cyclopts import App
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam
from torch.optim.lr_scheduler import OneCycleLR

from benchmarks.process import JsonFile, Outcome, as_floats, count_correct, timed
from branchwork.datasets.dataset import DataSet, Split
from branchwork.datasets.load import load_data

BATCH_SIZE, TEST_BATCH_SIZE, LEARNING_RATE, BETAS = 256, 2000, 0.01, (0.7, 0.9)

app = App(result_action="return_value")


def make_net() -> nn.Sequential:
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 24, 5),
            pool1=nn.MaxPool2d(2),
            relu1=nn.ReLU(),
            conv2=nn.Conv2d(24, 32, 3),
            pool2=nn.MaxPool2d(2),
            relu2=nn.ReLU(),
            flatten=nn.Flatten(),
            fc1=nn.Linear(800, 256),
            relu3=nn.ReLU(),
            fc2=nn.Linear(256, 10),
        )
    )


def saved(split: Split) -> tuple[Tensor, Tensor]:
    """Return the images as in its files: normalised, in one order for all seeds."""
    order = torch.randperm(len(split), generator=torch.Generator().manual_seed(0))
    return as_floats(split.images[order]), split.labels[order]


def train_on(net: nn.Module, images: Tensor, labels: Tensor) -> None:
    optimizer = Adam(net.parameters(), lr=LEARNING_RATE, betas=BETAS)
    batches = list(zip(images.split(BATCH_SIZE), labels.split(BATCH_SIZE), strict=True))
    schedule = OneCycleLR(optimizer, max_lr=LEARNING_RATE, total_steps=len(batches), cycle_momentum=False)
    net.train()
    for some_images, some_labels in batches:
        optimizer.zero_grad()
        loss = F.nll_loss(F.log_softmax(net(some_images), 1), some_labels)
        loss.backward()
        optimizer.step()
        schedule.step()


def run(data_set: DataSet, seed: int, device: torch.device) -> Outcome:
    images, labels = (tensor.to(device) for tensor in saved(data_set.train))
    test_images, test_labels = (tensor.to(device) for tensor in saved(data_set.test))
    torch.manual_seed(seed)
    net = make_net().to(device)
    seconds = timed(device, lambda: train_on(net, images, labels))
    net.eval()
    with torch.no_grad():
        parts = zip(test_images.split(TEST_BATCH_SIZE), test_labels.split(TEST_BATCH_SIZE), strict=True)
        correct = sum(count_correct(net, *part) for part in parts)
    return Outcome(seconds, correct / len(test_labels))


@app.default
def main(*, seed: int, json_file: JsonFile, data: str = "mnist", device: str = "cpu") -> None:
    run(load_data(data), seed, torch.device(device)).write(json_file)


if __name__ == "__main__":
    app()
