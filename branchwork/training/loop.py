"""The training loop: straight, over images that lie in memory as one tensor."""

import copy
import json
import math
import threading
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, fields
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from branchwork.datasets.augment import Augmentation, augment, mix, mixup_weights
from branchwork.datasets.batches import batches, count_batches, epoch_order, generator_of, normalise
from branchwork.datasets.dataset import Split
from branchwork.errors import BatchTooLarge, Interrupted, NetError, RecipeError, RunError, TrainingError, first_line
from branchwork.files import write_whole
from branchwork.observer import Epoch, Observer, Step
from branchwork.training.checkpoint import Plan, Position, SavedState, save_state
from branchwork.training.compiling import Trial, is_of_compiler
from branchwork.training.distributed import Processes
from branchwork.training.execution import Execution
from branchwork.training.infer import TRAINING_DTYPES, autocast, predict_logits, weight_dtype
from branchwork.training.machine import is_out_of_memory
from branchwork.training.recipe import Recipe
from branchwork.training.run import METRICS, STATE, Model, holds, write_model, write_top

# A state is saved at the end of every epoch, and within an epoch when the last is older than this.
SAVE_SECONDS = 30.0
# How often what a GPU computes is waited for, at most.
READ_SECONDS = 0.5
# Points of the loss curve that an epoch leaves in metrics.jsonl.
CURVE_POINTS = 40


