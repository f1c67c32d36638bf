"""One training repeated with several seeds, and what they say together."""

import statistics
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from branchwork.datasets.dataset import DataSet
from branchwork.datasets.load import load_data
from branchwork.errors import RecipeError, RunError
from branchwork.files import read_json, write_json
from branchwork.nets.resolve import short_name
from branchwork.observer import Observer
from branchwork.training.checkpoint import Plan
from branchwork.training.distributed import need_alone
from branchwork.training.options import Options
from branchwork.training.recipe import Recipe
from branchwork.training.run import RESULT, SEEDS, claim_folder
from branchwork.training.train import Result, complete, load_again, make_plan


@dataclass(frozen=True)
class SeedsResult:
    """Test accuracies of several seeds, as fractions; `deviation` is the sample standard deviation (n − 1)."""

    net: str
    data: str
    seeds: tuple[int, ...]
    mean: float
    deviation: float
    mean_train_seconds: float
    results: tuple[Result, ...]
    folder: str


def train_seeds(
    net: str = "inception",
    *,
    seeds: int = 5,
    data: str | DataSet = "auto",
    recipe: Recipe | None = None,
    options: Options | None = None,
    out: str | Path | None = None,
    observer: Observer | None = None,
) -> SeedsResult:
    """Train with `seeds` seeds, from that of `options` on, each in a folder of its own in `out`.

    Everything else is as for `train`.
    """
    options = options or Options()
    observer = observer or Observer()
    need_alone("several seeds")
    if not 2 <= seeds <= 1000:
        raise RecipeError(f"seeds is {seeds}, and it must be from 2, for a deviation, to 1000: for one, leave it out")
    data_set = load_data(data, observer=observer) if isinstance(data, str) else data
    plans = [
        make_plan(net, data_set, recipe=recipe, options=replace(options, seed=seed))
        for seed in range(options.seed, options.seed + seeds)
    ]
    folder = claim_folder(out, f"{short_name(net)}-{data_set.name}-seeds")
    write_json(folder / SEEDS, [asdict(plan) for plan in plans])
    return _train(plans, folder, data_set, observer)


_AGAIN = "train again into another folder"


def resume_seeds(
    folder: str | Path, *, data: DataSet | None = None, source: Path | None = None, observer: Observer | None = None
) -> SeedsResult:
    """Train those seeds of a folder that `train_seeds` has made which are not trained yet."""
    observer = observer or Observer()
    need_alone("several seeds")
    path = Path(folder) / SEEDS
    plans = read_json(path, list[Plan], remedy=_AGAIN)
    if len({plan.options.seed for plan in plans}) != len(plans) or len(plans) < 2:
        raise RunError(f"{path} is damaged (it needs at least two different seeds): {_AGAIN}")
    return _train(plans, Path(folder), data or load_again(plans[0], source, observer), observer)


def _train(plans: list[Plan], folder: Path, data: DataSet, observer: Observer) -> SeedsResult:
    again = f"stopped, and saved. Continue with: branchwork train --resume {folder}"
    results = complete({folder / f"seed-{plan.options.seed}": plan for plan in plans}, data, again, observer)
    accuracies = [result.test_accuracy for result in results]
    summary = SeedsResult(
        net=plans[0].net,
        data=data.name,
        seeds=tuple(plan.options.seed for plan in plans),
        mean=statistics.mean(accuracies),
        deviation=statistics.stdev(accuracies),
        mean_train_seconds=statistics.mean(result.train_seconds for result in results),
        results=results,
        folder=str(folder),
    )
    write_json(folder / RESULT, asdict(summary))
    return summary
