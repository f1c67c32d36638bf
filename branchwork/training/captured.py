"""Training steps as a CUDA graph: recorded once, and then started as a whole instead of kernel by kernel.

A step of a small net is hundreds of kernels that take less time than it takes to start them. A recording holds kernels,
addresses and numbers, and no Python: what it would lose is looked for before it is made, and what it computes is
compared with an ordinary step before it is used.
"""

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache, partial

import torch
from torch import Tensor

from branchwork.datasets.dataset import Split
from branchwork.errors import BatchTooLarge, BranchworkError, first_line
from branchwork.graph.untouched import holding, untouched
from branchwork.language import say
from branchwork.observer import Observer
from branchwork.training.checkpoint import Position
from branchwork.training.infer import weight_dtype
from branchwork.training.options import Options
from branchwork.training.recipe import Recipe
from branchwork.training.state import TrainState
from branchwork.training.step import Moment, batch_of, train_step, update

# How far a tensor may be from what an ordinary step makes of it: this share of what the step changes, of the tensor,
# and this many times the difference between two ordinary steps, since a GPU adds up some sums in any order.
OF_CHANGE, OF_TENSOR, OF_NOISE = 0.02, 1e-6, 4.0
# All those differences together, as a share of what a step changes: with more, a step is not the same each time.
MOST_NOISE = 0.1


def captured_step(
    state: TrainState, options: Options, *, position: Position, observer: Observer
) -> "CapturedStep | None":
    """Return what takes the training steps on a GPU instead of `train_step`.

    None on a CPU, with `capture` off, and where steps cannot be recorded: `observer` is told the reason.
    """
    if next(state.net.parameters()).device.type != "cuda" or not options.capture:
        return None
    if state.processes.count > 1:
        reason = say("several processes train together")
    elif options.compile:
        reason = say("torch.compile runs them")
    else:
        return CapturedStep(position, observer.note)
    observer.note(_refusal(reason))
    return None


class CapturedStep:
    """Takes the steps of `train_step`, to the same weights: those of whole batches are recorded, and then replayed.

    A net is not recorded if in a step it waits for the GPU, draws random numbers on the CPU, or changes its attributes
    or replaces its buffers; nor if a replayed step changes weights, statistics or optimiser otherwise than an
    ordinary step. `note` is told why, once, and ordinary steps go on from the state that it had. The seconds
    spent before the first replay are added to `position.capture_seconds`.
    """

    def __init__(self, position: Position, note: Callable[[str], None]) -> None:
        self.position, self.note = position, note
        # By the recipe, since at the end of a run it may be another, without augmentation, and by whether only the head
        # learns.
        self.recordings: dict[tuple[Recipe, bool], _Recording] = {}
        # The epoch in which each was last compared with the addresses of the net: comparing takes as long as a step.
        self.checked: dict[tuple[Recipe, bool], int] = {}
        self.refused = False

    def __call__(
        self,
        state: TrainState,
        data: Split,
        chosen: Tensor,
        *,
        recipe: Recipe,
        moment: Moment,
        learning_rate: float,
        decay: float = 0.0,
    ) -> Tensor:
        """Take the step that `train_step` takes with the same arguments."""
        if len(chosen) == recipe.images_per_step and not self.refused:
            images, targets = batch_of(state, data, chosen, recipe=recipe, moment=moment)(slice(None))
            try:
                return self._replay(state, _Given(images, targets, learning_rate, decay), recipe, moment.epoch)
            except _Refused as reason:
                self.refused = True
                self.recordings.clear()
                self.note(_refusal(str(reason)))
        return train_step(state, data, chosen, recipe=recipe, moment=moment, learning_rate=learning_rate, decay=decay)

    def _replay(self, state: TrainState, given: "_Given", recipe: Recipe, epoch: int) -> Tensor:
        key = recipe, state.frozen
        recording = self.recordings.get(key)
        if recording is not None:
            # A validation, at the end of an epoch, may move the net; a step does not.
            if self.checked[key] != epoch and recording.addresses != _addresses(state):
                raise _Refused(say("the tensors of the net were moved in memory"))
            self.checked[key] = epoch
            return recording.take(given)
        began = time.perf_counter()
        try:
            self.recordings[key], loss = _record(state, given, recipe)
            self.checked[key] = epoch
            return loss
        finally:
            self.position.capture_seconds += time.perf_counter() - began


