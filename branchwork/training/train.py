"""Training a net into a run folder, from the start or from where it was stopped."""

import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from branchwork.datasets.batches import batches, epoch_order, generator_of, train_and_validation
from branchwork.datasets.dataset import DataSet, Split
from branchwork.datasets.folder import check_unicode
from branchwork.datasets.load import load_data
from branchwork.errors import (
    DataError,
    Diverged,
    Interrupted,
    RecipeError,
    RunError,
    TrainingError,
    first_line,
    own_line,
)
from branchwork.files import hold_lock, read_json, remove_parts, write_json, write_whole
from branchwork.graph.costs import count_macs, count_parameters
from branchwork.nets.resolve import absolute_name, short_name
from branchwork.nets.weights import load_weights
from branchwork.observer import Epoch, Observer, Step
from branchwork.training.auxiliary import check_heads
from branchwork.training.checkpoint import Plan, Position, SavedState, load_state, save_state
from branchwork.training.distributed import Processes, is_lost, joined
from branchwork.training.evaluate import evaluate_net
from branchwork.training.fit import check_finite, ends_epoch, fit, is_over
from branchwork.training.fitting import fitting_batch, images_per_second
from branchwork.training.infer import pick_device, pick_precision
from branchwork.training.log import LOG, TensorBoard, need_tensorboard
from branchwork.training.machine import (
    commit,
    compiler_problem,
    keeping_freed_memory,
    machine,
    peak_memory,
    reset_peak_memory,
    using_threads,
    versions,
)
from branchwork.training.options import Options, check_threads
from branchwork.training.recipe import Recipe, fast
from branchwork.training.run import (
    FILES,
    METRICS,
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
    write_model,
    write_top,
)
from branchwork.training.run_report import write_report
from branchwork.training.state import TrainState, freeze_body, make_state
from branchwork.training.step import Moment, augment_batch

# A state is saved at the end of every epoch, and within an epoch when the last is older than this.
SAVE_SECONDS = 30.0


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
        # Of what was measured, the smallest is taken for all.
        batch_size = min(processes.every(plan.recipe.images_a_step))
        plan = processes.share(plan)
        plan = replace(plan, recipe=replace(plan.recipe, batch_size=batch_size))
        with _interruptible() as interrupted:
            return _run(
                plan, data_set, folder, saved=None, interrupted=interrupted, observer=observer, processes=processes
            )


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
            return _run(
                plan, data_set, folder, saved=state, interrupted=interrupted, observer=observer, processes=processes
            )


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
                result = _run(
                    begun,
                    data,
                    folder,
                    saved=state,
                    interrupted=interrupted,
                    observer=observer,
                    processes=Processes(),
                )
                results.append(result)
            except Interrupted:
                raise Interrupted(again) from None
    return tuple(results)


def read_result(folder: Path) -> Result:
    """The result of a finished run. Raises `RunError` where it is damaged."""
    return read_json(folder / RESULT, Result, remedy="train again into another folder")


def make_plan(
    net: str,
    data: DataSet,
    *,
    recipe: Recipe | None = None,
    options: Options | None = None,
    processes: Processes | None = None,
) -> Plan:
    """Check a training before anything is written, and return its plan, with a number for every `auto`.

    Raises `RecipeError`, `DataError`, `NetError` or `WeightsError` for what cannot be trained.
    """
    recipe, options = recipe or fast(net, len(data.train)), options or Options()
    check_threads(options.threads, RecipeError)
    if options.log:
        need_tensorboard()
    check_unicode(data.argument, DataError)
    check_heads(net, recipe, options)
    device = pick_device(options.device)
    if recipe.batch_norm == "shared" and device.type != "cuda":
        raise RecipeError(f"batch_norm is shared, which takes GPUs, and the device is {device}: leave it out")
    train, _ = train_and_validation(data, recipe.validation, options.seed, recipe.fraction)
    if recipe.batch_size != "auto" and recipe.batch_size > len(train):
        raise RecipeError(
            f"batch_size is {recipe.batch_size}, and there are only {len(train)} training images: lower it"
        )
    plan = Plan(
        net=absolute_name(net),
        data=data.argument,
        checksum=data.train.checksum(),
        recipe=recipe,
        options=replace(
            options,
            device=str(device),  # without the number of a GPU: of several processes, each has another
            threads=options.threads or torch.get_num_threads(),
            weights=options.weights and str(Path(options.weights).resolve()),
        ),
        precision=pick_precision(recipe.precision, device),
        size=data.image_size if data.path else None,
        fit=data.pictures if data.path else None,
    )
    problem = compiler_problem(device)
    if options.compile and problem is not None:
        raise RecipeError(f"{problem}, or leave out --compile")
    model = Model.of(plan.net, data, plan.recipe)
    with torch.random.fork_rng(devices=[]):
        built = model.builder()()
        check_net(built, model)
    if options.weights is not None:
        plan = replace(plan, normalisation=load_weights(built, options.weights, new_head=True).normalisation)
    if options.freeze:
        freeze_body(built)
    return plan if recipe.batch_size != "auto" else _measured(plan, model, built, train, processes or Processes())


