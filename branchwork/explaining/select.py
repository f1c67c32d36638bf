"""A smaller net: the branches of a trained one that earn their cost, found by taking out and fine-tuning, step by step.

Weights are no measure of a branch's worth, taking it out is (Wang et al. 2021, "Rethinking Architecture Selection in
Differentiable NAS", section 4, whose criterion this is; DARTS, Liu et al. 2019, goes by weights).
"""

import copy
import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from branchwork.datasets.batches import train_and_validation
from branchwork.datasets.dataset import DataSet, Split
from branchwork.datasets.load import load_data
from branchwork.errors import DataError, Interrupted, NetError, RecipeError, RunError, first_line
from branchwork.explaining.candidates import (
    SETTLING,
    TRYING,
    Candidate,
    Group,
    Tuner,
    find_groups,
    weight_size,
)
from branchwork.explaining.selection import Figures, Goal, Selection, Size, Tried, Worth
from branchwork.files import hold_lock, read_json, write_json
from branchwork.graph.costs import count_macs, count_parameters
from branchwork.nets.prune import Branch, find_branches, find_joins, prune
from branchwork.nets.resolve import WITHOUT, absolute_name, short_name, split_options, with_options
from branchwork.nets.weights import load_weights
from branchwork.observer import Observer
from branchwork.training.evaluate import check_match, evaluate_net, load_for
from branchwork.training.infer import pick_device
from branchwork.training.machine import using_threads
from branchwork.training.options import Options
from branchwork.training.plan import Plan, make_plan
from branchwork.training.processes import check_single_process
from branchwork.training.recipe import fast
from branchwork.training.run import (
    MODEL,
    RESULT,
    STATE,
    STEPS,
    Model,
    TrainedNet,
    claim_folder,
    holds,
    kept_net,
    load_run,
    write_tensors,
)
from branchwork.training.train import resume, train
from branchwork.training.training_run import read_result

# In the folder, beside the sizes so far: the net as it was trained first, and all at the end.
WHOLE, SELECTION = "whole", "selection.json"

# Of the groups that could go, so many are fine-tuned before one is chosen: those whose loss rises least at once.
TRIED = 4


def select(
    net: str | Path,
    *,
    data: str | DataSet | None = None,
    keep: int | None = None,
    macs: float | None = None,
    drop: float | None = None,
    each: bool = False,
    epochs: int | None = None,
    seed: int | None = None,
    out: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    source: Path | None = None,
    observer: Observer | None = None,
) -> Selection:
    """Take branches out of a trained net, the least worthy first, and fine-tune what is left into a run folder.

    `net` is a run folder, or a net argument, which is then trained first by the recipe `fast`. The goal is one of
    `keep`, branches that each join has at the end (2 by default), `macs`, a share of the whole net's, and `drop`, how
    much validation accuracy may be lost, a fraction. At each step the branches whose removal costs least validation
    loss, for each MAC that it saves but with `keep`, are taken out. Branches of the same name in alike joins go
    together; with `each`, every join is decided by itself. The test images are read at the end alone, for the figures
    before and after. `epochs` is how long the net is trained, and the smaller one at the end; by default as long as
    the recipe says, which is the run's.

    What was done is kept in `out`, by default the first free `runs/NET-DATA-selected-1`, `-2`, …: called again with
    the same arguments and that folder, `select` goes on there. Raises `NetError` where no branch can be taken out or
    the goal cannot be reached, `RecipeError` for an impossible goal, `DataError` where the data are not those that the
    run's net takes, and `RunError` where `out` holds something else.
    """
    check_single_process("a selection")
    began = time.perf_counter()
    goal = Goal(keep, macs, drop) if (keep, macs, drop) != (None, None, None) else Goal(keep=2)
    observer = observer or Observer()
    run = load_run(net) if holds(Path(net), MODEL) else None
    if run is not None:
        assert run.model.recipe is not None, "what was trained here has its recipe"
        if seed is not None:
            raise RecipeError(f"{net} was trained with a seed, which says what was held out: leave out --seed")
        if not holds(Path(net), RESULT):
            raise RunError(f"the training in {net} is not finished: continue it with branchwork train --resume {net}")
        data_set, seed = _for_run(run, data, source, observer), read_result(Path(net)).seed
        whole, recipe = kept_net(Path(net), run.model.net), run.model.recipe
    else:
        data_set = data if isinstance(data, DataSet) else load_data(data or "auto", source=source, observer=observer)
        whole, recipe, seed = absolute_name(str(net)), fast(str(net), len(data_set.train)), seed or 0
    if epochs is not None:
        recipe = recipe.but({"epochs": epochs})
    if recipe.validation == 0 and data_set.validation is None:
        raise RecipeError(
            f"{net} was trained on all images, and none are left to judge branches by: train it with --validation 0.1"
        )
    plan = make_plan(whole, data_set, recipe=recipe, options=Options(seed=seed, device=device, threads=threads))
    search = _Search(plan, data_set, goal, each, None if run is None else _fingerprint(run.net))
    search.need_choice()
    folder = search.claim(out)
    try:
        # Another lock than that of the trainings, which hold theirs in this folder too.
        with hold_lock(folder / ".selecting", f"selects into {folder}"):
            if run is None:
                run = load_run(_train_or_go_on(search, folder / WHOLE, whole, None, observer))
            with using_threads(plan.options.threads):
                sizes = search.go(run.net, folder, observer)
            _train_or_go_on(search, folder, sizes[-1].net, weights_of(folder, sizes), observer)
            return search.finish(run, sizes, folder, time.perf_counter() - began)
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted(f"stopped, and what is done is kept: repeat the command with --out {folder}") from None


