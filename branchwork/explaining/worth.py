"""The verb `explain` for a whole net: what each branch of each join contributes, and what it costs."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import Tensor

from branchwork.catalogue.resolve import short_name
from branchwork.catalogue.weights import weight_rms
from branchwork.datasets.dataset import DataSet, Split
from branchwork.errors import ExplainError, NetError
from branchwork.explaining.explain_plots import draw_contributions
from branchwork.explaining.ranks import rank_interval, spearman, verdict_of
from branchwork.explaining.results import Contribution, Explanation, Measure, Relation
from branchwork.figures import check_drawing, legible
from branchwork.graph.branching import BranchedNet, Replacement, read_branches
from branchwork.observer import Observer
from branchwork.palette import ThemeName
from branchwork.screen import watch
from branchwork.training.evaluate import labels_of, load_for, wilson_interval
from branchwork.training.infer import pick_device, pick_layout
from branchwork.training.machine import machine
from branchwork.training.measure import TIMED_BATCH, lost_accuracy, observe, remove_each, sample_images, time_branches
from branchwork.training.run import RESULT, Model, TrainedNet, holds, load_run
from branchwork.training.splits import splits_of


def explain(
    run: str | Path,
    *,
    data: str | None = None,
    images: int | None = None,
    source: Path | None = None,
    draw: Path | None = None,
    theme: ThemeName = "light",
    progress: bool | Observer = False,
) -> Explanation:
    """Explain what each branch of each join in the net of a run folder contributes, and what it costs.

    It is measured on the validation images that the run held out, or on the test images if there are none; with `data`,
    on the test images of that data set; with `images`, on that many of them, drawn at random. A GPU is used if there is
    one. The branches are drawn into `draw`, an `.svg` or `.png`, if given, on the paper of `theme`. Raises `NetError`
    for a net without joins or with data-dependent control flow, and `DataError` if the classes or the images are not
    those that the net takes.
    """
    observer = watch(progress)
    if images is not None and images < 1:
        raise ExplainError("--images must be at least 1, got {images}", images=images)
    trained = load_run(run)
    if draw is not None:
        check_drawing(draw, ExplainError)
    branched = _branched(trained)
    loaded = load_for(trained.model, data, source, observer=observer)
    split_name, split = choose_images(trained, loaded, is_own_data=data is None, count=images)
    explanation = _explain(branched, trained.model, split, names=(loaded.name, split_name), observer=observer)
    if draw is not None:
        with legible(draw):
            draw_contributions(explanation, draw, theme)
    return explanation


def _branched(trained: TrainedNet) -> BranchedNet:
    """Return the joins of a run's net. Raises `NetError` if no join has a branch that could be taken out."""
    model = trained.model
    trained.net.to(pick_device("auto"))
    pick_layout(trained.net, model)  # the layout of evaluation, in which a pooling takes a quarter of the time
    branched = read_branches(trained.net, model.input_shape)
    if not branched.entries:
        single = _single_joins(branched)
        raise NetError(
            "{name} has no branches to remove: {joins} joins one branch alone. Give the run of a net that branches or "
            "skips, such as inception or residual"
            if single
            else "{name} has no branches to remove: no operation joins branches (torch.cat, +). Give the run of a net "
            "that branches or skips, such as inception or residual",
            name=short_name(model.net),
            joins=", ".join(single),
        )
    return branched


def _single_joins(branched: BranchedNet) -> tuple[str, ...]:
    return tuple(node.name for node in branched.trace.operations if node.op == "cat" and len(node.inputs) == 1)


def choose_images(
    trained: TrainedNet, data: DataSet, *, is_own_data: bool, count: int | None
) -> tuple[Literal["validation", "test"], Split]:
    """Return the images to measure on, with labels that are indices of the net's classes, and their split's name."""
    name: Literal["validation", "test"] = "test"
    split = data.test
    if is_own_data and holds(trained.folder, RESULT):
        held_out = splits_of(trained, data)[1]
        if len(held_out):
            name, split = "validation", held_out
    split = sample_images(split, len(split) if count is None else count)
    return name, Split(split.images, labels_of(split, data, trained.model))


def _explain(
    branched: BranchedNet,
    model: Model,
    split: Split,
    *,
    names: tuple[str, Literal["validation", "test"]],
    observer: Observer,
) -> Explanation:
    observed = observe(branched, model, split)
    without = remove_each(branched, model, split, observed=observed, observer=observer)
    milliseconds = time_branches(branched, model)
    macs = {node.name: node.macs for node in branched.trace.operations}
    contributions = []
    for join, branches in branched.entries.items():
        for branch in branches:
            key = (join, branch)
            weights = _weights(branched, *key)
            rms, count = weight_rms(weights), sum(weight.numel() for weight in weights if weight.dim() > 1)
            mean, zero = (lost_accuracy(observed.correct, without[*key, by]) for by in get_args(Replacement))
            contributions.append(
                Contribution(
                    join=join,
                    branch=branch,
                    lost_by_mean=mean[0],
                    lost_by_mean_interval=mean[1],
                    lost_by_zero=zero[0],
                    lost_by_zero_interval=zero[1],
                    weight_rms=rms,
                    weight_norm=None if rms is None else rms * math.sqrt(count),
                    activation_rms=observed.rms[key],
                    parameters=sum(weight.numel() for weight in weights),
                    macs=sum(macs[node] for node in branched.branch(*key).nodes),
                    milliseconds=milliseconds[key],
                )
            )
    correct = int(observed.correct.sum())
    return Explanation(
        net=short_name(model.net),
        data=names[0],
        split=names[1],
        images=len(split),
        accuracy=correct / len(split),
        interval=wilson_interval(correct, len(split)),
        macs=branched.trace.macs,
        branches=tuple(contributions),
        residuals=observed.residuals,
        single=_single_joins(branched),
        relations=relations(contributions),
        timed_batch=TIMED_BATCH,
        threads=torch.get_num_threads(),
        machine=machine(),
    )


def _weights(branched: BranchedNet, join: str, branch: str) -> list[Tensor]:
    """Return the parameters that the operations of a branch use, each once."""
    parameters = dict(branched.graph.module.named_parameters(remove_duplicate=False))
    names = [str(node.target) for each in branched.operations(join, branch) for node in each.all_input_nodes]
    return list(dict.fromkeys(parameters[name] for name in names if name in parameters))


def relations(branches: Sequence[Contribution]) -> tuple[Relation, ...]:
    """Relate each measure of all branches to their worth, and in each join of two weighted branches that of weights."""
    joins = dict.fromkeys(branch.join for branch in branches)
    per_join = [_relation("weight_rms", join, [b for b in branches if b.join == join]) for join in joins]
    overall = [_relation(measure, None, branches) for measure in get_args(Measure)]
    return (*(relation for relation in per_join if relation.count > 1), *overall)


def _relation(measure: Measure, join: str | None, branches: Sequence[Contribution]) -> Relation:
    measured = [branch for branch in branches if getattr(branch, measure) is not None]
    sizes, losses = [getattr(branch, measure) for branch in measured], [branch.lost_by_mean for branch in measured]
    correlation = spearman(sizes, losses)
    interval = None if correlation is None else rank_interval(correlation, len(measured))
    # If no loss can be told from none, their order is nothing but noise.
    is_signal = any(not low <= 0 <= high for low, high in (branch.lost_by_mean_interval for branch in measured))
    verdict = verdict_of(len(measured), interval if is_signal else None)
    return Relation(measure, join, len(measured), correlation, interval, verdict)