def _as_weights_expect(plan: Plan, data: DataSet) -> DataSet:
    """`data`, to be normalised as the weights that the net begins with were trained."""
    if plan.normalisation is None:
        return data
    mean, std = plan.normalisation
    return replace(data, mean=mean, std=std)


def _measured(plan: Plan, model: Model, net: nn.Module, train: Split, processes: Processes) -> Plan:
    """Replace a batch size of `auto`: it is measured by steps of `net`, which are its last."""
    recipe, options = plan.recipe, plan.options
    device, pieces = processes.device(options.device), recipe.accumulate * processes.count
    most = max(2, len(train) // pieces)
    trial = recipe.but({"batch_size": most, "accumulate": 1})
    few = train.pick(torch.arange(min(len(train), 64)))
    with _settings(options.threads, device):
        state = make_state(net, model, recipe=trial, options=options, precision=plan.precision)
        images = Split(few.images.to(device), few.labels.to(device))
        fitting = fitting_batch(partial(images_per_second, state, images, trial), most, device)
    return replace(plan, recipe=recipe.but({"batch_size": min(len(train), fitting * pieces)}))


def _run(
    plan: Plan,
    data: DataSet,
    folder: Path,
    *,
    saved: SavedState | None,
    interrupted: threading.Event,
    observer: Observer,
    processes: Processes,
) -> Result:
    """Train in `folder` to the end, from `saved` on if it is given, with no other process writing there."""

    def prepare() -> None:
        if data.train.checksum() != plan.checksum:
            raise RunError(
                f"process {processes.rank} has other training images as {data.name} than the first: give all the same"
                if saved is None
                else f"{folder} was begun on other training images than {data.name} has now: train into another folder"
            )
        if processes.first:
            lock.enter_context(hold_lock(folder / ".lock", f"trains in {folder}"))
            for name in (*FILES, "top/*"):
                remove_parts(folder / name)

    data = _as_weights_expect(plan, data)
    device = processes.device(str(pick_device(plan.options.device)))
    if plan.options.log and processes.first:
        observer = TensorBoard(observer, folder / LOG)
    with ExitStack() as lock:
        processes.together(prepare)
        reset_peak_memory(device)
        observer.start(f"{short_name(plan.net)} on {data.name}, seed {plan.options.seed}")
        try:
            with _settings(plan.options.threads, device):
                run = _prepare(plan, data, folder, saved=saved, observer=observer, processes=processes)
                _train(run, interrupted, observer)
                return processes.share(_finish(run, data) if processes.first else None)  # type: ignore[return-value]
        finally:
            observer.end()


@dataclass
class _Run:
    """One training and its folder. `best` are the weights that are kept, `macs` those of one image."""

    plan: Plan
    folder: Path
    state: TrainState
    position: Position
    train: Split
    validation: Split
    best: dict[str, Tensor]
    macs: int

    def save(self) -> None:
        """Write the state. If the disk is full, the last one is still there, and the error says how to go on."""
        if not self.state.processes.first:
            return
        try:
            save_state(self.folder, self.plan, self.position, state=self.state, best=self.best)
        except RunError as reason:
            if not holds(self.folder, STATE):
                raise
            raise RunError(f"{reason} Then continue with branchwork train --resume {self.folder}") from reason


def _prepare(
    plan: Plan, data: DataSet, folder: Path, *, saved: SavedState | None, observer: Observer, processes: Processes
) -> _Run:
    """Build the net, and stand where `saved` was saved; without it, at the start, and save that."""
    if processes.first:
        keep_script(folder, plan.net)
    processes.together(lambda: None)  # the others find the script that is kept
    model = Model.of(plan.net, data, plan.recipe)
    build = replace(model, net=kept_net(folder, plan.net)).builder()
    torch.manual_seed(plan.options.seed)  # after a script was imported, which may set a seed of its own
    net = build()
    if plan.options.weights is not None and saved is None:
        observer.note(str(load_weights(net, plan.options.weights, new_head=True)))
    macs = count_macs(net, (model.in_channels, *model.image_size))
    began = time.perf_counter()
    state = make_state(
        net, model, recipe=plan.recipe, options=plan.options, precision=plan.precision, processes=processes
    )
    position = Position() if saved is None else saved.position
    position.seconds = processes.share(position.seconds + time.perf_counter() - began)
    splits = train_and_validation(data, plan.recipe.validation, plan.options.seed, plan.recipe.fraction)
    run = _Run(plan, folder, state, position, *splits, _copy(state.net.state_dict()), macs)
    if saved is None:
        run.save()
    else:
        run.best = saved.restore(state)
    if processes.first:
        write_whole(folder / RECIPE, plan.recipe.to_toml())
    else:  # all would draw the same numbers, for other images
        moment = (position.epoch, position.step, processes.rank)
        torch.manual_seed(generator_of(plan.options.seed, "process", *moment).initial_seed())
    return run


def _train(run: _Run, interrupted: threading.Event, observer: Observer) -> None:
    """Train to the end, and then load the weights that are kept. Raises `Interrupted` once `interrupted` is set."""
    plan, state, position, processes = run.plan, run.state, run.position, run.state.processes
    train = _moved(run.train, next(state.net.parameters()).device)
    saved_at = time.perf_counter()
    try:
        events = fit(state, train, run.validation, recipe=plan.recipe, seed=plan.options.seed, position=position)
        for event in events:
            if isinstance(event, Epoch):
                _keep_epoch(run, event.weights)
                observer.epoch(event)
                at_end = is_over(plan.recipe, position)
            else:
                observer.step(event)
                at_end = ends_epoch(plan.recipe, position, event)
            overdue = processes.first and time.perf_counter() - saved_at > SAVE_SECONDS
            stop, save = processes.any(interrupted.is_set(), overdue)
            if at_end:  # of the training, or of an epoch, which is saved next
                continue
            if isinstance(event, Step) and (stop or save):
                check_finite(state.net, position)
                run.save()
            if stop:
                raise processes.tell(
                    Interrupted(f"stopped, and saved. Continue with: branchwork train --resume {run.folder}")
                )
            if isinstance(event, Epoch) or save:
                saved_at = time.perf_counter()
    except Diverged as reason:
        rate, best = plan.recipe.learning_rate, position.best_epoch
        kept = f"with the weights of epoch {best}" if best else "before any epoch"
        raise processes.tell(
            TrainingError(
                f"{reason}. Train again with --learning-rate {rate / 10:g} (it was {rate:g}) and another --out. "
                f"The last good state, {kept}, is kept in {run.folder}."
            )
        ) from reason
    except (RuntimeError, ValueError, TypeError, AttributeError) as reason:
        if processes.count > 1 and is_lost(reason):
            raise TrainingError(
                f"one of the {processes.count} processes that train together was lost ({first_line(reason)}). "
                f"Continue, with as many as you like: branchwork train --resume {run.folder}"
            ) from reason
        if ":" not in plan.net:
            raise  # our own net: our own mistake, to be seen whole
        where = f"epoch {position.epoch + 1}, step {position.step + 1}"
        raise TrainingError(f"{plan.net} failed in {where}: {reason} ({own_line(reason)})") from reason
    if position.epoch < plan.recipe.epochs:
        why = (
            f"the {plan.recipe.minutes:g} minutes are over"
            if plan.recipe.out_of_time(position.seconds)
            else f"{plan.recipe.patience} epochs brought nothing better on validation"
        )
        observer.note(f"ended after epoch {position.epoch} of {plan.recipe.epochs}: {why}")
    state.net.load_state_dict(run.best)


def _keep_epoch(run: _Run, weights: Mapping[str, Tensor]) -> None:
    """Write what an epoch gave, and keep its `weights` if they are the best."""
    position, top = run.position, run.plan.recipe.top
    if position.best_epoch == position.epoch:
        run.best = _copy(weights)
    if run.state.processes.first:
        write_model(run.folder, run.best, run.state.model)
        if top:
            write_top(run.folder, position.history, top, weights)
        write_whole(run.folder / METRICS, "".join(json.dumps(epoch) + "\n" for epoch in position.history))
    run.save()


def _copy(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.detach().clone() for key, tensor in weights.items()}


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


def _finish(run: _Run, data: DataSet) -> Result:
    """Test the kept weights, and write the report and the result."""
    plan, state, position, model, train = run.plan, run.state, run.position, run.state.model, run.train
    memory = peak_memory(torch.device(plan.options.device))
    evaluation = evaluate_net(state.net.to(torch.float32), model, data)
    result = Result(
        net=plan.net,
        data=data.name,
        seed=plan.options.seed,
        parameters=count_parameters(state.net),
        macs=run.macs,
        epochs=position.epoch,
        best_epoch=position.best_epoch,
        train_images=len(train),
        train_seconds=position.seconds,
        images_per_second=sum(epoch["images"] for epoch in position.history) / position.step_seconds,
        validation_accuracy=position.history[position.best_epoch - 1]["validation_accuracy"],
        test_accuracy=evaluation.accuracy,
        test_interval=evaluation.interval,
        peak_memory_bytes=memory,
        device=plan.options.device,
        threads=torch.get_num_threads(),
        precision=plan.precision,
        execution=state.execution.name,
        data_origin=data.origin,
        versions=versions(),
        machine=machine(),
        commit=commit(),
        folder=str(run.folder),
        report=str(run.folder / REPORT),
    )
    first = next(batches(epoch_order(len(train), plan.options.seed, 0), plan.recipe.images_a_step))
    images, _ = augment_batch(
        train.images[first],
        train.labels[first],
        plan.recipe,
        moment=Moment(plan.options.seed, 0, 0),
        part=slice(None),
        batch_size=len(first),
        num_classes=len(model.classes),
    )
    write_report(
        run.folder,
        asdict(result),
        recipe=plan.recipe,
        history=position.history,
        evaluation=evaluation,
        data=data,
        batch=Split(images[:32], train.labels[first[:32]]),
    )
    write_json(run.folder / RESULT, asdict(result))  # last, because it says that the run is whole
    return result


@contextmanager
def _settings(threads: int | None, device: torch.device) -> Iterator[None]:
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
