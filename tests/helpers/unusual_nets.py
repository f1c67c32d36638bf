"""Nets that fail in their own code sooner or later, or that hold what a run cannot: one class for each."""

import warnings

import torch
from torch import nn


class Flat(nn.Module):
    """One linear layer, and nothing wrong with it."""

    def __init__(self, num_classes=10):
        super().__init__()
        self.fc = nn.Linear(784, num_classes)

    def forward(self, x):
        return self.fc(x.view(x.size(0), -1))


class Fails(Flat):
    """Fails at the `first` of the batches of more than two images that it is trained on."""

    first = 1

    def __init__(self):
        super().__init__()
        self.register_buffer("calls", torch.tensor(0), persistent=False)

    def forward(self, x):
        self.calls += self.training and x.size(0) > 2
        if self.calls == self.first:
            self.fail()
        return super().forward(x)


class FailsLast(Fails):
    first = 14


class Assertion(Fails):
    def fail(self):
        assert self.first != 1


class Key(FailsLast):
    def fail(self):
        return {}["conv1"]


class Index(Fails):
    def fail(self):
        return [][1]


class Division(FailsLast):
    def fail(self):
        return 1 / 0


class Exit(Fails):
    def fail(self):
        raise SystemExit("enough")


class ExitAtOnce(Flat):
    def forward(self, x):
        raise SystemExit("enough")


class Validation(Flat):
    def forward(self, x):
        assert self.training or x.size(0) <= 2
        return super().forward(x)


class Half(Flat):
    def __init__(self):
        super().__init__()
        self.half()


class HalfWithin(Flat):
    def forward(self, x):
        return self.fc(x.view(x.size(0), -1).half())


class ExtraState(Flat):
    def get_extra_state(self):
        return {"seen": 0}

    def set_extra_state(self, state):
        pass


class Sparse(Flat):
    def __init__(self):
        super().__init__()
        self.register_buffer("edges", torch.eye(10).to_sparse())

    def forward(self, x):
        return torch.sparse.mm(self.edges, super().forward(x).t()).t()


class Lazy(Flat):
    def __init__(self):
        super().__init__()
        self.fc = nn.LazyLinear(10)


class OldWeightNorm(Flat):
    def __init__(self):
        super().__init__()
        with warnings.catch_warnings(action="ignore"):
            self.fc = nn.utils.weight_norm(self.fc)


class HoldsItself(Flat):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleList([self])


class ManyClasses(Flat):
    def __init__(self):
        super().__init__(4000)
