"""`branchwork select` against the truth table: the lecture's inception with each of the 15 sets of branches left.

    python -m benchmarks.select --json FILE --images 60000 --seeds 5

Each set is trained from fresh weights with each seed (both modules alike, recipe `fast`, one epoch), and for each seed
`select --keep 1` gives a set of every size. A set holds if its mean validation accuracy in the table is within one
standard error of the best of its size (that of the best's own mean). Two other methods are
compared: by the size of the weights in the whole net (as DARTS does), and by the loss without fine-tuning. Costs are
counted in optimiser steps, in steps times MACs, and in seconds with tests and reports: until the sets are found, and
until the last of them is a run that has been trained, tested and reported.
"""

import itertools
import math
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from cyclopts import App
from torch.nn import functional as F

import branchwork
from benchmarks.process import JsonFile
from branchwork.catalogue.prune import prune
from branchwork.datasets.batches import count_batches, train_and_validation
from branchwork.datasets.dataset import DataSet, Split
from branchwork.explaining.candidates import find_groups
from branchwork.explaining.selection import Selection
from branchwork.files import write_json
from branchwork.training.infer import predict_logits
from branchwork.training.recipe import Recipe
from branchwork.training.recipes import fast
from branchwork.training.run import load_run
from branchwork.training.training_run import Result

BRANCHES = ("b1", "b5", "b3", "pool")
Kept = tuple[str, ...]

app = App(result_action="return_value")


@dataclass(frozen=True)
class Choice:
    """The set that one method chose with one seed, with its mean in the table and that of the best of its size."""

    method: str
    seed: int
    kept: Kept
    mean: float
    best: Kept
    best_mean: float
    standard_error: float

    @property
    def holds(self) -> bool:
        return self.mean >= self.best_mean - self.standard_error


def name_of(kept: Kept) -> str:
    gone = [branch for branch in BRANCHES if branch not in kept]
    return f"inception[without={'+'.join(gone)}]" if gone else "inception"


def sets() -> list[Kept]:
    return [kept for size in (4, 3, 2, 1) for kept in itertools.combinations(BRANCHES, size)]


def few_images(images: int) -> DataSet:
    data = branchwork.load_data("mnist")
    return replace(data, train=Split(data.train.images[:images], data.train.labels[:images]))


def without_tuning(run: str, data: DataSet, recipe: Recipe, seed: int) -> list[Kept]:
    """The sets of three, two and one branches by the loss of the trained net without each, never fine-tuned."""
    trained, (_, validation) = load_run(run), train_and_validation(data, recipe.validation, seed)
    groups, net, kept = {group.name: group for group in find_groups(trained.net, False)}, trained.net, BRANCHES
    path = []
    while len(kept) > 1:
        smaller = {name: prune(net, (1, 28, 28), groups[name].paths) for name in kept}
        losses = {
            name: float(F.cross_entropy(predict_logits(one, validation.images, trained.model), validation.labels))
            for name, one in smaller.items()
        }
        gone = min(losses, key=losses.__getitem__)
        net, kept = smaller[gone], tuple(name for name in kept if name != gone)
        path.append(kept)
    return path


def by_weights(selection: Selection) -> list[Kept]:
    order = sorted(selection.worth, key=lambda branch: branch.rank_by_weights)
    first = [branch.group for branch in order]
    return [tuple(name for name in BRANCHES if name in first[:size]) for size in (3, 2, 1)]


def choices(table: dict[Kept, list[float]], method: str, seed: int, path: list[Kept]) -> list[Choice]:
    chosen = []
    for kept in path:
        rivals = [rival for rival in table if len(rival) == len(kept)]
        best = max(rivals, key=lambda rival: statistics.mean(table[rival]))
        accuracies = table[best]
        error = statistics.stdev(accuracies) / math.sqrt(len(accuracies)) if len(accuracies) > 1 else 0.0
        means = statistics.mean(table[kept]), statistics.mean(accuracies)
        chosen.append(Choice(method, seed, kept, means[0], best, means[1], error))
    return chosen


