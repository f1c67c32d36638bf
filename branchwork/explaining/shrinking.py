"""Shrink a trained net: remove group after group of branches, the least important first, until the goal is reached."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from torch import nn

from branchwork.catalogue.prune import find_branches, find_joins, prune
from branchwork.catalogue.resolve import WITHOUT, short_name, split_options, with_options
from branchwork.datasets.dataset import DataSet
from branchwork.errors import NetError, RecipeError, first_line
from branchwork.explaining.candidates import Group, Tuner, branch_paths, find_groups, weight_size
from branchwork.explaining.selection import Goal, Size, Trial, Worth
from branchwork.graph.costs import count_macs, count_parameters
from branchwork.graph.untouched import alone
from branchwork.language import say
from branchwork.observer import Observer
from branchwork.training.plan import Plan
from branchwork.training.run import Model

# Only so many groups are tried with fine-tuning before one of them is removed: those whose loss at once is lowest.
MOST_TUNED = 4
# Each of them is fine-tuned for this share of the recipe's steps, and the one to be removed then for this share. Both
# were chosen on MNIST, see benchmarks/select.py.
TRYING, SETTLING = 1 / 26, 1 / 10


@dataclass(frozen=True)
class Search:
    """What to shrink and how far: `plan` and `groups` are those of the whole net."""

    plan: Plan
    data: DataSet
    goal: Goal
    groups: list[Group]
    observer: Observer


def start_search(plan: Plan, data: DataSet, goal: Goal, *, observer: Observer) -> Search:
    """Check that there is something to remove. Raises `NetError` or `RecipeError` if not."""
    net, name = build(plan, data, plan.net), short_name(plan.net)
    counts = [len(join.branches()) for join in find_joins(net).values()]
    if not counts:
        raise NetError(
            "{name} has no join with named branches, so there is nothing to select. Write its blocks as "
            "branchwork.Concat(b1=…, b5=…), or branchwork.Add(residual=…, shortcut=…)",
            name=name,
        )
    if max(counts) == 1:
        raise NetError(
            "each join of {name} has only one branch, which must stay: there is nothing to select", name=name
        )
    if goal.keep is not None and goal.keep >= max(counts):
        raise RecipeError(
            "--keep must be less than {counts}, the largest number of branches in a join of {name}, got {keep}",
            counts=max(counts),
            name=name,
            keep=goal.keep,
        )
    return Search(plan, data, goal, find_groups(net, goal.each), observer)


def build(plan: Plan, data: DataSet, net: str) -> nn.Module:
    """Build `net` for the plan's data, in eval mode; its weights will be replaced."""
    with alone():
        return Model.of(net, data, plan.recipe).builder()().eval()


def shrink(search: Search, net: nn.Module, sizes: Sequence[Size]) -> Iterator[tuple[Size, nn.Module]]:
    """Yield each smaller size with its net until the goal is reached.

    `sizes` are those that already exist, and `net` is the last of them; if there are none, `net` is the whole net,
    which is then yielded first. Raises `NetError` if the goal cannot be reached.
    """
    sizes, goal = [*sizes], search.goal
    tuner = Tuner.of(search.plan, search.data)
    net = tuner.move(net)
    if not sizes:
        sizes.append(_measure_whole(search, net, tuner))
        yield sizes[-1], net
    while goal.macs is None or sizes[-1].macs > goal.macs * sizes[0].macs:
        smaller = _remove_group(search, net, sizes, tuner=tuner)
        if smaller is None:
            break
        size, net = smaller
        sizes.append(size)
        yield size, net
    _check_reached(search, sizes)


def _measure_whole(search: Search, net: nn.Module, tuner: Tuner) -> Size:
    began = time.perf_counter()
    loss, accuracy = tuner.validate(net)
    return Size(
        net=search.plan.net,
        left=tuple(group.name for group in search.groups),
        removed=None,
        parameters=count_parameters(net),
        macs=count_macs(net, search.data.image_shape),
        validation_loss=loss,
        validation_accuracy=accuracy,
        seconds=time.perf_counter() - began,
        steps=0,
        tried=(),
    )


def _remove_group(
    search: Search, net: nn.Module, sizes: Sequence[Size], *, tuner: Tuner
) -> tuple[Size, nn.Module] | None:
    """Remove the least important group and fine-tune what is left.

    Returns None if no group can go, or if each of the least important would cost more accuracy than the goal allows.
    """
    began, now, steps = time.perf_counter(), sizes[-1], 0
    nets, trials = _prune_each(search, net, now)

    def price(name: str) -> float:
        return _price(search.goal, trials[name], now)

    names = list(nets)
    if len(names) > MOST_TUNED:
        for name in names:
            trials[name] = replace(trials[name], loss_at_once=tuner.validate(nets[name])[0])
        names = sorted(names, key=price)[:MOST_TUNED]
    for count, name in enumerate(names):
        search.observer.count(say("{left} left: fine-tuning without each", left=len(now.left)), count, len(names))
        steps += tuner.tune(nets[name], TRYING)
        loss, accuracy = tuner.validate(nets[name])
        trials[name] = replace(trials[name], validation_loss=loss, validation_accuracy=accuracy)
    search.observer.count_end()
    for name in sorted(names, key=price):
        steps += tuner.tune(nets[name], SETTLING)
        loss, accuracy = tuner.validate(nets[name])
        if search.goal.drop is None or sizes[0].validation_accuracy - accuracy <= search.goal.drop:
            joins = find_joins(nets[name])
            size = Size(
                net=_net_without(search, [name, *(size.removed for size in sizes if size.removed)]),
                left=tuple(g.name for g in search.groups if g.name in now.left and g.is_in(joins)),
                removed=name,
                parameters=trials[name].parameters,
                macs=trials[name].macs,
                validation_loss=loss,
                validation_accuracy=accuracy,
                seconds=time.perf_counter() - began,
                steps=steps,
                tried=tuple(trials.values()),
            )
            return size, nets[name]
    return None


