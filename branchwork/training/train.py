"""Train a net into a run folder or continue a training: once, with several seeds, on folds, or as the demo."""

import statistics
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Unpack

from branchwork.catalogue.resolve import short_name
from branchwork.datasets.batches import one_fold
from branchwork.datasets.dataset import DataSet
from branchwork.datasets.load import load_data
from branchwork.errors import Interrupted, RecipeError, RunError
from branchwork.files import hold_lock, read_json, remove_parts, typed, with_format, write_json
from branchwork.language import mark, say
from branchwork.observer import Observer
from branchwork.screen import watch
from branchwork.shown import Several, Shown
from branchwork.training.checkpoint import SavedState, load_state
from branchwork.training.choice import choose
from branchwork.training.evaluate import wilson_interval
from branchwork.training.keywords import Keywords, divide
from branchwork.training.options import Options
from branchwork.training.plan import Plan, make_plan
from branchwork.training.processes import Processes, check_single_process, interruptible, joined
from branchwork.training.recipe import Recipe
from branchwork.training.result import Result, read_result
from branchwork.training.run import (
    FOLDS,
    RESULT,
    SCRIPTS,
    SEEDS,
    STATE,
    check_code,
    claim_folder,
    holds,
    keep_script,
    kept_net,
)
from branchwork.training.statistics import measure_interval
from branchwork.training.training_run import LOCK, run_training


def train(
    net: str | None = None,
    *,
    data: str | DataSet = "auto",
    recipe: str | Recipe | None = None,
    options: Options | None = None,
    out: str | Path | None = None,
    source: Path | None = None,
    progress: bool | Observer = False,
    **keywords: Unpack[Keywords],
) -> Result:
    """Train `net` on `data` into a run folder, and test it once at the end.

    Without `net`, one is chosen with its recipe for a folder of pictures, of which `progress` is told; else it is
    `inception`. `recipe` says what to train: the name of a recipe or a `Recipe`, by default `fast`; `options` say how
    to run it. Their fields are also keywords: `train("residual", data="sample", epochs=1, seed=7)`. `out` defaults to
    the first free folder of `runs/NET-DATA-1`, `-2`, …; `source` is a folder with the files of `data`. If training
    starts from `weights`, images are normalised as those weights expect. With `log="tensorboard"`, figures are also
    written to the run's `tensorboard/`, step by step. With `progress`, progress is shown; an `Observer` is told of it.
    Raises `Interrupted` after Ctrl-C, with the state saved, and `TrainingError` if the loss is no longer finite.
    """
    changes, options = divide(keywords, options)
    with joined() as processes:
        observer = watch(progress) if processes.first else Observer()

        def prepare() -> tuple[DataSet, Plan, Path | None]:
            data_set = load_data(data, source=source, progress=observer) if isinstance(data, str) else data
            name, chosen = choose(net, recipe, data_set, changes=changes, weights=options.weights, observer=observer)
            plan = make_plan(name, data_set, recipe=chosen, options=options, processes=processes, observer=observer)
            claimed = claim_folder(out, f"{short_name(name)}-{data_set.name}") if processes.first else None
            return data_set, plan, claimed

        data_set, plan, claimed = processes.together(prepare)
        folder = processes.share(claimed)
        assert folder is not None
        # Each process may have measured a different batch size: the smallest fits all.
        batch_size = min(processes.every(plan.recipe.images_per_step))
        plan = processes.share(plan)
        plan = replace(plan, recipe=replace(plan.recipe, batch_size=batch_size))
        with interruptible() as interrupted:
            return run_training(
                plan, data_set, folder, saved=None, interrupted=interrupted, observer=observer, processes=processes
            )


def resume(
    run: str | Path, *, data: DataSet | None = None, source: Path | None = None, progress: bool | Observer = False
) -> Result:
    """Continue the interrupted training of a run folder, to the same weights, bit for bit.

    `data` defaults to the data set that the training started with. Raises `RunError` if the folder holds no training,
    or a damaged or finished one, or if the data have changed.
    """
    with joined() as processes:
        observer = watch(progress) if processes.first else Observer()
        folder = Path(run)

        def read() -> SavedState | None:
            if not processes.first:
                return None
            if holds(folder, RESULT):
                raise RunError(
                    "the training in {folder} is finished: its figures are in {result}",
                    folder=folder,
                    result=folder / RESULT,
                )
            return load_state(folder)

        # Only the first process reads it: on another machine the file may be older or missing.
        state = processes.share(processes.together(read))
        assert state is not None
        plan = state.plan
        data_set = processes.together(lambda: data or _load_again(plan, source, observer))
        with interruptible() as interrupted:
            return run_training(
                plan, data_set, folder, saved=state, interrupted=interrupted, observer=observer, processes=processes
            )


def _load_again(plan: Plan, source: Path | None, observer: Observer) -> DataSet:
    """Load the data that a training started with."""
    return load_data(plan.data, source=source, size=plan.size, fit=plan.fit, progress=observer)


