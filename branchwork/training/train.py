"""Training a net into a run folder, from the start or from where it was stopped."""

import json
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from branchwork.datasets.batches import batches, epoch_order, hold_out
from branchwork.datasets.load import DataSet, Split, load_data
from branchwork.errors import RecipeError, RunError
from branchwork.files import write_json, write_whole
from branchwork.nets.size import count_macs, count_parameters
from branchwork.observer import Observer
from branchwork.training.checkpoint import Plan, SavedState, load_state
from branchwork.training.evaluate import evaluate_net
from branchwork.training.infer import pick_device, pick_layout, pick_precision
from branchwork.training.loop import Loop, make_optimizer
from branchwork.training.machine import commit, machine, peak_memory, versions
from branchwork.training.recipe import Recipe, fast
from branchwork.training.report import write_report
from branchwork.training.run import RECIPE, REPORT, RESULT, STATE, Model, claim_folder


@dataclass(frozen=True)
class Result:
    """What a training came to; `result.json` holds it.

    Accuracies are fractions, 0 to 1; `test_interval` is the 95% Wilson interval of the test accuracy.
    `train_seconds` is the time from the first batch to the last validation, without loading data, testing and
    reporting; `images_per_second` counts training images over the optimiser steps alone. `best_epoch` is the one
    whose weights were kept.
    """

    net: str
    data: str
    seed: int
    parameters: int
    macs: int
    epochs: int
    best_epoch: int
    train_images: int
    train_seconds: float
    images_per_second: float
    validation_accuracy: float | None
    test_accuracy: float
    test_interval: tuple[float, float]
    peak_memory_bytes: int | None
    device: str
    threads: int
    precision: str
    data_origin: str
    versions: dict[str, str]
    machine: str
    commit: str | None
    folder: str
    report: str


def train(
    net: str = "inception",
    *,
    data: str | DataSet = "auto",
    recipe: Recipe | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    device: str = "auto",
    threads: int | None = None,
    source: Path | None = None,
    observer: Observer | None = None,
) -> Result:
    """Train `net` on `data` into a run folder, and test it once at the end.

    `recipe` is by default `fast(net, images)`; `out` by default the first free `runs/NET-DATA-1`, `-2`, …. The same
    seed gives the same weights, bit for bit, on one machine with the same number of threads on the CPU. Raises
    `Interrupted` after Ctrl-C, with the state saved, and `TrainingError` where the loss is no longer finite.
    """
    observer = observer or Observer()
    if threads is not None and threads < 1:
        raise RecipeError(f"threads is {threads}, and it must be at least 1")
    if seed < 0:
        raise RecipeError(f"seed is {seed}, and it must be at least 0")
    where = pick_device(device)
    data_set = load_data(data, source=source, observer=observer) if isinstance(data, str) else data
    recipe = recipe or fast(net, len(data_set.train))
    plan = Plan(
        net=net,
        data=data_set.name,
        recipe=asdict(recipe),
        seed=seed,
        device=str(where),
        threads=threads or torch.get_num_threads(),
        precision=pick_precision(recipe.precision, where),
    )
    # Whatever cannot be trained must be known before the folder is made, and leave nothing behind.
    _splits(plan, data_set)
    with torch.random.fork_rng(devices=[]):
        Model.of(net, data_set, plan.recipe).build()
    folder = claim_folder(out, f"{Path(net).stem.replace(':', '-')}-{data_set.name}")
    return _run(plan, data_set, folder, None, observer)


def resume(run: str | Path, *, source: Path | None = None, observer: Observer | None = None) -> Result:
    """Continue the training of a run folder that was stopped at any point, to the same weights, bit for bit.

    Raises `RunError` where the folder holds no training, a damaged one, or one that is finished.
    """
    observer = observer or Observer()
    folder = Path(run)
    if (folder / RESULT).exists():
        raise RunError(f"the training in {folder} is finished: its figures are in {folder / RESULT}")
    state = load_state(folder)
    data_set = load_data(state.plan.data, source=source, observer=observer)
    return _run(state.plan, data_set, folder, state, observer)