def _prune_each(search: Search, net: nn.Module, now: Size) -> tuple[dict[str, nn.Module], dict[str, Trial]]:
    """Return the net without each group, in eval mode, and its costs, both by the group's name.

    Groups are left out that cost nothing, or whose joins would keep too few branches.
    If a group cannot be removed, the observer receives the reason at the first step.
    """
    joins, least = find_joins(net), search.goal.keep or 1
    nets, trials = {}, {}
    for group in search.groups:
        if group.name not in now.left or any(len(joins[path].branches()) <= least for path, _ in group.branches):
            continue
        try:
            smaller = prune(net, search.data.image_shape, group.paths).eval()
        except NetError as reason:
            if now.removed is None:
                search.observer.note(say("{name} stays: {reason}", name=group.name, reason=first_line(reason)))
            continue
        macs = count_macs(smaller, search.data.image_shape)
        if macs < now.macs:  # an identity shortcut costs nothing
            nets[group.name] = smaller
            trials[group.name] = Trial(group.name, count_parameters(smaller), macs)
    return nets, trials


def _price(goal: Goal, trial: Trial, now: Size) -> float:
    """Return the loss if the goal counts branches, otherwise the rise of the loss per MAC saved.

    If the loss does not rise, the group that saves the most MACs goes first, not one that saves few and gains a little.
    """
    if goal.keep is not None:
        return trial.loss
    rise, saved = trial.loss - now.validation_loss, now.macs - trial.macs
    return rise / saved if rise > 0 else -float(saved)


def _net_without(search: Search, removed: Sequence[str]) -> str:
    """Return the argument of the whole net without these groups, in which a branch removed everywhere has no path."""
    name, options = split_options(search.plan.net)
    earlier = options.pop(WITHOUT, None)
    unpruned = with_options(name, options)
    net = build(search.plan, search.data, unpruned)
    branches = {branch for group in search.groups if group.name in removed for branch in group.branches}
    if earlier:
        branches.update(find_branches(net, earlier.split("+")))
    joins = find_joins(net)
    names = []
    for path, branch in find_branches(net, branch_paths(branches)):
        everywhere = all((p, branch) in branches for p, join in joins.items() if branch in join.branches())
        names += [branch] if everywhere else branch_paths([(path, branch)])
    return with_options(unpruned, {WITHOUT: "+".join(dict.fromkeys(names))})


def _check_reached(search: Search, sizes: Sequence[Size]) -> None:
    """Raise `NetError` if the last of the sizes does not reach the goal."""
    goal, name, share = search.goal, short_name(search.plan.net), sizes[-1].macs / sizes[0].macs
    if goal.macs is not None and sizes[-1].macs > goal.macs * sizes[0].macs:
        raise NetError(
            "--macs is {macs:g}, but removing the least important branches of {name} until each join has one "
            "leaves {share:.2f} of its MACs: ask for more than that, or remove branches of your own choice, as in "
            "NET:without=b5",
            macs=goal.macs,
            name=name,
            share=share,
        )
    if len(sizes) > 1:
        return
    if goal.drop is not None:
        raise NetError(
            "removing any one of the least important branches of {name} loses more than {drop:.2%} of "
            "validation accuracy: allow a larger --drop, or keep the net as it is",
            name=name,
            drop=goal.drop,
        )
    raise NetError("no branch that costs anything can be removed from {name}: there is nothing to select", name=name)


def rank_groups(groups: Sequence[Group], whole: nn.Module, sizes: Sequence[Size]) -> tuple[Worth, ...]:
    """Rank the groups that could be removed from `whole`, the most important by removal first."""
    removed = [size.removed for size in sizes if size.removed is not None]
    # A group that is left is ranked by the loss without it, in the last trial.
    losses = {trial.group: trial.loss for size in sizes for trial in size.tried}
    left = sorted((name for name in sizes[-1].left if name in losses), key=lambda name: -losses[name])
    weights = {group.name: weight_size(whole, group) for group in groups if group.name in losses}
    by_weights = sorted(weights, key=lambda name: -(weights[name] or 0.0))
    by_removal = [*left, *reversed(removed)]
    return tuple(
        Worth(name, weights[name], by_weights.index(name) + 1, by_removal.index(name) + 1, name in left)
        for name in by_removal
    )
