"""What can be removed from a net: groups of branches, and the fine-tuning of the net without one of them."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from itertools import islice

from torch import nn
from torch.nn import functional as F

from branchwork.blocks import Add, Concat
from branchwork.catalogue.prune import Branch, find_joins
from branchwork.catalogue.weights import weight_rms
from branchwork.datasets.batches import batches, count_batches, epoch_order, train_and_validation
from branchwork.datasets.dataset import DataSet, Split
from branchwork.training.infer import TRAINING_DTYPES, pick_device, predict_logits, weight_dtype
from branchwork.training.plan import Plan
from branchwork.training.run import Model
from branchwork.training.state import make_state
from branchwork.training.step import Moment, train_step

# The learning rate at the start of a fine-tuning, as a share of the recipe's: half of it does more harm than good. It
# was chosen on MNIST, see benchmarks/select.py.
RATE = 0.2


@dataclass(frozen=True)
class Group:
    """Branches that are removed together: `b5` of several similar joins, or `incep1.b5` by itself."""

    name: str
    branches: tuple[Branch, ...]

    @property
    def paths(self) -> list[str]:
        return branch_paths(self.branches)

    def is_in(self, joins: Mapping[str, Concat | Add]) -> bool:
        """Return whether all of its branches exist: a join inside a branch is removed with that branch."""
        return all(path in joins and name in joins[path].branches() for path, name in self.branches)


def branch_paths(branches: Iterable[Branch]) -> list[str]:
    return [f"{path}.{name}".lstrip(".") for path, name in branches]


def find_groups(net: nn.Module, each: bool) -> list[Group]:
    """Return the groups of all branches of joins that have at least two.

    Joins with the same three or more branches are grouped by the branches' names. Joins of two, as in residual blocks
    and DenseNet's layers, are decided one by one, since together they would all go or all stay; with `each`, all are.
    """
    groups: dict[object, list[Branch]] = {}
    for path, join in find_joins(net).items():
        names = tuple(join.branches())
        if len(names) == 1:
            continue
        for name in names:
            key = (path, name) if each or len(names) == 2 else (names, name)
            groups.setdefault(key, []).append((path, name))
    return _named([tuple(branches) for branches in groups.values()])


def _named(groups: list[tuple[Branch, ...]]) -> list[Group]:
    """Name a group of several after its branches, `b5`, unless other groups hold branches of that name."""
    counts = Counter(branches[0][1] for branches in groups)
    named = []
    for branches in groups:
        name = branches[0][1]
        clear = len(branches) > 1 and counts[name] == 1
        named.append(Group(name if clear else "+".join(branch_paths(branches)), branches))
    return named


def weight_size(net: nn.Module, group: Group) -> float | None:
    """Return the root mean square of the weights of the group's branches, None if they have none."""
    joins = find_joins(net)
    branches = [joins[path].branches()[name] for path, name in group.branches]
    return weight_rms(weight for branch in branches for weight in branch.parameters())


@dataclass(frozen=True)
class Tuner:
    """Fine-tunes nets on `train` as the plan's recipe says, and measures them on `validation`."""

    plan: Plan
    model: Model
    train: Split
    validation: Split

    @classmethod
    def of(cls, plan: Plan, data: DataSet) -> "Tuner":
        """The tuner whose images are those of the plan's training, on its device."""
        recipe, device = plan.recipe, pick_device(plan.options.device)
        train, validation = train_and_validation(data, recipe.validation, plan.options.seed, used=recipe.fraction)
        train = Split(train.images.to(device), train.labels.to(device))
        return cls(plan, Model.of(plan.net, data, recipe), train, validation)

    def move(self, net: nn.Module) -> nn.Module:
        """Move `net` to the device and type in which it is trained and validated."""
        return net.to(self.train.labels.device, weight_dtype(TRAINING_DTYPES[self.plan.precision]))

    def tune(self, net: nn.Module, share: float) -> int:
        """Train `net` for this share of the recipe's optimiser steps, and return how many these are.

        The learning rate falls to 0 along half a cosine.
        """
        options = replace(self.plan.options, execute="written", compile=False)
        recipe = self.plan.recipe.but({"auxiliary": 0.0, "ema": 0.0})
        steps_per_epoch = count_batches(len(self.train), recipe.images_per_step)
        steps = max(4, round(share * steps_per_epoch * recipe.epochs))
        state = make_state(net, self.model, recipe=recipe, options=options, precision=self.plan.precision)
        net.train()
        step = epoch = 0
        while step < steps:
            # In another order than in the whole net's training, but in the same for all candidates.
            order = epoch_order(len(self.train), options.seed, recipe.epochs + epoch).to(self.train.index_device)
            for indices in islice(batches(order, recipe.images_per_step), steps - step):
                rate = RATE * recipe.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
                moment = Moment(options.seed, epoch, step)
                train_step(state, self.train, indices, recipe=recipe, moment=moment, learning_rate=rate)
                step += 1
            epoch += 1
        net.eval()
        return steps

    def validate(self, net: nn.Module) -> tuple[float, float]:
        """Return the mean loss and the accuracy on the validation images."""
        precision = TRAINING_DTYPES[self.plan.precision]
        logits = predict_logits(net, self.validation.images, self.model, precision=precision)
        labels = self.validation.labels
        return float(F.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).double().mean())