def _for_run(run: TrainedNet, data: str | DataSet | None, source: Path | None, observer: Observer) -> DataSet:
    """The data, normalised as the run's net takes them."""
    if isinstance(data, DataSet):
        check_match(run.model, data)
    else:
        data = load_for(run.model, data, source, observer)
    if data.classes != run.model.classes:
        raise DataError(
            f"{data.name} has the classes of {run.folder} in another order: select from a net that is trained on it"
        )
    return replace(data, mean=run.model.mean, std=run.model.std)


def _train_or_go_on(search: "_Search", folder: Path, net: str, weights: Path | None, observer: Observer) -> Path:
    """The folder of a finished training: one that was stopped goes on, one that is finished is left as it is."""
    if holds(folder, STATE) and not holds(folder, RESULT):
        resume(folder, data=search.data, observer=observer)
    elif not holds(folder, RESULT):
        plan = search.plan
        train(
            net,
            data=search.data,
            recipe=plan.recipe,
            options=replace(plan.options, weights=None if weights is None else str(weights)),
            out=folder,
            observer=observer,
        )
    return folder


@dataclass(frozen=True)
class _Steps:
    """The sizes that a stopped selection has reached, and what it was asked. It is `steps.json`."""

    question: dict[str, Any]
    sizes: tuple[Size, ...]


