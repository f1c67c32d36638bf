"""One training repeated with several seeds, and what they say together."""

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from branchwork.datasets.load import DataSet, load_data
from branchwork.errors import RecipeError, RunError
from branchwork.files import write_json
from branchwork.observer import Observer
from branchwork.training.recipe import Recipe, fast
from branchwork.training.run import RESULT, SEEDS, claim_folder
from branchwork.training.train import Result, complete


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


@dataclass(frozen=True)
class _Plan:
    """What `seeds.json` holds: enough to train the seeds that are not trained yet."""

    net: str
    data: str
    recipe: dict[str, Any]
    seeds: list[int]
    device: str
    threads: int | None


def train_seeds(
    net: str = "inception",
    *,
    seeds: int = 5,
    data: str | DataSet = "auto",
    recipe: Recipe | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    source: Path | None = None,
    observer: Observer | None = None,
) -> SeedsResult:
    """Train with `seeds` seeds from `seed` on, each into its own folder within `out`; the rest is as for `train`."""
    observer = observer or Observer()
    if seeds < 2:
        raise RecipeError(f"seeds is {seeds}, and a mean with a deviation needs at least 2: for one, leave it out")
    data_set = load_data(data, source=source, observer=observer) if isinstance(data, str) else data
    recipe = recipe or fast(net, len(data_set.train))
    plan = _Plan(net, data_set.name, asdict(recipe), list(range(seed, seed + seeds)), device, threads)
    folder = claim_folder(out, f"{Path(net).stem.replace(':', '-')}-{data_set.name}-seeds")
    write_json(folder / SEEDS, asdict(plan))
    return _train(plan, folder, data_set, observer)


def resume_seeds(folder: str | Path, *, source: Path | None = None, observer: Observer | None = None) -> SeedsResult:
    """Train those seeds of a folder that `train_seeds` has made which are not trained yet."""
    observer = observer or Observer()
    path = Path(folder) / SEEDS
    try:
        plan = _Plan(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError) as reason:
        raise RunError(f"{path} is damaged ({reason}): train again into another folder") from reason
    data_set = load_data(plan.data, source=source, observer=observer)
    return _train(plan, Path(folder), data_set, observer)


def _train(plan: _Plan, folder: Path, data: DataSet, observer: Observer) -> SeedsResult:
    recipe = Recipe(**plan.recipe)
    results = [
        complete(plan.net, data, folder / f"seed-{seed}", recipe, seed, plan.device, plan.threads, observer)
        for seed in plan.seeds
    ]
    accuracies = [result.test_accuracy for result in results]
    summary = SeedsResult(
        net=plan.net,
        data=plan.data,
        seeds=tuple(plan.seeds),
        mean=statistics.mean(accuracies),
        deviation=statistics.stdev(accuracies),
        mean_train_seconds=statistics.mean(result.train_seconds for result in results),
        results=tuple(results),
        folder=str(folder),
    )
    write_json(folder / RESULT, asdict(summary))
    return summary