@dataclass(frozen=True)
class SeedsResult(Shown):
    """The test accuracies of several seeds, as fractions; `deviation` is the sample standard deviation (n − 1)."""

    net: str
    data: str
    seeds: tuple[int, ...]
    mean: float
    deviation: float
    mean_train_seconds: float
    results: tuple[Result, ...]
    folder: str


@dataclass(frozen=True)
class FoldsResult(Shown):
    """The mean accuracy over folds, as a fraction, and its 95% interval: Student's, on the log-odds.

    If all folds agree, the interval is Wilson's for all their images. The `test_accuracy` of each result is the one on
    its fold.
    """

    net: str
    data: str
    folds: int
    mean: float
    interval: tuple[float, float]
    mean_train_seconds: float
    results: tuple[Result, ...]
    folder: str


def train_seeds(
    net: str | None = None,
    *,
    seeds: int = 5,
    data: str | DataSet = "auto",
    recipe: str | Recipe | None = None,
    options: Options | None = None,
    out: str | Path | None = None,
    source: Path | None = None,
    progress: bool | Observer = False,
    **keywords: Unpack[Keywords],
) -> SeedsResult:
    """Train `net` with `seeds` consecutive seeds, the first being `seed`, each in its own folder in `out`.

    The other arguments and the errors are those of `train`.
    """
    changes, options = divide(keywords, options)
    observer = watch(progress)
    check_single_process("several seeds")
    if not 2 <= seeds <= 1000:
        raise RecipeError(
            "seeds must be from 2 (for a deviation) to 1000, got {seeds}: for one seed, leave it out", seeds=seeds
        )
    data_set = load_data(data, source=source, progress=observer) if isinstance(data, str) else data
    net, chosen = choose(net, recipe, data_set, changes=changes, weights=options.weights, observer=observer)
    plan = make_plan(net, data_set, recipe=chosen, options=options, observer=observer)
    plans = [
        replace(plan, options=replace(plan.options, seed=seed)) for seed in range(options.seed, options.seed + seeds)
    ]
    folder = claim_folder(out, f"{short_name(net)}-{data_set.name}-seeds")
    _keep_plans(plans, folder / SEEDS)
    return _train_seeds(plans, folder, data_set, observer=observer)


def train_folds(
    net: str | None = None,
    *,
    folds: int = 5,
    data: str | DataSet = "auto",
    recipe: str | Recipe | None = None,
    options: Options | None = None,
    out: str | Path | None = None,
    source: Path | None = None,
    progress: bool | Observer = False,
    **keywords: Unpack[Keywords],
) -> FoldsResult:
    """Divide the training images into `folds`, and train `net` once for each, on all other folds.

    Each is tested on its fold (k-fold cross-validation), so every training image tests a net that has not seen it; the
    test images are left alone. The other arguments and the errors are those of `train`.
    """
    changes, options = divide(keywords, options)
    observer = watch(progress)
    check_single_process("several folds")
    if not 2 <= folds <= 100:
        raise RecipeError("folds must be from 2 to 100, got {folds}: 5 and 10 are usual", folds=folds)
    data_set = load_data(data, source=source, progress=observer) if isinstance(data, str) else data
    net, chosen = choose(net, recipe, data_set, changes=changes, weights=options.weights, observer=observer)
    first = one_fold(data_set, 1, folds, options.seed)
    plan = make_plan(net, first, recipe=chosen, options=options, observer=observer)
    checksum = data_set.train.checksum()
    plans = [replace(plan, checksum=checksum, fold=(fold, folds)) for fold in range(1, folds + 1)]
    folder = claim_folder(out, f"{short_name(net)}-{data_set.name}-folds")
    _keep_plans(plans, folder / FOLDS)
    return _train_folds(plans, folder, data_set, observer=observer)


def _keep_plans(plans: list[Plan], path: Path) -> None:
    keep_script(path.parent, plans[0].net)
    write_json(path, [with_format(plan) for plan in plans])


def resume_seeds(
    folder: str | Path, *, data: DataSet | None = None, source: Path | None = None, progress: bool | Observer = False
) -> SeedsResult:
    """Train the seeds that are not finished in a folder of `train_seeds`, and return the result of all.

    Raises `RunError` if the folder is damaged, and whatever `resume` raises.
    """
    observer = watch(progress)
    check_single_process("several seeds")
    plans = _kept_plans(Path(folder) / SEEDS)
    return _train_seeds(plans, Path(folder), data or _load_again(plans[0], source, observer), observer=observer)


def resume_folds(
    folder: str | Path, *, data: DataSet | None = None, source: Path | None = None, progress: bool | Observer = False
) -> FoldsResult:
    """Train on the folds that are not finished in a folder of `train_folds`, and return the result of all.

    Raises `RunError` if the folder is damaged, and whatever `resume` raises.
    """
    observer = watch(progress)
    check_single_process("several folds")
    plans = _kept_plans(Path(folder) / FOLDS)
    return _train_folds(plans, Path(folder), data or _load_again(plans[0], source, observer), observer=observer)