@dataclass(frozen=True)
class _Search:
    """What is looked for in which net. `plan` is that of the whole net's training.

    `weights` tells those of a run from any others; it is None for a net that is trained here.
    """

    plan: Plan
    data: DataSet
    goal: Goal
    each: bool
    weights: str | None

    @property
    def model(self) -> Model:
        return Model.of(self.plan.net, self.data, self.plan.recipe)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.data.channels, *self.data.image_size)

    def build(self, net: str) -> nn.Module:
        """`net` with weights that are to be replaced."""
        with torch.random.fork_rng(devices=[]):
            return replace(self.model, net=net).builder()().eval()

    def need_choice(self) -> None:
        """Raises `NetError` or `RecipeError` where no branch could go."""
        net = self.build(self.plan.net)
        counts = [len(join.branches()) for join in find_joins(net).values()]
        name = short_name(self.plan.net)
        if not counts:
            raise NetError(
                f"{name} has no join whose branches have names, so that there is nothing to select. Write its blocks "
                "as branchwork.Concat(b1=…, b5=…), or branchwork.Add(residual=…, shortcut=…)"
            )
        if max(counts) == 1:
            raise NetError(f"each join of {name} has one branch, and one has to stay: there is nothing to select")
        if self.goal.keep is not None and self.goal.keep >= max(counts):
            raise RecipeError(
                f"--keep is {self.goal.keep}, and the joins of {name} have {max(counts)} branches at most: "
                f"keep fewer than {max(counts)}"
            )

    def question(self) -> dict[str, Any]:
        """What the steps in a folder belong to, as JSON has it."""
        plan = self.plan
        recipe, goal = asdict(plan.recipe), asdict(self.goal)
        asked = (plan.net, self.weights, plan.checksum, recipe, plan.options.seed, goal, self.each)
        named = dict(zip(("net", "weights", "checksum", "recipe", "seed", "goal", "each"), asked, strict=True))
        plain: dict[str, Any] = json.loads(json.dumps(named))
        return plain

    def claim(self, out: str | Path | None) -> Path:
        """A new folder, or the one where this selection was stopped. Raises `RunError` where it holds another."""
        if out is None or not holds(Path(out), STEPS):
            folder = claim_folder(out, f"{short_name(self.plan.net)}-{self.data.name}-selected")
            self.keep_steps(folder, [])
            return folder
        folder = Path(out)
        if holds(folder, SELECTION):
            raise RunError(f"{folder} holds a selection that is finished: choose another --out")
        self.taken_up(folder)
        return folder

    def keep_steps(self, folder: Path, sizes: Sequence[Size]) -> None:
        write_json(folder / STEPS, asdict(_Steps(self.question(), tuple(sizes))))

    def taken_up(self, folder: Path) -> list[Size]:
        """The steps that are done. Raises `RunError` where they are of another selection, or damaged."""
        steps = read_json(folder / STEPS, _Steps, remedy="choose another --out")
        if steps.question != self.question():
            raise RunError(
                f"{folder} holds the steps of another selection: give it the same arguments, or another --out"
            )
        return list(steps.sizes)

    def go(self, whole: nn.Module, folder: Path, observer: Observer) -> list[Size]:
        """Take out group after group until the goal is reached. Each size's weights are kept, see `weights_of`.

        Raises `NetError` where the goal cannot be reached.
        """
        recipe, device = self.plan.recipe, pick_device(self.plan.options.device)
        train_split, validation = train_and_validation(
            self.data, recipe.validation, self.plan.options.seed, recipe.fraction
        )
        train_split = Split(train_split.images.to(device), train_split.labels.to(device))
        tuner = Tuner(self.plan, recipe, self.model, train_split, validation)
        groups, sizes = find_groups(whole, self.each), self.taken_up(folder)
        net = copy.deepcopy(whole)
        if sizes:
            net = self.build(sizes[-1].net)
            load_weights(net, weights_of(folder, sizes))
        tuner.place(net)
        if not sizes:
            began = time.perf_counter()
            loss, accuracy = tuner.judge(net)
            macs = count_macs(net, (self.data.channels, *self.data.image_size))
            names = tuple(group.name for group in groups)
            seconds = time.perf_counter() - began
            sizes = [Size(self.plan.net, names, None, count_parameters(net), macs, loss, accuracy, seconds, 0, ())]
            self._keep(folder, sizes, net)
        observer.note(_words(sizes[-1]))
        while self.goal.macs is None or sizes[-1].macs > self.goal.macs * sizes[0].macs:
            step = self._step(net, groups, sizes, tuner, observer)
            if step is None:
                break
            net = step[1]
            sizes.append(step[0])
            self._keep(folder, sizes, net)
            observer.note(_words(sizes[-1]))
        self._need_reached(sizes)
        return sizes

    def _step(
        self, net: nn.Module, groups: Sequence[Group], sizes: Sequence[Size], tuner: Tuner, observer: Observer
    ) -> tuple[Size, nn.Module] | None:
        """The net without the group that is missed least; None where none may go, or that one is missed too much."""
        began, before, now = time.perf_counter(), tuner.steps, sizes[-1]
        candidates = self._candidates(net, [group for group in groups if group.name in now.left], now, observer)
        at_once: list[float | None] = [None] * len(candidates)
        if len(candidates) > TRIED:
            at_once = [tuner.judge(candidate.net)[0] for candidate in candidates]
        cost = [
            math.inf if loss is None else self._cost(loss, c, now) for loss, c in zip(at_once, candidates, strict=True)
        ]
        promising = sorted(range(len(candidates)), key=cost.__getitem__)[:TRIED]
        judged: dict[int, tuple[float, float]] = {}
        for count, index in enumerate(promising):
            observer.count(f"{len(now.left)} left: fine-tuning without each", count, len(promising))
            tuner.tune(candidates[index].net, TRYING)
            judged[index] = tuner.judge(candidates[index].net)
        observer.count_end()
        for index in sorted(judged, key=lambda index: self._cost(judged[index][0], candidates[index], now)):
            chosen = candidates[index]
            tuner.tune(chosen.net, SETTLING)
            loss, accuracy = tuner.judge(chosen.net)
            if self.goal.drop is None or sizes[0].validation_accuracy - accuracy <= self.goal.drop:
                break
        else:
            return None
        tried = tuple(
            Tried(c.group.name, c.parameters, c.macs, at_once[i], *judged.get(i, (None, None)))
            for i, c in enumerate(candidates)
        )
        removed = {chosen.group.name, *(size.removed for size in sizes)}
        gone = [branch for group in groups if group.name in removed for branch in group.branches]
        joins = find_joins(chosen.net)
        left = tuple(group.name for group in groups if group.name in now.left and group.within(joins))
        size = Size(
            net=self._name(gone),
            left=left,
            removed=chosen.group.name,
            parameters=chosen.parameters,
            macs=chosen.macs,
            validation_loss=loss,
            validation_accuracy=accuracy,
            seconds=time.perf_counter() - began,
            steps=tuner.steps - before,
            tried=tried,
        )
        return size, chosen.net

    def _candidates(self, net: nn.Module, groups: Sequence[Group], now: Size, observer: Observer) -> list[Candidate]:
        """The net without each of the groups that cost something and whose joins keep enough branches.

        One that cannot be taken out stays, and the reader is told why at the first step.
        """
        joins, least = find_joins(net), self.goal.keep or 1
        candidates = []
        for group in groups:
            if any(len(joins[path].branches()) <= least for path, _ in group.branches):
                continue
            try:
                smaller = prune(net, self.shape, group.paths).eval()
            except NetError as reason:
                if now.removed is None:
                    observer.note(f"{group.name} stays: {first_line(reason)}")
                continue
            macs = count_macs(smaller, (self.data.channels, *self.data.image_size))
            if macs < now.macs:  # a shortcut that copies costs nothing
                candidates.append(Candidate(group, smaller, count_parameters(smaller), macs))
        return candidates

    def _cost(self, loss: float, candidate: Candidate, now: Size) -> float:
        """What is lost: in all where the branches are counted, else for each MAC that is saved.

        Where nothing is lost, the most that is saved: else a tiny gain by a branch that saves nothing would go first.
        """
        if self.goal.keep is not None:
            return loss
        lost, saved = loss - now.validation_loss, now.macs - candidate.macs
        return lost / saved if lost > 0 else -float(saved)

    def _name(self, gone: Sequence[Branch]) -> str:
        """The argument of the whole net without the branches that are `gone`."""
        name, options = split_options(self.plan.net)
        before = options.pop(WITHOUT, None)
        whole = with_options(name, options)
        net = self.build(whole)
        all_gone = {*gone, *(find_branches(net, before.split("+")) if before else ())}
        joins = find_joins(net)
        names = []
        for path, branch in find_branches(net, [f"{path}.{name}".lstrip(".") for path, name in all_gone]):
            everywhere = all((where, branch) in all_gone for where, join in joins.items() if branch in join.branches())
            names.append(branch if everywhere else f"{path}.{branch}".lstrip("."))
        return with_options(whole, {WITHOUT: "+".join(dict.fromkeys(names))})

    def _need_reached(self, sizes: Sequence[Size]) -> None:
        name, last = short_name(self.plan.net), sizes[-1]
        if self.goal.macs is not None and last.macs > self.goal.macs * sizes[0].macs:
            raise NetError(
                f"--macs is {self.goal.macs:g}, and {name}, which loses the branches that it misses least, comes to "
                f"{last.macs / sizes[0].macs:.2f} of its MACs with one left in each join: ask for more than that, or "
                "name the branches that are to go yourself, as in net[without=b5]"
            )
        if len(sizes) > 1:
            return
        if self.goal.drop is not None:
            raise NetError(
                f"{name} loses more than {self.goal.drop:.2%} of validation accuracy without any of the branches "
                "that it misses least: allow a larger --drop, or keep the net as it is"
            )
        raise NetError(f"no branch of {name} can be taken out that costs anything: there is nothing to select")

    def _keep(self, folder: Path, sizes: Sequence[Size], net: nn.Module) -> None:
        # Weights first: a step whose weights are missing could not be taken up, one that is missing is done again.
        write_tensors(weights_of(folder, sizes), net.state_dict())
        self.keep_steps(folder, sizes)

    def _missed(self, sizes: Sequence[Size], net: nn.Module, validation_accuracy: float) -> str | None:
        """How the trained net fails the goal, in words; None where it does not."""
        lost = sizes[0].validation_accuracy - validation_accuracy
        if self.goal.drop is not None and lost > self.goal.drop:
            return f"trained, it loses {lost:.2%} of validation accuracy, more than the {self.goal.drop:.2%} of --drop"
        keep = self.goal.keep
        more = [path or "the join" for path, join in find_joins(net).items() if keep and len(join.branches()) > keep]
        if more:
            where = more[0] if len(more) == 1 else f"{more[0]} and {len(more) - 1} joins more"
            return f"more than {keep} branches stay in {where}, since no other could go that costs something"
        return None

    def finish(self, run: TrainedNet, sizes: Sequence[Size], folder: Path, seconds: float) -> Selection:
        """The figures before and after: here the test images are read."""
        after, before = read_result(folder), evaluate_net(run.net.to("cpu", torch.float32), run.model, self.data)
        assert after.validation_accuracy is not None, "select refuses a training without validation"
        selection = Selection(
            whole=self.plan.net,
            net=after.net,
            data=self.data.name,
            seed=self.plan.options.seed,
            goal=self.goal.words(),
            sizes=tuple(sizes),
            worth=_worth(find_groups(run.net, self.each), run.net, sizes),
            before=Figures(
                sizes[0].parameters,
                sizes[0].macs,
                sizes[0].validation_accuracy,
                before.accuracy,
                before.interval,
            ),
            after=Figures(
                after.parameters, after.macs, after.validation_accuracy, after.test_accuracy, after.test_interval
            ),
            missed=self._missed(sizes, load_run(folder).net, after.validation_accuracy),
            steps=sum(size.steps for size in sizes),
            seconds=seconds,
            folder=after.folder,
            report=after.report,
        )
        write_json(folder / SELECTION, asdict(selection))
        return selection


