"""Make a trained net smaller: remove the branches that do not earn their cost, step by step, with fine-tuning.

A branch is judged by removing it, not by its weights, which do not tell its worth (Wang et al. 2021, "Rethinking
Architecture Selection in Differentiable NAS", section 4; DARTS, Liu et al. 2019, goes by weights).
"""

import copy
import hashlib
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import nn

from branchwork.catalogue.prune import find_joins
from branchwork.catalogue.resolve import absolute_name, short_name, split_options, whole_script
from branchwork.catalogue.weights import load_weights
from branchwork.datasets.dataset import DataSet
from branchwork.datasets.load import load_data
from branchwork.errors import DataError, Interrupted, RecipeError, RunError
from branchwork.explaining.selection import Figures, Goal, Selection, Size
from branchwork.explaining.selection_report import selection_page
from branchwork.explaining.shrinking import Search, build, rank_groups, shrink, start_search
from branchwork.files import hold_lock, read_json, remove_parts, typed, with_format, write_json, write_whole
from branchwork.language import enumerated, say
from branchwork.observer import Observer
from branchwork.screen import watch
from branchwork.tensors import write_tensors
from branchwork.training.evaluate import check_match, evaluate_net, load_for
from branchwork.training.machine import using_threads
from branchwork.training.options import Options
from branchwork.training.plan import make_plan
from branchwork.training.processes import check_single_process
from branchwork.training.recipe import Recipe
from branchwork.training.recipes import fast
from branchwork.training.result import read_result
from branchwork.training.run import (
    MODEL,
    REPORT,
    RESULT,
    STATE,
    STEPS,
    TrainedNet,
    claim_folder,
    holds,
    keep_script,
    kept_net,
    load_run,
)
from branchwork.training.train import resume, train

# Beside `steps.json`: the run of the whole net, if it is trained here, the result, and its report.
WHOLE, SELECTION, SELECTION_PAGE = "whole", "selection.json", "selection.html"


@dataclass(frozen=True)
class Steps:
    """What a selection was asked, and the sizes it has reached, stored as `steps.json`.

    `weights` is a hash of those of the run that it starts from, None for a net that is trained first.
    """

    net: str
    weights: str | None
    checksum: int
    recipe: Recipe
    seed: int
    goal: Goal
    sizes: tuple[Size, ...] = ()

    def __post_init__(self) -> None:
        if any(split_options(size.net)[0] != split_options(self.net)[0] for size in self.sizes):
            raise ValueError(say("its sizes are not all of one net"))


