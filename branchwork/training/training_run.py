"""One training in its run folder: prepare, train, test, report."""

import json
import math
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from branchwork.catalogue.resolve import is_own_failure, short_name
from branchwork.datasets.batches import batches, epoch_order, generator_of, one_fold, train_and_validation
from branchwork.datasets.dataset import DataSet, Split
from branchwork.errors import (
    FAILURES,
    DataError,
    Diverged,
    Interrupted,
    RunError,
    TrainingError,
    first_line,
    with_kind,
    with_line,
)
from branchwork.files import hold_lock, remove_parts, typed, with_format, write_json, write_whole
from branchwork.graph.costs import count_macs, count_parameters
from branchwork.graph.unread import unread_warnings
from branchwork.language import say
from branchwork.observer import Epoch, Observer, Step, TensorBoard
from branchwork.training.captured import captured_step
from branchwork.training.checkpoint import Position, SavedState, save_state
from branchwork.training.choice import FEW_IMAGES
from branchwork.training.evaluate import Z_95, Evaluation, evaluate_net
from branchwork.training.fit import check_finite, ends_epoch, fit, is_over
from branchwork.training.infer import pick_device
from branchwork.training.machine import commit, machine, peak_memory, process_settings, reset_peak_memory, versions
from branchwork.training.net_report import Kernels, describe_net, first_kernels
from branchwork.training.plan import Plan
from branchwork.training.pretrained import load_start
from branchwork.training.processes import Processes, is_lost
from branchwork.training.result import Result
from branchwork.training.run import (
    METRICS,
    RECIPE,
    REPORT,
    RESULT,
    SCRIPTS,
    STATE,
    Model,
    TrainedNet,
    check_code,
    holds,
    keep_script,
    kept_net,
    write_model,
    write_top,
)
from branchwork.training.run_report import write_report
from branchwork.training.state import TrainState, make_state
from branchwork.training.step import Moment, batch_of

# A state is saved at the end of every epoch, and within an epoch if the last save is older than this.
SAVE_SECONDS = 30.0
# An accuracy as an example of how little a few images tell.
GOOD = 0.9
# How many times the loss of guessing is a leap, as the mean over this many images: a few may be far off by chance.
LEAP, LEAP_IMAGES = 2.0, 64
LOCK = ".lock"


def run_training(
    plan: Plan,
    data: DataSet,
    folder: Path,
    *,
    saved: SavedState | None,
    interrupted: threading.Event,
    observer: Observer,
    processes: Processes,
) -> Result:
    """Train in `folder` to the end, from the state `saved` if given, and return the result.

    Raises `RunError` if the training images are not those of the plan, or if another training uses the folder.
    """

    def prepare() -> None:
        if data.train.checksum() != plan.checksum:
            raise RunError(
                "process {rank} has different training images in {data} from the first process: give all of them the "
                "same files"
                if saved is None
                else "the training images of {data} have changed since {folder} was begun: train into another folder",
                rank=processes.rank,
                data=data.name,
                folder=folder,
            )
        if processes.first:
            lock.enter_context(hold_lock(folder / LOCK, say("is training in {folder}", folder=folder)))
            remove_parts(folder, *(folder / name for name in ("last", "top", SCRIPTS)))

    device = processes.device(str(pick_device(plan.options.device)))
    if plan.options.log and processes.first:
        observer = TensorBoard(observer, folder / "tensorboard")
    with ExitStack() as lock:
        processes.together(prepare)
        if plan.normalisation is not None:  # as the weights that it starts from expect it
            mean, std = plan.normalisation
            if len(mean) != data.channels:
                observer.note(say("grey images get {count} equal channels, as the weights expect", count=len(mean)))
            data = replace(data.expand(len(mean)), mean=mean, std=std)
        reset_peak_memory(device)
        net, seed = short_name(plan.net), plan.options.seed
        observer.start(say("{net} on {data}, seed {seed}", net=net, data=plan.name_of(data), seed=seed))
        if plan.fold is not None:
            data = one_fold(data, *plan.fold, seed)
        try:
            with process_settings(plan.options.threads, device):
                run = _prepare(plan, data, folder, saved=saved, observer=observer, processes=processes)
                _train(run, interrupted, observer)
                return processes.share(_finish(run, data) if processes.first else None)  # type: ignore[return-value]
        finally:
            observer.end()


