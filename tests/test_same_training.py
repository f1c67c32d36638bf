"""A net whose forward does more than its operations say is not trained collapsed, and reading a net leaves it alone."""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

import branchwork as bw
from branchwork.errors import NetError
from branchwork.fusing.fuse import collapse, fuse

SHAPE = (1, 16, 16)


class Net(nn.Module):
    """Three convolutions in a row, which collapse."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b, self.c = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 40, 3), nn.Conv2d(40, 4, 3)
        self.head = nn.Linear(400, 10)
        self.register_buffer("mean", torch.zeros(4, 1, 1))
        self.seen, self.count = [], 0

    def middle(self, x):
        return x

    def forward(self, x):
        return self.head(F.relu(self.c(self.b(self.middle(self.a(x))))).flatten(1))


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return -gradient


class Reversed(Net):
    def middle(self, x):
        return Reverse.apply(x)


class Hooked(Net):
    def middle(self, x):
        if x.requires_grad:
            x.register_hook(lambda gradient: gradient / 10)
        return x


class Frozen(Net):
    def forward(self, x):
        with torch.no_grad():
            x = self.b(self.a(x))
        return self.head(F.relu(self.c(x)).flatten(1))


class Reassigns(Net):
    def middle(self, x):
        self.mean = 0.9 * self.mean + 0.1 * x.detach().mean((0, 2, 3)).view(4, 1, 1)
        return x


class Saves(Net):
    def middle(self, x):
        self.features = x
        return x


class Appends(Net):
    def middle(self, x):
        self.seen.append(x)
        return x


class Counts(Net):
    def middle(self, x):
        self.count += 1
        return x


class Draws(Net):
    def middle(self, x):
        return x * (1 + 0 * random.random())


class DrawsInNumpy(Net):
    def middle(self, x):
        return x * (1 + 0 * np.random.rand())


@pytest.mark.parametrize("kind", [Reversed, Hooked, Frozen, Reassigns, Saves, Appends, Counts, Draws, DrawsInNumpy])
def test_what_a_graph_would_lose_is_trained_as_written(kind):
    net = kind().train()
    with pytest.raises(NetError, match="train it with --execute written"):
        collapse(net, SHAPE, batch=64)
    assert net.count == 0 and net.seen == [] and not hasattr(net, "features") and not net.mean.any()


def test_the_plain_net_is_collapsed():
    assert collapse(Net().train(), SHAPE, batch=64) is not None


@pytest.mark.parametrize("kind", [Saves, Appends, Reassigns, Frozen])
def test_a_net_that_is_fused_is_left_as_it_was_and_gradients_as_they_are(kind):
    net = kind().eval()
    before, draws = vars(net).keys(), (random.getstate(), torch.get_rng_state())
    fused = fuse(net, SHAPE)
    assert vars(net).keys() == before and net.seen == []
    assert not any(isinstance(tensor, FakeTensor) for tensor in (*net.parameters(), *net.buffers()))
    assert random.getstate() == draws[0] and torch.equal(torch.get_rng_state(), draws[1])
    x = torch.rand(3, *SHAPE)
    with torch.no_grad():
        given = fused(x)
        assert not given.requires_grad
        torch.testing.assert_close(given, kind().eval()(x), rtol=1e-4, atol=1e-5)


def test_batch_norm_from_scratch_keeps_its_statistics(small, tmp_path):
    """As a well-known book writes it: the statistics are attributes, which a graph would lose."""
    (tmp_path / "book.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "class Norm(nn.Module):\n"
        "    def __init__(self, channels):\n"
        "        super().__init__()\n"
        "        self.gamma = nn.Parameter(torch.ones(1, channels, 1, 1))\n"
        "        self.moving = torch.zeros(1, channels, 1, 1)\n"
        "    def forward(self, x):\n"
        "        if self.training:\n"
        "            mean = x.mean((0, 2, 3), keepdim=True)\n"
        "            self.moving = 0.5 * self.moving + 0.5 * mean.detach()\n"
        "        else:\n"
        "            mean = self.moving\n"
        "        return self.gamma * (x - mean)\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self):\n"
        "        super().__init__(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 5), Norm(8), nn.ReLU(), nn.MaxPool2d(4),\n"
        "                         nn.Flatten(), nn.Linear(200, 10))\n"
    )
    recipe = bw.course().but({"epochs": 3, "learning_rate": 0.05, "precision": "fp32", "validation": 0.1})
    results = [
        bw.train(
            f"{tmp_path / 'book.py'}:Net",
            data=small,
            recipe=recipe,
            out=tmp_path / execute,
            options=bw.Options(execute=execute),
        )
        for execute in ("auto", "written")
    ]
    assert results[0].execution == "written"
    assert results[0].validation_accuracy == results[1].validation_accuracy > 0.5


def test_dropout_is_drawn_alike_and_no_random_number_is_used_up():
    class Drops(Net):
        def middle(self, x):
            return F.dropout(x, 0.5, self.training)

    net = Drops().train()
    torch.manual_seed(3)
    random_state = torch.get_rng_state()
    assert collapse(net, SHAPE, batch=64) is not None
    assert torch.equal(torch.get_rng_state(), random_state)