def select(
    net: str | Path,
    *,
    data: str | DataSet | None = None,
    goal: Goal | None = None,
    epochs: int | None = None,
    options: Options | None = None,
    out: str | Path | None = None,
    progress: bool | Observer = False,
) -> Selection:
    """Remove branches from a trained net, the least important first, and train the rest into a run folder.

    `net` is a run folder, or a net argument, which is then trained first by the recipe `fast`. `goal` says how far to
    go and defaults to `Goal(keep=2)`: two branches in each join. Each step removes the branches whose removal raises
    the validation loss least, in all for `keep`, otherwise per MAC saved. At the end the smaller net is trained by the
    recipe of the whole net, for `epochs` if given. The test images are read only then, for the figures before and
    after. The seed of a run decides what is held out, so `options.seed` is only for a net that is trained first.

    `out` defaults to the first free folder of `runs/NET-DATA-selected-1`, `-2`, …; called again with the same arguments
    and the folder of an interrupted selection, `select` continues it. Raises `NetError` if no branch can be removed
    or the goal cannot be reached, `RecipeError` for an impossible goal or recipe, `DataError` if the data do not match
    the run's net, and `RunError` if `out` holds something else.
    """
    check_single_process("a selection")
    began = time.perf_counter()
    goal, options, observer = goal or Goal(keep=2), options or Options(), watch(progress)
    if options.weights is not None:
        raise RecipeError("weights cannot be combined with a selection: train a run from them, and select from that")
    run = load_run(net) if holds(Path(net), MODEL) else None
    if run is None:
        data_set = data if isinstance(data, DataSet) else load_data(data or "auto", progress=observer)
        whole = absolute_name(whole_script(str(net), run=options.run_script))
        recipe = fast(str(net), len(data_set.train))
    else:
        options = replace(options, seed=_seed_of(run.folder, options.seed))
        data_set = _data_of(run, data, observer)
        if run.model.recipe is None:
            raise RunError("{folder} holds no recipe: select from a run made by branchwork train", folder=run.folder)
        whole, recipe = kept_net(run.folder, run.model.net), run.model.recipe
    recipe = recipe.but({"head_epochs": 0} | ({} if epochs is None else {"epochs": epochs}))  # no head will be new
    if recipe.validation == 0 and data_set.validation is None:
        raise RecipeError(
            "{net} was trained on all images, so none are left to validate on: train it with --validation 0.1", net=net
        )
    search = start_search(make_plan(whole, data_set, recipe=recipe, options=options), data_set, goal, observer=observer)
    plan, weights = search.plan, None if run is None else _hash(run.net)
    steps = Steps(plan.net, weights, plan.checksum, plan.recipe, plan.options.seed, goal)
    folder = _claim(out, steps, f"{short_name(whole)}-{data_set.name}-selected")
    try:
        # Not the lock of the trainings, which take their own in this folder.
        with hold_lock(folder / ".selecting", say("is selecting branches in {folder}", folder=folder)):
            remove_parts(folder)
            run = run or load_run(_train(search, folder / WHOLE, whole, weights=None))
            with using_threads(plan.options.threads):
                sizes = _shrink(search, folder, steps, whole=run.net)
            _train(search, folder, sizes[-1].net, weights=weights_path(folder, sizes))
            selection = _summarize(search, run, sizes, folder=folder, seconds=time.perf_counter() - began)
            write_whole(folder / SELECTION_PAGE, selection_page(selection, REPORT))
            write_json(folder / SELECTION, asdict(selection))
            return selection
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted(
            "stopped, with all steps so far saved: repeat the command with --out {folder}", folder=typed(folder)
        ) from None


def _seed_of(run: Path, given: int) -> int:
    """Return the seed of a finished run. Raises `RecipeError` if another one is given."""
    if not holds(run, RESULT):
        raise RunError(
            "the training in {run} is not finished: continue it with branchwork train --resume {run}", run=typed(run)
        )
    seed = read_result(run).seed
    if given not in (Options.seed, seed):
        raise RecipeError(
            "{run} was trained with seed {seed}, which decides what is held out: leave out --seed", run=run, seed=seed
        )
    return seed


def _data_of(run: TrainedNet, data: str | DataSet | None, observer: Observer) -> DataSet:
    """Return the data, by default the run's, normalised as its net expects."""
    if isinstance(data, DataSet):
        data = data.expand(run.model.in_channels)
        check_match(run.model, data)
    else:
        data = load_for(run.model, data, None, observer=observer)
    if data.classes != run.model.classes:
        raise DataError(
            "{name} has the classes of {folder} in another order: select from a net trained on it",
            name=data.name,
            folder=run.folder,
        )
    return replace(data, mean=run.model.mean, std=run.model.std)