@dataclass
class _Run:
    """One training and its folder. `best` are the weights that are kept, `macs` those of one image.

    `first` are the first kernels as they were before the training, None if that is no longer known.
    """

    plan: Plan
    folder: Path
    state: TrainState
    position: Position
    train: Split
    validation: Split
    best: dict[str, Tensor]
    macs: int
    first: Kernels | None

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Say how to continue where the folder cannot be written in here; the previous state remains.

        Raises `RunError` if it was deleted meanwhile: what is written now would be no whole run.
        """
        if not holds(self.folder, LOCK):
            raise RunError(
                "{folder} was deleted while the training was running: train again, and leave it in place",
                folder=self.folder,
            )
        try:
            yield
        except RunError as reason:
            if not holds(self.folder, STATE):
                raise
            raise RunError(
                "{reason} Then continue with: branchwork train --resume {folder}",
                reason=reason,
                folder=typed(self.folder),
            ) from reason

    def save(self) -> None:
        """Write the state."""
        if self.state.processes.first:
            with self.writing():
                save_state(self.folder, self.plan, self.position, state=self.state, best=self.best)


def _prepare(
    plan: Plan, data: DataSet, folder: Path, *, saved: SavedState | None, observer: Observer, processes: Processes
) -> _Run:
    """Build the net and restore `saved`; without it, start from the beginning and save that state."""
    own_code = keep_script if saved is None else check_code
    processes.together(lambda: own_code(folder, plan.net) if processes.first else None)  # which the others find
    model = Model.of(plan.net, data, plan.recipe)
    build = replace(model, net=kept_net(folder, plan.net)).builder()
    torch.manual_seed(plan.options.seed)  # after a script was read, which may set a seed of its own
    net = build()
    if plan.options.weights is not None and saved is None:
        _, lines = load_start(net, model, plan.options.weights, observer=observer)
        for line in lines:
            observer.note(line)
    # A training that goes on does not load again the weights that it began with.
    first = first_kernels(net, model.in_channels) if plan.options.weights is None or saved is None else None
    shape = model.input_shape
    macs = count_macs(net, shape)
    if ":" in plan.net and saved is None:
        for warning in unread_warnings(net, shape):
            observer.note(warning)
    began = time.perf_counter()
    state = make_state(
        net, model, recipe=plan.recipe, options=plan.options, precision=plan.precision, processes=processes
    )
    position = Position() if saved is None else saved.position
    position.seconds = processes.share(position.seconds + time.perf_counter() - began)
    splits = train_and_validation(data, plan.recipe.validation, plan.options.seed, used=plan.recipe.fraction)
    if saved is None and plan.fold is None and 0 < len(splits[1]) < FEW_IMAGES:
        observer.note(_few_words(len(splits[1])))
    run = _Run(plan, folder, state, position, *splits, _copy(state.net.state_dict()), macs, first)
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


def _few_words(count: int) -> str:
    """Return how little `count` validation images tell, and what tells more."""
    half = Z_95 * math.sqrt(GOOD * (1 - GOOD) / count)
    return say(
        "the epoch that is kept is chosen by only {count} validation images: an accuracy of {good:.0%} on so few is "
        "uncertain by ±{points:.0f} points, so the choice is mostly chance\n"
        "--folds 5 tests on every training image; --validation 0 keeps the last epoch",
        count=count,
        good=GOOD,
        points=100 * half,
    )


def _leap_words(run: _Run) -> str | None:
    """Return that the loss has leapt, if it is far above that of guessing: the learning rate is too high."""
    recipe, losses = run.plan.recipe, run.position.losses
    steps = math.ceil(LEAP_IMAGES / recipe.images_per_step)
    guessing = math.log(len(run.state.model.classes))
    loss = sum(losses[-steps:]) / steps
    if len(losses) < steps or loss < LEAP * guessing:
        return None
    return say(
        "the loss leapt to {loss:.2f} in epoch {epoch}, step {step}, far above {guessing:.2f}, that of pure guessing: "
        "the learning rate is too high. Stop, and train again with --learning-rate {rate:g} (it is {before:g})",
        loss=loss,
        epoch=run.position.epoch + 1,
        step=run.position.step,
        guessing=guessing,
        rate=recipe.learning_rate / 10,
        before=recipe.learning_rate,
    )


def _train(run: _Run, interrupted: threading.Event, observer: Observer) -> None:
    """Train to the end, and then load the weights that are kept. Raises `Interrupted` once `interrupted` is set."""
    plan, state, position, processes = run.plan, run.state, run.position, run.state.processes
    train = _moved(run.train, next(state.net.parameters()).device)
    saved_at, leapt = time.perf_counter(), False
    try:
        events = fit(
            state,
            train,
            run.validation,
            recipe=plan.recipe,
            seed=plan.options.seed,
            position=position,
            take_step=captured_step(state, plan.options, position=position, observer=observer),
        )
        for event in _own_failures(run, events):
            if isinstance(event, Epoch):
                _keep_epoch(run, event.weights)
                observer.epoch(event)
                at_end = is_over(plan.recipe, position)
            else:
                observer.step(event)
                if not leapt and (words := _leap_words(run)):
                    leapt = True
                    observer.note(words)
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
                    Interrupted(
                        "stopped, and saved. Continue with: branchwork train --resume {folder}",
                        folder=typed(run.folder),
                    )
                )
            if isinstance(event, Epoch) or save:
                saved_at = time.perf_counter()
    except Diverged as reason:
        rate, best = plan.recipe.learning_rate, position.best_epoch
        raise processes.tell(
            TrainingError(
                "{reason}. Train again with --learning-rate {rate:g} (it was {before:g}) and another --out. "
                "The last good state, with the weights of epoch {best}, is kept in {folder}."
                if best
                else "{reason}. Train again with --learning-rate {rate:g} (it was {before:g}) and another --out. "
                "The last good state, before any epoch, is kept in {folder}.",
                reason=reason,
                rate=rate / 10,
                before=rate,
                best=best,
                folder=run.folder,
            )
        ) from reason
    except (RuntimeError, ValueError) as reason:
        if processes.count == 1 or not is_lost(reason):
            raise
        raise TrainingError(
            "one of the {count} processes that train together was lost ({reason}). "
            "Continue, with any number of processes: branchwork train --resume {folder}",
            count=processes.count,
            reason=first_line(reason),
            folder=typed(run.folder),
        ) from reason
    if position.epoch < plan.recipe.epochs:
        observer.note(
            say(
                "ended after epoch {epoch} of {epochs}: the {minutes:g} minutes are up"
                if plan.recipe.out_of_time(position.seconds)
                else "ended after epoch {epoch} of {epochs}: no better validation accuracy in {patience} epochs",
                epoch=position.epoch,
                epochs=plan.recipe.epochs,
                minutes=plan.recipe.minutes,
                patience=plan.recipe.patience,
            )
        )
    state.net.load_state_dict(run.best)


def _own_failures(run: _Run, events: Iterator[Step | Epoch]) -> Iterator[Step | Epoch]:
    """Yield `events`, and turn what a user's own net raises meanwhile into an error that says where."""
    position, processes = run.position, run.state.processes
    try:
        yield from events
    except FAILURES as reason:
        lost = processes.count > 1 and is_lost(reason)
        if lost or not is_own_failure(run.plan.net, reason):
            raise
        raise TrainingError(
            "{net} failed in epoch {epoch}, step {step}: {reason}. The last state is kept in {folder}.",
            net=run.plan.net,
            epoch=position.epoch + 1,
            step=position.step + 1,
            reason=with_line(with_kind(reason), reason),
            folder=run.folder,
        ) from reason


