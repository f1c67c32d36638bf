"""Which images a finished run was trained on, and which it held out."""

import os
from pathlib import Path

from branchwork.datasets.batches import one_fold, train_and_validation
from branchwork.datasets.dataset import DataSet, Split
from branchwork.errors import RunError
from branchwork.files import read_json, typed
from branchwork.training.plan import Plan
from branchwork.training.result import read_result
from branchwork.training.run import FOLDS, RESULT, TrainedNet, holds


def splits_of(trained: TrainedNet, data: DataSet) -> tuple[Split, Split]:
    """Return the training and the validation images of the run `trained`, drawn from its `data` as in its training.

    Where it held out none, and the data have none of their own, there are no validation images. Neither holds an image
    that the run was tested on. Raises `RunError` if the run is not finished.
    """
    if not holds(trained.folder, RESULT):
        raise RunError(
            "the training in {run} is not finished: continue it with branchwork train --resume {run}",
            run=typed(trained.folder),
        )
    seed, recipe, fold = read_result(trained.folder).seed, trained.model.recipe, _fold_of(trained.folder)
    if fold is not None:
        data = one_fold(data, *fold, seed)
    share, used = (recipe.validation, recipe.fraction) if recipe else (0.0, 1.0)
    train, validation = train_and_validation(data, share, seed, used=used)
    return train, data.validation if data.validation is not None and not len(validation) else validation


def _fold_of(folder: Path) -> tuple[int, int] | None:
    """Return which fold of how many the run `folder` was tested on; None if it was tested on the test images."""
    place = Path(os.path.abspath(folder))
    if not holds(place.parent, FOLDS):
        return None
    folds = [plan.fold for plan in read_json(place.parent / FOLDS, list[Plan])]
    return next((fold for fold in folds if fold is not None and place.name == f"fold-{fold[0]}"), None)