def _hash(net: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in net.state_dict().items():
        digest.update(name.encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def _claim(out: str | Path | None, steps: Steps, default_name: str) -> Path:
    """Return a new folder, or the one in which this selection was stopped.

    Raises `RunError` if `out` holds anything else.
    """
    if out is None or not holds(Path(out), STEPS):
        folder = claim_folder(out, default_name)
        keep_script(folder, steps.net)
        write_json(folder / STEPS, with_format(steps))
        return folder
    folder = Path(out)
    if holds(folder, SELECTION):
        raise RunError("{folder} holds a finished selection: choose another --out", folder=folder)
    if replace(_read_steps(folder), sizes=()) != steps:
        raise RunError(
            "{folder} holds the steps of another selection: give it the same arguments, or choose another --out",
            folder=folder,
        )
    keep_script(folder, steps.net)  # unless it was edited since
    return folder


def _read_steps(folder: Path) -> Steps:
    return read_json(folder / STEPS, Steps, remedy="choose another --out")


def _train(search: Search, folder: Path, net: str, *, weights: Path | None) -> Path:
    """Train `net` into `folder`, unless that is finished, and return the folder."""
    plan = search.plan
    if holds(folder, RESULT):
        return folder
    if holds(folder, STATE):
        resume(folder, data=search.data, progress=search.observer)
    else:
        options = replace(plan.options, weights=None if weights is None else str(weights))
        train(net, data=search.data, recipe=plan.recipe, options=options, out=folder, progress=search.observer)
    return folder


def _shrink(search: Search, folder: Path, steps: Steps, *, whole: nn.Module) -> list[Size]:
    """Shrink the whole net, or the last size in the folder, and save each size."""
    sizes = [*_read_steps(folder).sizes]
    net = copy.deepcopy(whole)
    if sizes:
        net = build(search.plan, search.data, sizes[-1].net)
        load_weights(net, weights_path(folder, sizes))
        search.observer.note(_line(sizes[-1]))
    for size, smaller in shrink(search, net, sizes):
        sizes.append(size)
        # Weights first: without them the step could not be continued, while a step that is not noted is repeated.
        write_tensors(weights_path(folder, sizes), smaller.state_dict())
        write_json(folder / STEPS, with_format(replace(steps, sizes=tuple(sizes))))
        search.observer.note(_line(size))
    return sizes


def weights_path(folder: Path, sizes: Sequence[Size]) -> Path:
    """Return the file with the weights of the last of these sizes."""
    return folder / f"size-{len(sizes) - 1}.safetensors"


def _line(size: Size) -> str:
    values = {
        "left": len(size.left),
        "removed": size.removed,
        "accuracy": size.validation_accuracy,
        "loss": size.validation_loss,
        "macs": size.macs,
    }
    if size.removed is None:
        return say("{left} left: validation {accuracy:.2%}, loss {loss:.4f}, {macs:,} MACs", **values)
    return say("{left} left: without {removed}, validation {accuracy:.2%}, loss {loss:.4f}, {macs:,} MACs", **values)


def _summarize(search: Search, run: TrainedNet, sizes: Sequence[Size], *, folder: Path, seconds: float) -> Selection:
    """Compare the net before and after. Only here are the test images read."""
    result, tested, whole = read_result(folder), evaluate_net(run.net, run.model, search.data), sizes[0]
    assert result.validation_accuracy is not None, "select refuses a recipe without validation"
    return Selection(
        whole=search.plan.net,
        net=result.net,
        data=search.data.name,
        seed=search.plan.options.seed,
        goal=str(search.goal),
        sizes=tuple(sizes),
        worth=rank_groups(search.groups, run.net, sizes),
        before=Figures(whole.parameters, whole.macs, whole.validation_accuracy, tested.accuracy, tested.interval),
        after=Figures(
            result.parameters, result.macs, result.validation_accuracy, result.test_accuracy, result.test_interval
        ),
        missed=_shortfall(search.goal, load_run(folder).net, whole.validation_accuracy - result.validation_accuracy),
        steps=sum(size.steps for size in sizes),
        seconds=seconds,
        folder=result.folder,
        report=str(folder / SELECTION_PAGE),
    )


def _shortfall(goal: Goal, net: nn.Module, lost: float) -> str | None:
    """Say how the trained net, which has `lost` validation accuracy, falls short of the goal; None if it does not."""
    if goal.drop is not None and lost > goal.drop:
        return say(
            "once trained, the net loses {lost:.2%} of validation accuracy, more than the {drop:.2%} of --drop",
            lost=lost,
            drop=goal.drop,
        )
    keep = goal.keep
    larger = [path or say("the join") for path, join in find_joins(net).items() if keep and len(join.branches()) > keep]
    if not larger:
        return None
    return say(
        "more than {keep} branches stay in {joins}: no other branch that costs anything can be removed",
        keep=keep,
        joins=enumerated(larger),
    )
