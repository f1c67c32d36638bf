"""The verb `explain` for a whole net: what each branch of each join contributes, and what it costs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from branchwork.datasets.batches import generator_of, train_and_validation
from branchwork.datasets.dataset import DataSet, Split
from branchwork.errors import ExplainError, NetError
from branchwork.explaining.ablation import By, Joined, read_joins
from branchwork.explaining.explain_plots import draw_contributions
from branchwork.explaining.figures import Contribution, Explanation, Measure, Relation
from branchwork.explaining.measure import TIMED_BATCH, observe, remove_each, time_branches
from branchwork.explaining.ranks import judge, rank_interval, spearman
from branchwork.figures import check_ending
from branchwork.nets.resolve import short_name
from branchwork.nets.weights import weight_rms
from branchwork.observer import Observer
from branchwork.training.evaluate import load_for
from branchwork.training.infer import pick_layout
from branchwork.training.machine import machine
from branchwork.training.metrics import paired_interval, wilson_interval
from branchwork.training.run import RESULT, Model, TrainedNet, holds, load_run
from branchwork.training.train import read_result


def explain(
    run: str | Path,
    *,
    data: str | None = None,
    images: int | None = None,
    source: Path | None = None,
    picture: Path | None = None,
    observer: Observer | None = None,
) -> Explanation:
    """What each branch of each join in the net of a run folder contributes, and what it costs.

    By default on the validation images that the run held out, or the test images where it held out none; with `data`,
    on the test images of that; with `images`, on so many of them, drawn at random. With `picture`, the branches are
    drawn into that file, `.svg` or `.png`. Raises `NetError` for a net without joins or whose operations depend on the
    pixels, and `DataError` where the classes or the images do not match the net's.
    """
    observer = observer or Observer()
    if images is not None and images < 1:
        raise ExplainError(f"--images is {images}, and at least one image is needed")
    if picture is not None:
        check_ending(picture, ExplainError)
    trained = load_run(run)
    joined = joins_of(trained)
    loaded = load_for(trained.model, data, source, observer)
    name, split = _choose(trained, loaded, data is None, images)
    explanation = _explain(joined, trained.model, split, (loaded.name, name), observer)
    if picture is not None:
        draw_contributions(explanation, picture)
    return explanation


def joins_of(trained: TrainedNet) -> Joined:
    """The joins of a run's net. Raises `NetError` where it has none from which a branch could be taken."""
    model = trained.model
    pick_layout(trained.net, model)  # as it is evaluated: a pooling takes a quarter of the time then
    joined = read_joins(trained.net, (model.in_channels, *model.image_size))
    if not joined.operands:
        alone = _single(joined)
        why = f"{', '.join(alone)} joins one branch alone" if alone else "no operation joins branches (torch.cat, +)"
        raise NetError(
            f"{short_name(model.net)} has no branches that could be taken out: {why}. Give the run of a net that "
            "branches or skips, such as inception or residual"
        )
    return joined


def _single(joined: Joined) -> tuple[str, ...]:
    return tuple(node.name for node in joined.trace.operations if node.op == "cat" and len(node.inputs) == 1)


def _choose(
    trained: TrainedNet, data: DataSet, own: bool, count: int | None
) -> tuple[Literal["validation", "test"], Split]:
    """The images to measure on, with labels that are numbers of the net's classes."""
    name: Literal["validation", "test"] = "test"
    split, held_out = data.test, trained.model.recipe.get("validation", 0)
    if own and held_out and holds(trained.folder, RESULT):
        name, split = "validation", train_and_validation(data, held_out, read_result(trained.folder).seed)[1]
    if count is not None and count < len(split):
        split = split.pick(torch.randperm(len(split), generator=generator_of(0, "explain"))[:count])
    # Found by name, since a data set may order its classes otherwise.
    numbers = torch.tensor([trained.model.classes.index(name) for name in data.classes])
    return name, Split(split.images, numbers[split.labels])


def _explain(
    joined: Joined,
    model: Model,
    split: Split,
    name: tuple[str, Literal["validation", "test"]],
    observer: Observer,
) -> Explanation:
    observed = observe(joined, model, split)
    without = remove_each(joined, model, split, observed.means, observer)
    times = time_branches(joined, model)
    macs = {node.name: node.macs for node in joined.trace.operations}
    branches = []
    for join, entering in joined.operands.items():
        for branch in entering:
            key = (join, branch)
            weights = _weights(joined, *key)
            size, numbers = weight_rms(weights), sum(weight.numel() for weight in weights if weight.dim() > 1)
            mean, zero = (_lost(observed.right, without[*key, by]) for by in get_args(By))
            branches.append(
                Contribution(
                    join=join,
                    branch=branch,
                    lost_by_mean=mean[0],
                    lost_by_mean_interval=mean[1],
                    lost_by_zero=zero[0],
                    lost_by_zero_interval=zero[1],
                    weight_rms=size,
                    weight_norm=None if size is None else size * math.sqrt(numbers),
                    activation_rms=observed.rms[key],
                    parameters=sum(weight.numel() for weight in weights),
                    macs=sum(macs[node] for node in joined.branch(*key).nodes),
                    milliseconds=times[key],
                )
            )
    right = int(observed.right.sum())
    return Explanation(
        net=short_name(model.net),
        data=name[0],
        split=name[1],
        images=len(split),
        accuracy=right / len(split),
        interval=wilson_interval(right, len(split)),
        branches=tuple(branches),
        residuals=observed.residuals,
        single=_single(joined),
        relations=relations(branches),
        timed_batch=TIMED_BATCH,
        threads=torch.get_num_threads(),
        machine=machine(),
    )


def _lost(before: Tensor, after: Tensor) -> tuple[float, tuple[float, float]]:
    """What the accuracy falls by, and its interval."""
    lost, gained, total = int((before & ~after).sum()), int((~before & after).sum()), len(before)
    return (lost - gained) / total, paired_interval(lost, gained, total)


def _weights(joined: Joined, join: str, branch: str) -> list[Tensor]:
    """The parameters that the operations of a branch use, each once."""
    own = dict(joined.program.named_parameters(remove_duplicate=False))
    used = [source.target for node in joined.nodes(join, branch) for source in node.all_input_nodes]
    return list(dict.fromkeys(own[str(name)] for name in used if str(name) in own))


def relations(branches: Sequence[Contribution]) -> tuple[Relation, ...]:
    """Each measure over all branches, and the size of a weight over those of each join, where two have weights."""
    joins = dict.fromkeys(branch.join for branch in branches)
    found = [_relation("weight_rms", join, [b for b in branches if b.join == join]) for join in joins]
    found += [_relation(measure, None, branches) for measure in get_args(Measure)]
    return tuple(relation for relation in found if relation.count > 1 or relation.join is None)


def _relation(measure: Measure, join: str | None, branches: Sequence[Contribution]) -> Relation:
    chosen = [branch for branch in branches if getattr(branch, measure) is not None]
    sizes, worths = [getattr(branch, measure) for branch in chosen], [branch.lost_by_mean for branch in chosen]
    correlation = spearman(sizes, worths)
    interval = None if correlation is None else rank_interval(correlation, len(chosen))
    # Where no loss can be told from none, their order is nothing but noise.
    told = any(not low <= 0 <= high for low, high in (branch.lost_by_mean_interval for branch in chosen))
    verdict = judge(len(chosen), interval if told else None)
    return Relation(measure, join, len(chosen), correlation, interval, verdict)