def _kept_plans(path: Path) -> list[Plan]:
    """Return the plans of several seeds or folds. Raises `RunError` if they are damaged."""
    remedy = mark("train again into another folder")
    plans = read_json(path, list[Plan], remedy=remedy)
    if len({(plan.options.seed, plan.fold) for plan in plans}) != len(plans) or len(plans) < 2:
        raise RunError(
            "{path} is damaged (it needs at least two different seeds or folds): {remedy}",
            path=path,
            remedy=say(remedy),
        )
    for plan in plans:
        check_code(path.parent, plan.net)
    return plans


def _train_seeds(plans: list[Plan], folder: Path, data: DataSet, *, observer: Observer) -> SeedsResult:
    named = {f"seed-{plan.options.seed}": plan for plan in plans}
    accuracies, figures = _train_each(named, folder, data, observer=observer)
    seeds, deviation = tuple(plan.options.seed for plan in plans), statistics.stdev(accuracies)
    summary = SeedsResult(seeds=seeds, mean=statistics.mean(accuracies), deviation=deviation, **figures)
    write_json(folder / RESULT, with_format(summary))
    return summary


def _train_folds(plans: list[Plan], folder: Path, data: DataSet, *, observer: Observer) -> FoldsResult:
    named = {f"fold-{number}": plan for number, plan in enumerate(plans, 1)}
    accuracies, figures = _train_each(named, folder, data, observer=observer)
    accuracy = measure_interval(accuracies, "test_error")
    assert accuracy.low is not None and accuracy.high is not None, "there are at least two folds"
    interval = accuracy.low, accuracy.high
    if accuracy.low == accuracy.high:  # no fold differs from another, as where all images are right
        interval = wilson_interval(round(accuracy.mean * len(data.train)), len(data.train))
    summary = FoldsResult(folds=len(plans), mean=accuracy.mean, interval=interval, **figures)
    write_json(folder / RESULT, with_format(summary))
    return summary


def _train_each(
    plans: Mapping[str, Plan], folder: Path, data: DataSet, *, observer: Observer
) -> tuple[list[float], dict[str, Any]]:
    """Complete the trainings in `folder`, by the names of their own folders in it.

    Returns their accuracies, and what the results of several seeds and of several folds have in common.
    """
    again = say("stopped, and saved. Continue with: branchwork train --resume {folder}", folder=typed(folder))
    each = {folder / name: replace(plan, net=kept_net(folder, plan.net)) for name, plan in plans.items()}
    with hold_lock(folder / LOCK, say("is training in {folder}", folder=folder)):
        remove_parts(folder, folder / SCRIPTS)
        results = _complete(each, data, again=again, observer=observer)
    return [result.test_accuracy for result in results], {
        "net": next(iter(plans.values())).net,
        "data": data.name,
        "mean_train_seconds": statistics.mean(result.train_seconds for result in results),
        "results": results,
        "folder": str(folder),
    }


def _complete(plans: Mapping[Path, Plan], data: DataSet, *, again: str, observer: Observer) -> tuple[Result, ...]:
    """Return the results of several trainings on `data`, each in the folder that `plans` gives it.

    Finished ones are read, interrupted ones are continued, and the others are trained. Raises `Interrupted` after
    Ctrl-C, with the message `again`, which says how to continue.
    """
    results = []
    with interruptible() as interrupted:
        for folder, plan in plans.items():
            if interrupted.is_set():
                raise Interrupted(again)
            if holds(folder, RESULT):
                observer.note(say("{folder} is already trained: delete it to train again", folder=folder))
                results.append(read_result(folder))
                continue
            saved = load_state(folder) if holds(folder, STATE) else None
            if saved is None:
                claim_folder(folder, "")
            try:
                result = run_training(
                    plan if saved is None else saved.plan,
                    data,
                    folder,
                    saved=saved,
                    interrupted=interrupted,
                    observer=observer,
                    processes=Processes(),
                )
                results.append(result)
            except Interrupted:
                raise Interrupted(again) from None
    return tuple(results)


def demo(data: str = "auto", *, out: str | Path = "runs/demo", progress: bool | Observer = False) -> Several[Result]:
    """Train `inception` and `residual` on `data` into folders in `out`.

    A finished net is not trained again; an interrupted one is continued.
    """
    observer = watch(progress)
    check_single_process("the demo")
    data_set = load_data(data, progress=observer)
    folder = Path(out) / data_set.name
    nets = ("inception", "residual")
    plans = {folder / net: make_plan(net, data_set) for net in nets}
    again = say("stopped, and saved. Run the same command again to continue.")
    return Several(_complete(plans, data_set, again=again, observer=observer))