def complete(
    net: str, data: DataSet, out: Path, recipe: Recipe | None, seed: int, device: str, threads: int | None,
    observer: Observer,
) -> Result:  # fmt: skip
    """The result of the training in the folder `out`: read where it is finished, resumed where it was stopped,
    trained where there is none."""
    if (out / RESULT).exists():
        observer.note(f"{net} was trained before; delete {out} to train it again")
        return read_result(out)
    if (out / STATE).exists():
        return resume(out, observer=observer)
    return train(net, data=data, recipe=recipe, seed=seed, out=out, device=device, threads=threads, observer=observer)


def read_result(folder: Path) -> Result:
    """The result of a finished run. Raises `RunError` where it is damaged."""
    path = folder / RESULT
    try:
        fields = json.loads(path.read_text())
        return Result(**fields | {"test_interval": tuple(fields["test_interval"])})
    except (OSError, ValueError, TypeError, KeyError) as reason:
        raise RunError(f"{path} is damaged ({reason}): train again into another folder") from reason


def _splits(plan: Plan, data: DataSet) -> tuple[Split, Split]:
    """Training and validation images. Raises `RecipeError` where they are fewer than a batch."""
    recipe = Recipe(**plan.recipe)
    train, validation = hold_out(data.train, recipe.validation, plan.seed)
    if recipe.batch_size > len(train):
        raise RecipeError(
            f"batch_size is {recipe.batch_size}, and there are only {len(train)} training images: lower it"
        )
    return train, validation


def _run(plan: Plan, data: DataSet, folder: Path, state: SavedState | None, observer: Observer) -> Result:
    recipe = Recipe(**plan.recipe)
    device = pick_device(plan.device)
    train_split, validation = _splits(plan, data)
    model = Model.of(plan.net, data, plan.recipe)
    observer.start(f"{plan.net} on {data.name}, seed {plan.seed}")
    try:
        with _settings(plan, device), _interruptible() as interrupted:
            net = model.build()
            layout = pick_layout(net, model)
            net.to(device)
            optimizer = make_optimizer(net, recipe)
            loop = Loop(plan, recipe, folder, model, net, optimizer, layout, interrupted, observer)
            loop.begin(state)
            write_whole(folder / RECIPE, recipe.to_toml())
            loop.run(Split(train_split.images.to(device), train_split.labels.to(device)), validation)
            return _finish(loop, data, train_split)
    finally:
        observer.end()


def _finish(loop: Loop, data: DataSet, train: Split) -> Result:
    """Test the kept weights, and write the report and the result."""
    plan, model, position = loop.plan, loop.model, loop.position
    memory = peak_memory(plan.device)
    evaluation = evaluate_net(loop.net.to("cpu"), model, data)
    result = Result(
        net=plan.net,
        data=data.name,
        seed=plan.seed,
        parameters=count_parameters(loop.net),
        macs=count_macs(loop.net, model.in_channels, model.image_size),
        epochs=loop.recipe.epochs,
        best_epoch=position.best_epoch,
        train_images=len(train),
        train_seconds=position.seconds,
        images_per_second=len(train) * loop.recipe.epochs / position.step_seconds,
        validation_accuracy=position.history[position.best_epoch - 1]["validation_accuracy"],
        test_accuracy=evaluation.accuracy,
        test_interval=evaluation.interval,
        peak_memory_bytes=memory,
        device=plan.device,
        threads=plan.threads,
        precision=plan.precision,
        data_origin=data.origin,
        versions=versions(),
        machine=machine(),
        commit=commit(),
        folder=str(loop.folder),
        report=str(loop.folder / REPORT),
    )
    first = next(batches(epoch_order(len(train), plan.seed, 0), 32))
    write_report(loop.folder, asdict(result), loop.recipe, position.history, evaluation, data, train.pick(first))
    write_json(loop.folder / RESULT, asdict(result))  # last, because it says that the run is whole
    return result


@contextmanager
def _settings(plan: Plan, device: torch.device) -> Iterator[None]:
    """Threads and random state as the plan has them, and afterwards as they were."""
    threads = torch.get_num_threads()
    torch.set_num_threads(plan.threads)
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(plan.seed)
            yield
    finally:
        torch.set_num_threads(threads)


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets, so that no step is cut in two; the second Ctrl-C interrupts at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread receives signals
        return
    previous = signal.getsignal(signal.SIGINT)

    def first(number: int, frame: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, previous)

    signal.signal(signal.SIGINT, first)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
