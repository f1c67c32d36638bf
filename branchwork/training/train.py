"""Training a net into a run folder, from the start or from where it was stopped."""

import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import torch
from torch import nn

from branchwork.datasets.batches import batches, epoch_order, train_and_validation
from branchwork.datasets.dataset import DataSet, Split
from branchwork.datasets.folder import check_unicode
from branchwork.datasets.load import load_data
from branchwork.errors import DataError, Interrupted, RecipeError, RunError, TrainingError, first_line, own_line
from branchwork.files import hold_lock, read_fields, remove_parts, write_json, write_whole
from branchwork.graph.costs import count_macs, count_parameters
from branchwork.nets.resolve import absolute_name, short_name
from branchwork.nets.weights import load_weights
from branchwork.observer import Observer
from branchwork.training.auxiliary import check_heads, make_heads
from branchwork.training.checkpoint import Plan, SavedState, load_state
from branchwork.training.compiling import Compilable, Trial
from branchwork.training.distributed import Processes, distribute, is_lost, joined
from branchwork.training.evaluate import evaluate_net
from branchwork.training.execution import Execute, pick_execution
from branchwork.training.fitting import fitting_batch, need_memory
from branchwork.training.infer import TRAINING_DTYPES, pick_device, pick_precision, weight_dtype
from branchwork.training.log import LOG, TensorBoard, need_log
from branchwork.training.loop import Loop, Place, augmented, freeze_body, parts
from branchwork.training.machine import (
    check_threads,
    commit,
    compiler_problem,
    keeping_freed_memory,
    machine,
    peak_memory,
    reset_peak_memory,
    using_threads,
    versions,
)
from branchwork.training.optimizers import make_optimizer
from branchwork.training.recipe import Recipe, fast
from branchwork.training.run import (
    FILES,
    RECIPE,
    REPORT,
    RESULT,
    STATE,
    Model,
    check_net,
    claim_folder,
    holds,
    keep_script,
    kept_net,
)
from branchwork.training.run_report import write_report


@dataclass(frozen=True)
class Result:
    """What a training came to; `result.json` holds it.

    Accuracies are fractions, 0 to 1; `test_interval` is the 95% Wilson interval of the test accuracy.
    `train_seconds` is the time from the first batch to the last validation, and that for collapsing the net before it,
    without loading data, testing and reporting; `images_per_second` counts training images over the optimiser steps
    alone. `epochs` are those that were trained, `best_epoch` is the one whose weights were kept. `execution` is
    `written` or `collapsed`.
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
    execution: str
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
    execute: Execute = "auto",
    compile: bool | None = None,
    log: str | None = None,
    weights: str | Path | None = None,
    freeze: bool = False,
    source: Path | None = None,
    observer: Observer | None = None,
) -> Result:
    """Train `net` on `data` into a run folder, and test it once at the end.

    It begins with the `weights` of a file or a run, if they are given, and a fresh head where the number of classes is
    another; images are then normalised as those weights expect it. With `freeze`, only the head is trained.
    With `log` of "tensorboard", its figures are also written into the folder's `tensorboard/`, step by step.
    `recipe` is by default `fast(net, images)`; `out` by default the first free `runs/NET-DATA-1`, `-2`, …. The same
    seed gives the same weights, bit for bit, on one machine with the same number of threads on the CPU. Steps are
    compiled by torch.compile with `compile`; with None, a long training on a GPU tries some and keeps what is faster.
    Raises `Interrupted` after Ctrl-C, with the state saved, and `TrainingError` where the loss is no longer finite.
    """
    with joined() as processes:
        observer = observer if observer and processes.first else Observer()

        def prepare() -> tuple[DataSet, Plan, Path | None]:
            data_set = load_data(data, source=source, observer=observer) if isinstance(data, str) else data
            options = (seed, device, threads, execute, compile, log, processes)
            plan = make_plan(net, data_set, recipe, *options, weights=weights, freeze=freeze)
            claimed = claim_folder(out, f"{short_name(net)}-{data_set.name}") if processes.first else None
            return data_set, plan, claimed

        data_set, plan, claimed = processes.together(prepare)
        folder = processes.share(claimed)
        assert folder is not None
        # Of what was measured, the smallest is taken for all.
        batch_size = min(processes.every(plan.recipe["batch_size"]))
        plan = processes.share(plan)
        plan = replace(plan, recipe=plan.recipe | {"batch_size": batch_size})
        with _interruptible() as interrupted:
            return _run(plan, data_set, folder, None, interrupted, observer, processes)


def resume(
    run: str | Path, *, data: DataSet | None = None, source: Path | None = None, observer: Observer | None = None
) -> Result:
    """Continue the training of a run folder that was stopped at any point, to the same weights, bit for bit.

    `data` is by default loaded by its name. Raises `RunError` where the folder holds no training, a damaged one, or
    one that is finished, and where the data are not those that it began with.
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

        # Read once: on another machine the file may be an older one still, or none.
        state = processes.share(processes.together(read))
        assert state is not None
        plan = state.plan
        data_set = processes.together(lambda: data or load_again(plan, source, observer))
        with _interruptible() as interrupted:
            return _run(state.plan, data_set, folder, state, interrupted, observer, processes)