def _keep_epoch(run: _Run, weights: Mapping[str, Tensor]) -> None:
    """Write the files of an epoch, and keep its `weights` if they are the best."""
    position, top = run.position, run.plan.recipe.top
    if position.best_epoch == position.epoch:
        run.best = _copy(weights)
    if run.state.processes.first:
        with run.writing():
            write_model(run.folder, run.best, run.state.model)
            if top:
                write_top(run.folder, position.history, weights, count=top)
            write_whole(run.folder / METRICS, "".join(json.dumps(epoch) + "\n" for epoch in position.history))
    run.save()


def _copy(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor.detach().clone() for key, tensor in weights.items()}


def _moved(split: Split, device: torch.device) -> Split:
    """Return `split` on `device`; memory-mapped images stay in their file. Raises `DataError` if it does not fit."""
    try:
        return Split(split.images.to(device), split.labels.to(device))
    except torch.OutOfMemoryError as reason:
        size = math.prod(split.images.shape) / 1e9
        raise DataError(
            "the training images take {size:.1f} GB, which do not fit on {device}: make a pack with "
            "branchwork data pack FOLDER, which is read batch by batch",
            size=size,
            device=device,
        ) from reason


def _finish(run: _Run, data: DataSet) -> Result:
    """Test the kept weights, and write the report and the result."""
    plan, state, position = run.plan, run.state, run.position
    memory = peak_memory(torch.device(plan.options.device))
    evaluation = evaluate_net(state.net.to(torch.float32), state.model, data)
    result = Result(
        net=plan.net,
        data=plan.name_of(data),
        seed=plan.options.seed,
        parameters=count_parameters(state.net),
        macs=run.macs,
        epochs=position.epoch,
        best_epoch=position.best_epoch,
        train_images=len(run.train),
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
        report=str(run.folder / REPORT) if plan.options.report else None,
        capture_seconds=position.capture_seconds,
    )
    with run.writing():
        if plan.options.report:
            _report(run, data, result, evaluation)
        write_json(run.folder / RESULT, with_format(result))  # last, because it says that the run is whole
    return result


def _report(run: _Run, data: DataSet, result: Result, evaluation: Evaluation) -> None:
    """Describe the trained net, show the first batch as the net got it, and write the report of both."""
    plan, model, train = run.plan, run.state.model, run.train
    first = next(batches(epoch_order(len(train), plan.options.seed, 0), plan.recipe.images_per_step))
    batch = batch_of(run.state, train, first, recipe=plan.recipe, moment=Moment(plan.options.seed, 0, 0))
    images, _ = batch(slice(0, 32))
    trained = TrainedNet(run.state.net, model, run.folder)
    held_out = len(run.validation) > 0
    measured_on = run.validation if held_out else data.test
    write_report(
        trained,
        asdict(result),
        net=describe_net(trained, measured_on, held_out=held_out, before=run.first),
        history=run.position.history,
        evaluation=evaluation,
        data=replace(data, name=plan.name_of(data)),
        batch=Split(images, train.labels[first[:32]]),
    )
