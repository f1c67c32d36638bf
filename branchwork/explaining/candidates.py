"""What could be taken out of a net: groups of branches, what they cost, and the net without one of them, fine-tuned."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import islice

from torch import nn
from torch.nn import functional as F

from branchwork.blocks import Add, Concat
from branchwork.datasets.batches import batches, count_batches, epoch_order
from branchwork.datasets.dataset import Split
from branchwork.nets.prune import Branch, find_joins
from branchwork.nets.weights import weight_rms
from branchwork.training.infer import TRAINING_DTYPES, predict_logits, weight_dtype
from branchwork.training.plan import Plan
from branchwork.training.recipe import Recipe
from branchwork.training.run import Model
from branchwork.training.state import make_state
from branchwork.training.step import Moment, train_step

# The share of a whole training's steps by which each candidate is fine-tuned, and then the chosen one, and the share of
# its learning rate at the start: chosen on MNIST, see benchmarks/select.py. Half the rate undoes more than it mends.
TRYING, SETTLING, RATE = 1 / 26, 1 / 10, 0.2


@dataclass(frozen=True)
class Group:
    """Branches that are taken out together: `b5` of several joins alike, or `incep1.b5` alone."""

    name: str
    branches: tuple[Branch, ...]

    @property
    def paths(self) -> list[str]:
        return [f"{path}.{name}".lstrip(".") for path, name in self.branches]

    def within(self, joins: Mapping[str, Concat | Add]) -> bool:
        """Whether all of its branches are there: a join may lie within another's branch, and go with it."""
        return all(path in joins and name in joins[path].branches() for path, name in self.branches)


@dataclass(frozen=True)
class Candidate:
    """The net without a group, in eval mode, and what it then costs."""

    group: Group
    net: nn.Module
    parameters: int
    macs: int


def find_groups(net: nn.Module, each: bool) -> list[Group]:
    """The groups of all branches of joins that have two at least.

    Branches of one name go together where their joins have the same branches, three or more; of two branches, as in
    residual blocks and DenseNet's layers, either all blocks or none would be left, so that these are decided one by
    one, as all are with `each`.
    """
    alike: dict[object, list[Branch]] = {}
    for path, join in find_joins(net).items():
        names = tuple(join.branches())
        for name in names if len(names) > 1 else ():
            alike.setdefault((path, name) if each or len(names) == 2 else (names, name), []).append((path, name))
    groups = [Group("", tuple(branches)) for branches in alike.values()]
    bare = [group.branches[0][1] for group in groups if len(group.branches) > 1]
    # A bare name where no other group's branches are called the same.
    alone = {name for name in bare if sum(name == group.branches[0][1] for group in groups) == 1}
    return [
        Group(group.branches[0][1] if group.branches[0][1] in alone else "+".join(group.paths), group.branches)
        for group in groups
    ]


def weight_size(net: nn.Module, group: Group) -> float | None:
    """`weight_rms` of the group's branches."""
    joins = find_joins(net)
    branches = [joins[path].branches()[name] for path, name in group.branches]
    return weight_rms(weight for branch in branches for weight in branch.parameters())


@dataclass
class Tuner:
    """Fine-tunes nets on `train` by steps of the recipe, which `steps` counts, and judges them on `validation`."""

    plan: Plan
    recipe: Recipe
    model: Model
    train: Split
    validation: Split
    steps: int = 0

    def place(self, net: nn.Module) -> nn.Module:
        """`net`, moved to where it is trained and judged, and what is made of it is too."""
        return net.to(self.train.labels.device, weight_dtype(TRAINING_DTYPES[self.plan.precision]))

    def tune(self, net: nn.Module, share: float) -> None:
        """Train `net` by this share of the recipe's steps; its learning rate falls to 0 in a half cosine."""
        whole = count_batches(len(self.train), self.recipe.images_a_step) * self.recipe.epochs
        steps = max(4, round(share * whole))
        options = replace(self.plan.options, execute="written", freeze=False)
        recipe = self.recipe.but({"auxiliary": 0.0, "ema": 0.0})
        state = make_state(net, self.model, recipe=recipe, options=options, precision=self.plan.precision)
        net.train()
        step = epoch = 0
        while step < steps:
            # Other images than last time, and all candidates of one step get the same.
            order = epoch_order(len(self.train), options.seed, recipe.epochs + epoch).to(self.train.labels.device)
            for chosen in islice(batches(order, recipe.images_a_step), steps - step):
                rate = RATE * recipe.learning_rate * (1 + math.cos(math.pi * step / steps)) / 2
                moment = Moment(options.seed, epoch, step)
                train_step(state, self.train, chosen, recipe=recipe, moment=moment, learning_rate=rate)
                step += 1
            epoch += 1
        self.steps += steps
        net.eval()

    def judge(self, net: nn.Module) -> tuple[float, float]:
        """The mean loss and the accuracy on the validation images."""
        logits = predict_logits(net, self.validation.images, self.model, TRAINING_DTYPES[self.plan.precision])
        labels = self.validation.labels
        return float(F.cross_entropy(logits, labels)), float((logits.argmax(1) == labels).double().mean())