class _Refused(Exception):
    """Why steps are not replayed."""


def _refusal(reason: str) -> str:
    return say(
        "training steps are not recorded as a CUDA graph, although that is faster for small nets: {reason}",
        reason=reason,
    )


@dataclass(frozen=True)
class _Given:
    """What differs from step to step: augmented images and targets, learning rate, decay of the average."""

    images: Tensor
    targets: Tensor
    rate: float
    decay: float

    def part(self, rows: slice) -> tuple[Tensor, Tensor]:
        return self.images[rows], self.targets[rows]


@dataclass(frozen=True)
class _Recording:
    """A recorded step. It reads `images`, `targets`, `rate` and `decay`, and writes its `loss`, always at one place.

    `addresses` are those of all tensors of the training.
    """

    images: Tensor
    targets: Tensor
    rate: Tensor
    decay: Tensor
    loss: Tensor
    replay: Callable[[], None]
    addresses: list[int]

    def take(self, given: _Given) -> Tensor:
        """Take a step, and return its loss. Everything is queued on the GPU, in order; nothing waits."""
        self.images.copy_(given.images)
        self.targets.copy_(given.targets)
        self.rate.fill_(given.rate)
        self.decay.fill_(given.decay)
        self.replay()
        return self.loss.clone()


def _record(state: TrainState, given: _Given, recipe: Recipe) -> tuple[_Recording, Tensor]:
    """Record a step, take the `given` one by it, and return the recording and the loss.

    Before that, the given step is tried three times from the same state: twice as usual, and once as it is recorded.
    Raises `_Refused`, and then leaves the state as it was.
    """
    device, count = given.images.device, len(given.images)
    saved = _Saved(state)
    as_usual = partial(update, state, given.part, count, recipe=recipe, learning_rate=given.rate, decay=given.decay)
    try:
        # The first step of an optimiser makes its state, and with it places that a recording can refer to.
        usual, again = (_tried(state, saved, as_usual) for _ in range(2))
    except BatchTooLarge as reason:  # because of the copies
        raise _Refused(first_line(reason)) from reason

    images, targets = torch.zeros_like(given.images), torch.zeros_like(given.targets)
    rate = torch.zeros((), device=device)
    decay = torch.zeros((), device=device, dtype=weight_dtype(state.precision))

    def work() -> Tensor:
        return update(
            state, lambda rows: (images[rows], targets[rows]), count, recipe=recipe, learning_rate=rate, decay=decay
        )

    try:
        if device.type == "cuda":
            torch.cuda.empty_cache()  # so that what is then kept is the memory of one step
        with _refuse_waits(device):
            _tried(state, saved, work)
        _check_memory(device)
        # All inputs are 0 here, so that a number that is read now, and not at each replay, will show.
        replay, loss = record_graph(work)
    except (RuntimeError, BranchworkError) as reason:
        saved.restore()
        raise _Refused(first_line(reason)) from reason
    saved.restore()
    recording = _Recording(images, targets, rate, decay, loss, replay, _addresses(state))
    replayed = [recording.take(given), *_copies(state)]
    if not _agree(saved.before(), usual, again, replayed):
        saved.restore()
        raise _Refused(say("the recorded step differs from an ordinary step"))
    return recording, replayed[0]


def record_graph(work: Callable[[], Tensor]) -> tuple[Callable[[], None], Tensor]:
    """Record the kernels of `work` without running them: return what runs them, and where their result will be."""
    stream, graph, pool = torch.cuda.current_stream(), torch.cuda.CUDAGraph(), torch.cuda.graph_pool_handle()
    try:
        with torch.cuda.graph(graph, pool):
            result = work()
    except BaseException:
        # torch (2.13) leaves by its own stream, and its random numbers waiting for the end of the recording.
        torch.cuda.set_stream(stream)
        number = stream.device.index
        generator = torch.cuda.default_generators[number]
        generator.graphsafe_set_state(generator.clone_state())
        # torch 2.11 also leaves its allocator capturing, and frees no memory from then on (pytorch#180395). Later
        # versions have ended it already, and refuse.
        with suppress(RuntimeError):
            torch._C._cuda_endAllocateToPool(number, pool)
            torch._C._cuda_releasePool(number, pool)
        raise
    return graph.replay, result