def _fingerprint(net: nn.Module) -> str:
    """The same for the same weights."""
    found = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        found.update(name.encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def weights_of(folder: Path, sizes: Sequence[Size]) -> Path:
    """Where the weights of the last of these sizes are."""
    return folder / f"size-{len(sizes) - 1}.safetensors"


def _worth(groups: Sequence[Group], whole: nn.Module, sizes: Sequence[Size]) -> tuple[Worth, ...]:
    """Of the groups that could have gone, the most worthy by removal first."""
    removed = [size.removed for size in sizes[1:] if size.removed is not None]
    # For those that are left, what the last step that tried them has found: without which the loss was higher.
    losses = {tried.group: _last_loss(tried) for size in sizes for tried in size.tried}
    left = sorted((name for name in sizes[-1].left if name in losses), key=lambda name: -losses[name])
    weights = {group.name: weight_size(whole, group) for group in groups if group.name in losses}
    by_weights = sorted(weights, key=lambda name: -(weights[name] or 0.0))
    by_removal = [*left, *reversed(removed)]
    return tuple(
        Worth(name, weights[name], by_weights.index(name) + 1, by_removal.index(name) + 1, name in left)
        for name in by_removal
    )


def _last_loss(tried: Tried) -> float:
    loss = tried.loss_at_once if tried.validation_loss is None else tried.validation_loss
    assert loss is not None, "a group is judged at once, or after fine-tuning"
    return loss


def _words(size: Size) -> str:
    gone = f"without {size.removed}, " if size.removed else ""
    return (
        f"{len(size.left)} left: {gone}validation {size.validation_accuracy:.2%}, loss {size.validation_loss:.4f}, "
        f"{size.macs:,} MACs"
    )