def cost(steps: list[tuple[int, int]], seconds: float) -> dict[str, float]:
    """`steps` are numbers of steps, each with the MACs of the net that made them."""
    count = sum(number for number, _ in steps)
    return {"steps": count, "steps times MACs": sum(number * macs for number, macs in steps), "seconds": seconds}


@app.default
def main(
    *, json_file: JsonFile, images: int = 60_000, seeds: int = 5, threads: int | None = None, epochs: int = 1
) -> None:
    data = few_images(images)
    recipe = fast("inception", 60_000).but({"epochs": epochs})
    steps = epochs * count_batches(len(train_and_validation(data, recipe.validation, 0)[0]), recipe.images_per_step)
    table: dict[Kept, list[float]] = {kept: [] for kept in sets()}
    paths: list[tuple[str, int, list[Kept]]] = []
    costs: list[dict[str, dict[str, float]]] = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(seeds):
            results: list[Result] = []
            began = time.perf_counter()
            for kept in sets():
                out = Path(folder) / f"{seed}-{'-'.join(kept)}"
                results.append(
                    branchwork.train(
                        name_of(kept),
                        data=data,
                        recipe=recipe,
                        options=branchwork.Options(seed=seed, threads=threads),
                        out=out,
                    )
                )
                table[kept].append(results[-1].validation_accuracy or 0.0)
                if kept == BRANCHES:
                    whole_seconds = time.perf_counter() - began
            of_table = cost([(steps, result.macs) for result in results], time.perf_counter() - began)
            began = time.perf_counter()
            selection = branchwork.select(
                results[0].folder,
                data=data,
                goal=branchwork.Goal(keep=1),
                options=branchwork.Options(threads=threads),
                out=Path(folder) / f"{seed}-selected",
            )
            # Its cost includes the training of the whole net.
            seconds = whole_seconds + time.perf_counter() - began
            found_seconds = whole_seconds + sum(size.seconds for size in selection.sizes)
            spent = [(steps, selection.before.macs)]
            for size in selection.sizes[1:]:
                tuned = [tried.macs for tried in size.tried if tried.validation_loss is not None]
                spent += [(size.steps // len(tuned), macs) for macs in tuned]
            with_last = [*spent, (steps, selection.after.macs)]
            costs.append(
                {"table": of_table, "select, found": cost(spent, found_seconds), "select": cost(with_last, seconds)}
            )
            paths += [
                ("select", seed, [size.left for size in selection.sizes[1:]]),
                ("without tuning", seed, without_tuning(results[0].folder, data, recipe, seed)),
                ("weights", seed, by_weights(selection)),
            ]
    judged = [choice for method, seed, path in paths for choice in choices(table, method, seed, path)]
    write_json(
        json_file,
        {
            "table": {" ".join(kept): accuracies for kept, accuracies in table.items()},
            "choices": [{**asdict(choice), "holds": choice.holds} for choice in judged],
            "costs": costs,
        },
    )
    show(table, judged, costs)


def show(table: dict[Kept, list[float]], judged: list[Choice], costs: list[dict[str, dict[str, float]]]) -> None:
    for kept, accuracies in table.items():
        deviation = f" ± {100 * statistics.stdev(accuracies):.2f}" if len(accuracies) > 1 else ""
        print(f"{' '.join(kept):<16}{100 * statistics.mean(accuracies):6.2f}{deviation}")
    for method in dict.fromkeys(choice.method for choice in judged):
        for size in (3, 2, 1):
            of_size = [choice for choice in judged if choice.method == method and len(choice.kept) == size]
            lost = statistics.mean(choice.best_mean - choice.mean for choice in of_size)
            held = sum(choice.holds for choice in of_size)
            kept = ", ".join(sorted({" ".join(choice.kept) for choice in of_size}))
            print(f"{method:<15} {size} left: holds {held} of {len(of_size)}, {100 * lost:.2f} points below; {kept}")
    for measure in costs[0]["table"]:
        for stage in ("select, found", "select"):
            share = statistics.mean(one[stage][measure] / one["table"][measure] for one in costs)
            print(f"{measure}: {stage} takes {share:.1%} of the table's")


if __name__ == "__main__":
    app()