def load_again(plan: Plan, source: Path | None, observer: Observer) -> DataSet:
    """The data that a training was begun on."""
    return load_data(plan.data, source=source, size=plan.size, fit=plan.fit, observer=observer)


def complete(plans: Mapping[Path, Plan], data: DataSet, again: str, observer: Observer) -> tuple[Result, ...]:
    """The results of several trainings on `data`, each in the folder that `plans` gives it.

    One that is finished is read, one that was stopped goes on, the others are trained. Raises `Interrupted` after
    Ctrl-C, in which `again` says how to go on.
    """
    results = []
    with _interruptible() as interrupted:
        for folder, plan in plans.items():
            if interrupted.is_set():
                raise Interrupted(again)
            if holds(folder, RESULT):
                observer.note(f"{folder} is trained already; delete it to train it again")
                results.append(read_result(folder))
                continue
            state = load_state(folder) if holds(folder, STATE) else None
            if state is None:
                claim_folder(folder, "")
            try:
                begun = plan if state is None else state.plan
                results.append(_run(begun, data, folder, state, interrupted, observer, Processes()))
            except Interrupted:
                raise Interrupted(again) from None
    return tuple(results)


def read_result(folder: Path) -> Result:
    """The result of a finished run. Raises `RunError` where it is damaged."""
    path = folder / RESULT
    try:
        return read_fields(Result, json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, RecursionError) as reason:
        raise RunError(f"{path} is damaged ({reason}): train again into another folder") from reason


def make_plan(
    net: str,
    data: DataSet,
    recipe: Recipe | None,
    seed: int,
    device: str,
    threads: int | None,
    execute: str,
    compile: bool | None,
    log: str | None,
    processes: Processes,
    *,
    weights: str | Path | None = None,
    freeze: bool = False,
) -> Plan:
    """The plan of a training, checked: what cannot be trained is refused here, before anything is written.

    Raises `RecipeError`, `DataError`, `NetError` or `WeightsError`.
    """
    check_threads(threads, RecipeError)
    need_log(log)
    check_unicode(data.argument, DataError)
    if not 0 <= seed < 2**63:
        raise RecipeError(f"seed is {seed}, and it must be at least 0 and less than 2^63")
    if execute not in get_args(Execute):
        raise RecipeError(f"execute is {execute!r}, and it must be one of {', '.join(get_args(Execute))}")
    recipe = recipe or fast(net, len(data.train))
    check_heads(net, recipe, freeze, execute)
    where = pick_device(device)
    if recipe.batch_norm == "shared" and where.type != "cuda":
        raise RecipeError(f"batch_norm is shared, which takes GPUs, and the device is {where}: leave it out")
    train, _ = train_and_validation(data, recipe.validation, seed, recipe.fraction)
    if recipe.batch_size != "auto" and recipe.batch_size > len(train):
        raise RecipeError(
            f"batch_size is {recipe.batch_size}, and there are only {len(train)} training images: lower it"
        )
    plan = Plan(
        net=absolute_name(net),
        data=data.argument,
        checksum=data.train.checksum(),
        recipe=asdict(recipe),
        seed=seed,
        device=str(where),  # without the number of a GPU, where several processes have one each
        threads=threads or torch.get_num_threads(),
        precision=pick_precision(recipe.precision, where),
        execute=execute,
        compile=compile,
        log=log,
        size=data.image_size if data.path else None,
        fit=data.pictures if data.path else None,
        weights=None if weights is None else str(Path(weights).resolve()),
        freeze=freeze,
    )
    may_compile(plan)
    model = Model.of(plan.net, data, plan.recipe)
    with torch.random.fork_rng(devices=[]):
        built = model.builder()()
        check_net(built, model)
    if weights is not None:
        plan = replace(plan, normalisation=load_weights(built, weights, new_head=True).normalisation)
    if freeze:
        if weights is None:
            raise RecipeError("--freeze trains the head alone, and the body has no weights yet: give --weights FILE")
        freeze_body(built)
    return plan if recipe.batch_size != "auto" else _measured(plan, recipe, model, built, train, processes)