def freeze_body(net: nn.Module) -> None:
    """Leave only the last linear layer of `net` to be trained. Raises `NetError` where it has none."""
    linear = [module for module in net.modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise NetError(f"{type(net).__name__} has no linear layer that could be trained alone: leave out --freeze")
    net.requires_grad_(False)
    linear[-1].requires_grad_(True)


@dataclass(frozen=True)
class Place:
    """Which images these are: `rows` of a step's batch of `whole` images. What is drawn is a function of it."""

    seed: int
    epoch: int
    step: int
    rows: slice
    whole: int


def augmented(images: Tensor, recipe: Recipe, place: Place) -> Tensor:
    """The images uint8 N×C×H×W of this place as the net is trained on them."""
    strength = Augmentation(**{field.name: getattr(recipe, field.name) for field in fields(Augmentation)})
    at = place.seed, place.epoch, place.step
    images = augment(images, strength, at, rows=place.rows, whole=place.whole)
    return mix(images, _shares(recipe, place)).round_().to(torch.uint8) if recipe.mixup else images


def targets_of(labels: Tensor, classes: int, recipe: Recipe, place: Place) -> Tensor:
    """What the net is to answer in this place: the labels, or with mixup float32 N×K, each class's share."""
    return mix(F.one_hot(labels, classes), _shares(recipe, place)) if recipe.mixup else labels


def _shares(recipe: Recipe, place: Place) -> Tensor:
    return mixup_weights(place.whole, recipe.mixup, (place.seed, place.epoch, place.step))[place.rows]


def parts(count: int, pieces: int) -> list[slice]:
    """A batch of `count` images in `pieces` parts in a row, as equal as can be; each but the last has an even length.

    Parts that would be empty, since there are fewer pairs of images than pieces, are left out; none has one image
    alone, unless that is all.
    """
    pairs = max(1, count // 2)
    bounds = [*(2 * (pairs * piece // pieces) for piece in range(pieces)), count]
    return [slice(low, high) for low, high in pairwise(bounds) if low < high]


def update_average(average: nn.Module, net: nn.Module, decay: float) -> None:
    """Move the weights of `average`, and the statistics of its batch norms, to those of `net` by the share 1 − decay.

    Whole numbers, as a batch norm's count of batches, are copied.
    """
    with torch.no_grad():
        pairs = list(zip(average.state_dict().values(), net.state_dict().values(), strict=True))
        averages, currents = zip(*((a, b) for a, b in pairs if a.is_floating_point()), strict=True)
        get_ema_multi_avg_fn(decay)(averages, currents, 0)  # type: ignore[no-untyped-call]
        for count, current in pairs:
            if not count.is_floating_point():
                count.copy_(current)


@dataclass
class Loop:
    """A net in training and where it stands. `best` are the weights that are kept, `interrupted` asks it to stop.

    `average` is the net with the moving average of the weights, where the recipe has one: it is validated and kept.
    `heads` are the auxiliary ones, which are trained with the net and not kept.
    """

    plan: Plan
    recipe: Recipe
    folder: Path
    model: Model
    net: nn.Module
    optimizer: Optimizer
    execution: Execution
    interrupted: threading.Event
    observer: Observer
    position: Position = field(default_factory=Position)
    best: dict[str, Tensor] = field(default_factory=dict)
    average: nn.Module | None = None
    heads: nn.ModuleDict = field(default_factory=nn.ModuleDict)
    processes: Processes = field(default_factory=Processes)
    trial: Trial | None = None
    read_every: int = 1

    def begin(self, state: SavedState | None) -> None:
        """Stand where `state` was saved; without one, at the start, and save that."""
        if self.recipe.ema:
            self.average = copy.deepcopy(self.net)
        if state is None:
            self.best = _copy(self.net)
            self.save()
        else:
            self.best = state.restore(self.net, self.heads, self.optimizer, self.average)
            self.position = state.position
        if not self.processes.first:  # else all would draw the same, for other images
            place = (self.plan.seed, self.position.epoch, self.position.step)
            torch.manual_seed(generator_of(place[0], "process", *place[1:], self.processes.rank).initial_seed())

    def run(self, train: Split, validation: Split) -> None:
        """Train to the end of the recipe; then the net holds the weights that are kept.

        Raises `Interrupted` where it was asked to stop, with the state saved, and `TrainingError` where the loss
        or a weight is no longer finite.
        """
        while self.position.step or not self._is_over():
            self._train_epoch(train)
            self._close_epoch(len(train), validation)
            self._agree([])
            if self.interrupted.is_set() and not self._is_over():
                self._stop()
        if self.position.epoch < self.recipe.epochs:
            self._tell_early_end()
        self.net.load_state_dict(self.best)

    def _is_over(self) -> bool:
        """Whether no other epoch is begun."""
        recipe, position = self.recipe, self.position
        return (
            position.epoch == recipe.epochs
            or (position.epoch > 0 and recipe.out_of_time(position.seconds))
            or recipe.out_of_patience([epoch["validation_accuracy"] for epoch in position.history])
        )

    def save(self) -> None:
        """Write the state; where the disk is full, the last one is still there, and the error says how to go on."""
        if not self.processes.first:
            return
        try:
            save_state(
                self.folder, self.plan, self.position, self.net, self.heads, self.optimizer, self.best, self.average
            )
        except RunError as reason:
            if not holds(self.folder, STATE):
                raise
            raise RunError(f"{reason} Then continue with branchwork train --resume {self.folder}") from reason

    def _train_epoch(self, train: Split) -> None:
        """The rest of the epoch that the training stands in, or as much of it as there is time for."""
        recipe, position, device = self.recipe, self.position, train.labels.device
        steps = count_batches(len(train), recipe.images_a_step)
        unread: list[Tensor] = []
        began, seconds_before, step_seconds_before = (
            time.perf_counter(),
            position.seconds,
            position.step_seconds,
        )
        saved = read = began
        self.net.train()
        if self.plan.freeze:  # the statistics of batch norms are part of a frozen body
            for module in self.net.modules():
                module.train(not isinstance(module, _BatchNorm))
        order = epoch_order(len(train), self.plan.seed, position.epoch).to(device)
        for chosen in batches(order, recipe.images_a_step, position.step):
            done = position.epoch * steps + position.step
            rate = recipe.learning_rate_at(self._progress(len(train)))
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            unread.append(self.step(train, chosen))
            if self.average is not None:
                update_average(self.average, self.net, recipe.ema_at(done))
            position.step += 1

            alone = self.processes.count == 1
            if len(unread) == self.read_every or position.step == steps or (alone and self.interrupted.is_set()):
                losses = torch.stack(unread).tolist()
                now = time.perf_counter()
                read_at, position.seconds = position.seconds, seconds_before + now - began
                position.step_seconds = step_seconds_before + now - began
                position.losses += self._agree(losses)
                self._need_finite(all(map(math.isfinite, position.losses[-len(unread) :])), "the loss")
                self._tell_step(steps, len(train))
                self._try_compiled((now - read) / len(unread), steps)
                unread.clear()
                if device.type != "cpu":
                    self._pace(position.seconds - read_at)
                if recipe.out_of_time(position.seconds):
                    break
                if position.step < steps and (self.interrupted.is_set() or now - saved > SAVE_SECONDS):
                    self._need_finite_weights()
                    self.save()
                    saved = time.perf_counter()
                    if self.interrupted.is_set():
                        self._stop()
                read = time.perf_counter()

    def _pace(self, seconds: float) -> None:
        """Read the losses after more steps or fewer, about once in READ_SECONDS; last time it took so many seconds.

        Reading waits for a GPU, which is dearer than a short step; and what stops a training is only seen then.
        """
        self.read_every = min(50, 2 * self.read_every) if seconds < READ_SECONDS else max(1, self.read_every // 2)

    def _progress(self, images: int) -> float:
        """How far the run is, 0 to 1, whose epochs have so many images."""
        recipe, position = self.recipe, self.position
        return recipe.progress(self._share(count_batches(images, recipe.images_a_step)), position.seconds)

    def _agree(self, losses: list[float]) -> list[float]:
        """The sums of the processes' losses. All take over the first one's time, and stop where one was asked to."""
        position, first = self.position, self.processes.first
        *losses, position.seconds, stop = self.processes.sum(
            [*losses, position.seconds if first else 0.0, float(self.interrupted.is_set())]
        )
        if stop:
            self.interrupted.set()
        return losses

    def step(self, train: Split, chosen: Tensor) -> Tensor:
        """One step of the optimiser on the images `chosen`; gives what this process's add to their mean loss.

        Raises `BatchTooLarge` where the memory does not hold what it takes.
        """
        try:
            return self._step(train, chosen)
        except (RuntimeError, MemoryError) as reason:
            if self.trial is None or not self.trial.give_up():
                self._advise(reason, len(chosen))
                raise
        return self._step(train, chosen)  # out here, where nothing holds the memory of the one that failed

    def _step(self, train: Split, chosen: Tensor) -> Tensor:
        self.optimizer.zero_grad(set_to_none=True)
        loss = self._backward(train, chosen)
        if self.recipe.clip:
            nn.utils.clip_grad_norm_([*self.net.parameters(), *self.heads.parameters()], self.recipe.clip)
        self.optimizer.step()
        return loss

    def _advise(self, reason: BaseException, images: int) -> None:
        """Raise what says how to go on, where it is known why a step of so many images failed."""
        if is_of_compiler(reason):
            raise RecipeError(
                f"torch.compile cannot compile steps of {self.model.net} ({first_line(reason)}): leave out --compile"
            ) from reason
        if not is_out_of_memory(reason):
            return
        pieces = self.recipe.accumulate * self.processes.count
        part = math.ceil(images / pieces)
        smaller = pieces * 2 ** (max(2, part - 1).bit_length() - 1)
        raise BatchTooLarge(
            f"{part} images at once do not fit into the memory of {self.plan.device} with what a step of "
            f"{self.model.net} needs ({first_line(reason)}). Train with --batch-size {smaller}, "
            f"or with --accumulate {2 * self.recipe.accumulate}, which takes the same batch in smaller parts"
        ) from reason

    def _backward(self, train: Split, chosen: Tensor) -> Tensor:
        """Add the gradient of the mean loss of `chosen` to the parameters, part by part; gives this process's share.

        Each image weighs the same, in whatever part and process it is. What it gives is without the losses of auxiliary
        heads, which the gradient has.
        """
        position, device = self.position, train.labels.device
        recipe = self.recipe.at(self._progress(len(train)))
        precision = TRAINING_DTYPES[self.plan.precision]
        whole = torch.zeros((), dtype=weight_dtype(precision), device=device)
        count = self.processes.count
        # As many for each process, since batch norms that share their statistics wait for one another.
        pieces = count * min(recipe.accumulate, max(1, len(chosen) // 2 // count))
        own = self.processes.own(parts(len(chosen), pieces))
        # Where a last batch has too few images for all, a process takes part with one that weighs nothing.
        weight = 1 / len(chosen) if own else 0.0
        for part in own or [slice(0, 2)]:
            taken = chosen[part]
            place = Place(self.plan.seed, position.epoch, position.step, part, len(chosen))
            images = augmented(train.images[taken], recipe, place)
            targets = targets_of(train.labels[taken], len(self.model.classes), recipe, place)
            inputs = normalise(images, self.model.mean, self.model.std).to(whole.dtype)
            targets = targets.to(whole.dtype) if targets.is_floating_point() else targets
            with self._without_exchange() if own and part is not own[-1] else nullcontext():
                with autocast(device, precision):
                    given = self.execution.step(inputs.to(memory_format=self.execution.layout))
                loss, *others = (
                    weight
                    * F.cross_entropy(
                        logits.to(whole.dtype), targets, reduction="sum", label_smoothing=recipe.label_smoothing
                    )
                    for logits in (given if self.heads else [given])
                )
                total = loss + recipe.auxiliary * sum(others)
                (count * total).backward()  # type: ignore[no-untyped-call]  # DDP takes the mean over the processes
            whole += loss.detach()
        return whole

    def _without_exchange(self) -> AbstractContextManager[None]:
        """Gradients of a part that is not the last stay in this process: they are exchanged once a step."""
        step = self.execution.step
        return step.no_sync() if isinstance(step, DistributedDataParallel) else nullcontext()

    def _close_epoch(self, images: int, validation: Split) -> None:
        """Validate, keep the weights if they are the best, and write what the epoch over `images` images gave."""
        position = self.position
        if position.step < count_batches(images, self.recipe.images_a_step):  # the time was over before
            images = position.step * self.recipe.images_a_step
        began = time.perf_counter()
        self._need_finite_weights()
        kept = self.net if self.average is None else self.average
        self.processes.share_buffers(self.net)
        self.processes.share_buffers(kept)
        accuracy = None
        if len(validation):
            run = self.execution.validate if self.average is None else self.average
            correct = 0
            for part in self.processes.own(parts(len(validation), self.processes.count)):
                own = validation.pick(torch.arange(*part.indices(len(validation))))
                logits = predict_logits(run, own.images, self.model, TRAINING_DTYPES[self.plan.precision])
                correct += int((logits.argmax(1) == own.labels).sum())
            accuracy = self.processes.sum([correct])[0] / len(validation)
        previous = [epoch["validation_accuracy"] for epoch in position.history]
        if accuracy is None or not previous or accuracy >= max(previous):
            self.best = _copy(kept)
            position.best_epoch = position.epoch + 1
        position.seconds += time.perf_counter() - began

        step_seconds = position.step_seconds - sum(epoch["step_seconds"] for epoch in position.history)
        seconds = position.seconds - sum(epoch["seconds"] for epoch in position.history)
        train_loss = sum(position.losses) / len(position.losses)
        position.history.append(
            {
                "epoch": position.epoch + 1,
                "train_loss": train_loss,
                "validation_accuracy": accuracy,
                "images": images,
                "learning_rate": self.optimizer.param_groups[0]["lr"],
                "seconds": seconds,
                "step_seconds": step_seconds,
                "images_per_second": images / step_seconds,
                "loss_curve": _thin(position.losses),
            }
        )
        position.epoch, position.step, position.losses = position.epoch + 1, 0, []
        if self.processes.first:
            write_model(self.folder, self.best, self.model)
            if self.recipe.top:
                write_top(self.folder, position.history, self.recipe.top, kept.state_dict())
            write_whole(self.folder / METRICS, "".join(json.dumps(epoch) + "\n" for epoch in position.history))
        self.save()
        self.observer.epoch(
            Epoch(position.epoch, self.recipe.epochs, train_loss, accuracy, seconds, images / step_seconds)
        )

    def _tell_early_end(self) -> None:
        recipe, position = self.recipe, self.position
        why = (
            f"the {recipe.minutes:g} minutes are over"
            if recipe.out_of_time(position.seconds)
            else f"{recipe.patience} epochs brought nothing better on validation"
        )
        self.observer.note(f"ended after epoch {position.epoch} of {recipe.epochs}: {why}")

    def _try_compiled(self, seconds: float, steps: int) -> None:
        """Go on with the trial of compiled steps, if there is one: the last steps took so many seconds each."""
        if self.trial is not None and self.trial.running:
            told = self.trial.read(seconds, self._seconds_left(steps))
            if told is not None:
                self.observer.note(told)

    def _share(self, steps: int) -> float:
        """How much of the run is done, 0 to 1, whose epochs have so many steps."""
        return (self.position.epoch * steps + self.position.step) / (self.recipe.epochs * steps)

    def _seconds_left(self, steps: int) -> float:
        share, position = self._share(steps), self.position
        left = (1 - share) / share * position.step_seconds
        return min(left, max(0.0, 60 * self.recipe.minutes - position.seconds)) if self.recipe.minutes else left

    def _tell_step(self, steps: int, images: int) -> None:
        position, epochs = self.position, self.recipe.epochs
        share = self._share(steps)
        self.observer.step(
            Step(
                position.epoch + 1,
                epochs,
                position.step,
                steps,
                loss=position.losses[-1],
                images_per_second=share * epochs * images / position.step_seconds,
                seconds_left=self._seconds_left(steps),
            )
        )

    def _need_finite_weights(self) -> None:
        numbers = (number for number in self.net.state_dict().values() if number.is_floating_point())
        self._need_finite(all(bool(number.isfinite().all()) for number in numbers), "a weight")

    def _need_finite(self, finite: bool, what: str) -> None:
        if finite:
            return
        position, rate = self.position, self.recipe.learning_rate
        kept = f"with the weights of epoch {position.best_epoch}" if position.best_epoch else "before any epoch"
        error = TrainingError(
            f"{what} became infinite or not a number in epoch {position.epoch + 1}, step {position.step}: the training "
            f"has diverged. Train again with --learning-rate {rate / 10:g} (it was {rate:g}) and another --out. "
            f"The last good state, {kept}, is kept in {self.folder}."
        )
        raise self.processes.tell(error)

    def _stop(self) -> None:
        error = Interrupted(f"stopped, and saved. Continue with: branchwork train --resume {self.folder}")
        raise self.processes.tell(error)


def _copy(net: nn.Module) -> dict[str, Tensor]:
    return {key: tensor.detach().clone() for key, tensor in net.state_dict().items()}


def _thin(losses: list[float]) -> list[float]:
    """The losses as at most CURVE_POINTS means of neighbours, of as many each as can be."""
    count = min(CURVE_POINTS, len(losses))
    bounds = [len(losses) * point // count for point in range(count + 1)]
    return [sum(losses[low:high]) / (high - low) for low, high in pairwise(bounds)]