def _tried(state: TrainState, saved: "_Saved", work: Callable[[], Tensor]) -> list[Tensor]:
    """Take a step and take it back: return its loss, and copies of all tensors after it.

    Raises `_Refused` if it does more than change the numbers in tensors.
    """
    device, random_state = saved.device, torch.get_rng_state()
    try:
        with untouched(state.net) as changed, holding(state.net, {}) as left, _beside(device):
            after = [work(), *_copies(state)]
    finally:
        saved.restore()
    if changed:
        raise _Refused(say("a step of the net changes {what}", what=", ".join(sorted(set(changed)))))
    if any(id(tensor) != number for number, tensor in left.items()):
        raise _Refused(say("a step of the net replaces a buffer"))
    if device.type != "cpu" and not torch.equal(random_state, torch.get_rng_state()):
        torch.set_rng_state(random_state)
        raise _Refused(say("a step of the net draws random numbers on the CPU"))
    return after


class _Saved:
    """All numbers that a step changes, as they were when this was made."""

    def __init__(self, state: TrainState) -> None:
        self.state, self.device = state, next(state.net.parameters()).device
        self.copies = {id(tensor): tensor.detach().clone() for tensor in _tensors(state)}
        self.random = torch.get_rng_state() if self.device.type == "cpu" else torch.cuda.get_rng_state(self.device)

    def before(self) -> list[Tensor]:
        """Return the numbers in the order of `_tensors`. An optimiser without a state would begin with zeros."""
        return [self.copies.get(id(tensor), torch.zeros_like(tensor)) for tensor in _tensors(self.state)]

    @torch.no_grad()
    def restore(self) -> None:
        for tensor, before in zip(_tensors(self.state), self.before(), strict=True):
            tensor.copy_(before)
        if self.device.type == "cpu":
            torch.set_rng_state(self.random)
        else:
            torch.cuda.set_rng_state(self.random, self.device)


def _tensors(state: TrainState) -> list[Tensor]:
    """Return every tensor that a step may change, once."""
    modules = [state.net, state.heads, state.execution.step, *([state.average] if state.average is not None else [])]
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    tensors += [value for values in state.optimizer.state.values() for value in values.values()]
    return list({id(tensor): tensor for tensor in tensors}.values())


def _copies(state: TrainState) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in _tensors(state)]


def _addresses(state: TrainState) -> list[int]:
    return [tensor.data_ptr() for tensor in _tensors(state)]


def _agree(before: list[Tensor], usual: list[Tensor], again: list[Tensor], replayed: list[Tensor]) -> bool:
    """Return whether `replayed` is as near to `usual` as it should be, tensor by tensor; the first is the loss."""

    def distances(one: list[Tensor], other: list[Tensor]) -> Tensor:
        return torch.stack([(a.double() - b.double()).norm() for a, b in zip(one, other, strict=True)])

    sizes = distances(usual, [torch.zeros_like(tensor) for tensor in usual])
    changes, noise = distances(usual, [torch.zeros_like(usual[0]), *before]), distances(usual, again)
    bounds = OF_CHANGE * changes + OF_TENSOR * sizes + OF_NOISE * noise
    near = (distances(usual, replayed) <= bounds).all()  # which no NaN is
    return bool(near & (noise.norm() <= MOST_NOISE * changes.norm()))


@contextmanager
def _beside(device: torch.device) -> Iterator[None]:
    """Work in another stream, as torch wants it before a recording."""
    if device.type != "cuda":
        yield
        return
    stream = _other_stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    try:
        with torch.cuda.stream(stream):
            yield
    finally:  # also after an error: what was started there still writes while numbers are restored here
        torch.cuda.current_stream(device).wait_stream(stream)


@cache  # each stream keeps the memory that was freed in it
def _other_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]


@contextmanager
def _refuse_waits(device: torch.device) -> Iterator[None]:
    """Let torch raise `RuntimeError` where the CPU would wait for the GPU, which no recording allows."""
    if device.type != "cuda":
        yield
        return
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that torch does not find all of them
        torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode(before)


def _check_memory(device: torch.device) -> None:
    """Raise `_Refused` if a recording, which keeps its memory, would leave too little for the last, smaller batch."""
    if device.type == "cuda":
        a_step = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        if torch.cuda.mem_get_info(device)[0] < a_step:
            raise _Refused(say("the GPU has too little memory for it"))
