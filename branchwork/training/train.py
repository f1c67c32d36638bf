"""Train a net into a run folder, from the start or from where it was stopped."""

from dataclasses import replace
from pathlib import Path

from branchwork.datasets.dataset import DataSet
from branchwork.datasets.load import load_data
from branchwork.errors import (
    RunError,
)
from branchwork.nets.resolve import short_name
from branchwork.observer import Observer
from branchwork.training.checkpoint import SavedState, load_state
from branchwork.training.options import Options
from branchwork.training.plan import Plan, make_plan
from branchwork.training.processes import interruptible, joined
from branchwork.training.recipe import Recipe
from branchwork.training.run import (
    RESULT,
    claim_folder,
    holds,
)
from branchwork.training.training_run import Result, run_training


def train(
    net: str = "inception",
    *,
    data: str | DataSet = "auto",
    recipe: Recipe | None = None,
    options: Options | None = None,
    out: str | Path | None = None,
    source: Path | None = None,
    observer: Observer | None = None,
) -> Result:
    """Train `net` on `data` into a run folder, and test it once at the end.

    `recipe` says what to train and defaults to `fast(net, images)`; `options` say how to run it. `out` defaults to the
    first free one of `runs/NET-DATA-1`, `-2`, …; `source` is a folder that holds the files of `data`. A net that starts
    from `weights` gets images normalised as those weights expect. With `log="tensorboard"`, figures are also written to
    the run's `tensorboard/`, step by step. Raises `Interrupted` after Ctrl-C, with the state saved, and `TrainingError`
    if the loss is no longer finite.
    """
    with joined() as processes:
        observer = observer if observer and processes.first else Observer()

        def prepare() -> tuple[DataSet, Plan, Path | None]:
            data_set = load_data(data, source=source, observer=observer) if isinstance(data, str) else data
            plan = make_plan(net, data_set, recipe=recipe, options=options, processes=processes)
            claimed = claim_folder(out, f"{short_name(net)}-{data_set.name}") if processes.first else None
            return data_set, plan, claimed

        data_set, plan, claimed = processes.together(prepare)
        folder = processes.share(claimed)
        assert folder is not None
        # Each process may have measured another batch size: the smallest fits all.
        batch_size = min(processes.every(plan.recipe.images_a_step))
        plan = processes.share(plan)
        plan = replace(plan, recipe=replace(plan.recipe, batch_size=batch_size))
        with interruptible() as interrupted:
            return run_training(
                plan, data_set, folder, saved=None, interrupted=interrupted, observer=observer, processes=processes
            )


def resume(
    run: str | Path, *, data: DataSet | None = None, source: Path | None = None, observer: Observer | None = None
) -> Result:
    """Continue the training of a run folder that was stopped at any point, to the same weights, bit for bit.

    `data` defaults to the data set that the training began with. Raises `RunError` if the folder holds no training, a
    damaged or a finished one, and if the data have changed.
    """
    with joined() as processes:
        observer = observer if observer and processes.first else Observer()
        folder = Path(run)

        def read() -> SavedState | None:
            if not processes.first:
                return None
            if holds(folder, RESULT):
                raise RunError(f"the training in {folder} is finished: its figures are in {folder / RESULT}")
            return load_state(folder)

        # Only the first process reads it: on another machine the file may be older or missing.
        state = processes.share(processes.together(read))
        assert state is not None
        plan = state.plan
        data_set = processes.together(lambda: data or load_again(plan, source, observer))
        with interruptible() as interrupted:
            return run_training(
                plan, data_set, folder, saved=state, interrupted=interrupted, observer=observer, processes=processes
            )


def load_again(plan: Plan, source: Path | None, observer: Observer) -> DataSet:
    """Load the data that a training began with."""
    return load_data(plan.data, source=source, size=plan.size, fit=plan.fit, observer=observer)