def _as_weights_expect(plan: Plan, data: DataSet) -> DataSet:
    """`data`, to be normalised as the weights that the net begins with were trained."""
    if plan.normalisation is None:
        return data
    mean, std = plan.normalisation
    return replace(data, mean=mean, std=std)


def _measured(plan: Plan, recipe: Recipe, model: Model, net: nn.Module, train: Split, processes: Processes) -> Plan:
    """The plan with a number for the batch that was left to be measured, by steps of `net`, which are its last."""
    device = processes.device(plan.device)
    pieces = recipe.accumulate * processes.count
    most = max(2, len(train) // pieces)
    with _settings(plan.threads, device):
        trial = recipe.but({"batch_size": most, "accumulate": 1})
        loop = _loop(plan, trial, Path(), model, net, threading.Event(), Observer(), Processes())
        few = train.pick(torch.arange(min(len(train), 64)))
        fitting = fitting_batch(loop, Split(few.images.to(device), few.labels.to(device)), most)
    return replace(plan, recipe=asdict(recipe.but({"batch_size": min(len(train), fitting * pieces)})))


def _run(
    plan: Plan,
    data: DataSet,
    folder: Path,
    state: SavedState | None,
    interrupted: threading.Event,
    observer: Observer,
    processes: Processes,
) -> Result:
    def prepare() -> None:
        if data.train.checksum() != plan.checksum:
            raise RunError(
                f"process {processes.rank} has other training images as {data.name} than the first: give all the same"
                if state is None
                else f"{folder} was begun on other training images than {data.name} has now: train into another folder"
            )
        if processes.first:
            lock.enter_context(hold_lock(folder / ".lock", f"trains in {folder}"))

    recipe, data = Recipe(**plan.recipe), _as_weights_expect(plan, data)
    with ExitStack() as lock:
        processes.together(prepare)
        return _run_alone(plan, recipe, data, folder, state, interrupted, observer, processes)


def _run_alone(
    plan: Plan,
    recipe: Recipe,
    data: DataSet,
    folder: Path,
    state: SavedState | None,
    interrupted: threading.Event,
    observer: Observer,
    processes: Processes,
) -> Result:
    if processes.first:
        for name in (*FILES, "top/*"):
            remove_parts(folder / name)
    device = processes.device(str(pick_device(plan.device)))
    train_split, validation = train_and_validation(data, recipe.validation, plan.seed, recipe.fraction)
    model = Model.of(plan.net, data, plan.recipe)
    reset_peak_memory(device)
    if plan.log and processes.first:
        observer = TensorBoard(observer, folder / LOG)
    observer.start(f"{short_name(plan.net)} on {data.name}, seed {plan.seed}")
    try:
        with _settings(plan.threads, device):
            if processes.first:
                keep_script(folder, plan.net)
            processes.together(lambda: None)  # the others find the script that is kept
            build = replace(model, net=kept_net(folder, plan.net)).builder()
            torch.manual_seed(plan.seed)  # after a script was imported, which may set a seed of its own
            net = build()
            if plan.weights is not None and state is None:
                observer.note(str(load_weights(net, plan.weights, new_head=True)))
            macs = count_macs(net, (model.in_channels, *model.image_size))
            began = time.perf_counter()
            loop = _loop(plan, recipe, folder, model, net, interrupted, observer, processes)
            processes.together(lambda: need_memory(loop))
            preparing = time.perf_counter() - began
            loop.begin(state)
            loop.position.seconds = processes.share(loop.position.seconds + preparing)
            if processes.first:
                write_whole(folder / RECIPE, recipe.to_toml())
            try:
                loop.run(_moved(train_split, device), validation)
            except (RuntimeError, ValueError, TypeError, AttributeError) as reason:
                if processes.count > 1 and is_lost(reason):
                    raise TrainingError(
                        f"one of the {processes.count} processes that train together was lost ({first_line(reason)}). "
                        f"Continue, with as many as you like: branchwork train --resume {folder}"
                    ) from reason
                if ":" not in plan.net:
                    raise  # our own net: our own mistake, to be seen whole
                where = f"epoch {loop.position.epoch + 1}, step {loop.position.step + 1}"
                raise TrainingError(f"{plan.net} failed in {where}: {reason} ({own_line(reason)})") from reason
            return processes.share(_finish(loop, data, train_split, macs) if processes.first else None)  # type: ignore[return-value]
    finally:
        observer.end()


def _loop(
    plan: Plan,
    recipe: Recipe,
    folder: Path,
    model: Model,
    net: nn.Module,
    interrupted: threading.Event,
    observer: Observer,
    processes: Processes,
) -> Loop:
    """What trains `net`, which is moved to its device and precision, before its first step."""
    heads = make_heads(net, model, recipe)
    for module in (net, heads):
        module.to(processes.device(plan.device), weight_dtype(TRAINING_DTYPES[plan.precision]))
    execute = plan.execute
    if plan.freeze:
        freeze_body(net)
        execute = "written"  # what is merged would hold batch norms of the batch
    if recipe.batch_norm == "shared" and processes.count > 1:
        net, heads = map(nn.SyncBatchNorm.convert_sync_batchnorm, (net, heads))
        execute = "written"  # each merged kernel would hold the statistics of one process
    sizes = {part.stop - part.start for part in parts(recipe.images_a_step, recipe.accumulate * processes.count)}
    execution = pick_execution(net, model, execute, max(sizes), heads)
    step, trial = execution.step, None
    if may_compile(plan):
        step = Compilable(step, sizes)
    shape = (model.in_channels, *model.image_size)
    execution = replace(execution, step=distribute(step, shape, processes))
    if isinstance(step, Compilable):
        step.compiled = plan.compile is True
        trial = None if plan.compile else Trial(step, processes)
    optimizer = make_optimizer([*net.parameters(), *heads.parameters()], recipe)
    return Loop(
        plan,
        recipe,
        folder,
        model,
        net,
        optimizer,
        execution,
        interrupted,
        observer,
        heads=heads,
        processes=processes,
        trial=trial,
    )


def _moved(split: Split, device: torch.device) -> Split:
    """`split` on `device`, all of it unless it is mapped. Raises `DataError` where that does not hold it."""
    try:
        return Split(split.images.to(device), split.labels.to(device))
    except torch.OutOfMemoryError as reason:
        size = math.prod(split.images.shape) / 1e9
        raise DataError(
            f"the training images take {size:.1f} GB, and {device} does not hold them: make a pack with "
            "branchwork data pack FOLDER, of which batch after batch is brought there"
        ) from reason


def may_compile(plan: Plan) -> bool:
    """Whether the steps are compiled at some time, all of them or some to see whether it pays.

    By itself on GPUs alone: on a CPU a seed gives the same weights, bit for bit, whatever the clock says. Raises
    `RecipeError` where they are to be compiled and cannot be.
    """
    device = torch.device(plan.device)
    problem = compiler_problem(device)
    if plan.compile and problem is not None:
        raise RecipeError(f"{problem}, or leave out --compile")
    return plan.compile or (plan.compile is None and device.type == "cuda" and problem is None)


def _finish(loop: Loop, data: DataSet, train: Split, macs: int) -> Result:
    """Test the kept weights, and write the report and the result."""
    plan, model, position = loop.plan, loop.model, loop.position
    memory = peak_memory(torch.device(plan.device))
    evaluation = evaluate_net(loop.net.to(torch.float32), model, data)
    result = Result(
        net=plan.net,
        data=data.name,
        seed=plan.seed,
        parameters=count_parameters(loop.net),
        macs=macs,
        epochs=position.epoch,
        best_epoch=position.best_epoch,
        train_images=len(train),
        train_seconds=position.seconds,
        images_per_second=sum(epoch["images"] for epoch in position.history) / position.step_seconds,
        validation_accuracy=position.history[position.best_epoch - 1]["validation_accuracy"],
        test_accuracy=evaluation.accuracy,
        test_interval=evaluation.interval,
        peak_memory_bytes=memory,
        device=plan.device,
        threads=plan.threads,
        precision=plan.precision,
        execution=loop.execution.name,
        data_origin=data.origin,
        versions=versions(),
        machine=machine(),
        commit=commit(),
        folder=str(loop.folder),
        report=str(loop.folder / REPORT),
    )
    first = next(batches(epoch_order(len(train), plan.seed, 0), loop.recipe.images_a_step))
    images = augmented(train.images[first], loop.recipe, Place(plan.seed, 0, 0, slice(None), len(first)))
    write_report(
        loop.folder,
        asdict(result),
        recipe=loop.recipe,
        history=position.history,
        evaluation=evaluation,
        data=data,
        batch=Split(images[:32], train.labels[first[:32]]),
    )
    write_json(loop.folder / RESULT, asdict(result))  # last, because it says that the run is whole
    return result


@contextmanager
def _settings(threads: int, device: torch.device) -> Iterator[None]:
    """This many threads, and freed memory kept; afterwards these and the random state as they were."""
    with (
        using_threads(threads),
        keeping_freed_memory(),
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
    ):
        yield


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
    # What torchrun and the schedulers of clusters send. It comes after a Ctrl-C too, and must not cut a step in two.
    terminate = signal.signal(signal.SIGTERM, lambda number, frame: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, previous)
        signal.signal(signal.SIGTERM, terminate)
