"""Processes that train one net together, as torchrun starts them, and signals that stop a training.

Only the first process, of rank 0, writes and prints.
"""

import gc
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.func import functional_call

from branchwork.errors import BranchworkError, RunError, ToldElsewhere
from branchwork.language import say

T = TypeVar("T")

# What a terminal sends to all its processes: Ctrl-C, and its end, which Windows does not know.
STOPS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGHUP", "SIGBREAK") if hasattr(signal, name))


@dataclass(frozen=True)
class Processes:
    """This process among those that train together: by default the only one.

    Sums are taken in float64, and every process gets the same.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """Return the device that this process trains on: each process on a machine has a GPU of its own."""
        device = torch.device(name)
        return torch.device("cuda", self.local_rank) if device.type == "cuda" and self.count > 1 else device

    def own(self, things: Sequence[T]) -> Sequence[T]:
        """Return this process's share of `things`, in a row; it is empty if they are too few."""
        low, high = (len(things) * rank // self.count for rank in (self.rank, self.rank + 1))
        return things[low:high]

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """Return the sum of each number over all processes."""
        if self.count == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total)
        return [float(number) for number in total]

    def of_first(self, number: float) -> float:
        """Return `number` in the first process and 0 in the others, so that a sum is the first one's."""
        return number if self.first else 0.0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Return whether each of the flags is set in some process."""
        return tuple(count > 0 for count in self.sum([float(flag) for flag in flags]))

    def every(self, value: T) -> list[T]:
        """Return the value of each process, in the order of ranks."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values

    def share(self, value: T) -> T:
        """Return the first process's value."""
        values = [value]
        if self.count > 1:
            dist.broadcast_object_list(values, 0)
        return values[0]

    def share_buffers(self, net: nn.Module) -> None:
        """Give all processes the batch norm statistics of the first one, which are the ones kept."""
        if self.count > 1:
            for buffer in net.buffers():
                dist.broadcast(buffer, 0)

    def together(self, work: Callable[[], T]) -> T:
        """Return what `work` returns in this process, once it has succeeded in all of them.

        If it fails in one, the first process raises its `BranchworkError` and the others raise `ToldElsewhere`, so that
        none is left waiting and the user reads one message.
        """
        result, error = None, None
        try:
            result = work()
        except BranchworkError as reason:
            error = reason
        errors = self.every(error)
        failed = next((rank for rank, reason in enumerate(errors) if reason is not None), None)
        if failed is None:
            return result  # type: ignore[return-value]
        raise self.tell(errors[failed])  # type: ignore[arg-type]

    def tell(self, error: BranchworkError) -> BranchworkError:
        """Return what this process should raise for an `error` that all processes meet: only the first prints it."""
        return error if self.first else ToldElsewhere(str(error))


@contextmanager
def joined() -> Iterator[Processes]:
    """Connect the processes that torchrun started with this one; without torchrun there is only this one.

    GPUs use NCCL, everything else uses Gloo. May be nested. Raises `RunError` if the others cannot be reached.
    """
    rank, count, local_rank = (int(os.environ.get(key, default)) for key, default in _VARIABLES)
    processes = Processes(rank, count, local_rank)
    if count == 1 or dist.is_initialized():
        yield processes
        return
    try:
        if local_rank < torch.cuda.device_count():  # more processes than GPUs are right where they train on the CPU
            torch.cuda.set_device(local_rank)
        dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")
    except (RuntimeError, ValueError) as reason:
        raise RunError(
            "process {rank} of {count} cannot reach the others ({reason}): start it with torchrun, the same "
            "command on each machine, with an --rdzv-endpoint that all machines can reach",
            rank=rank,
            count=count,
            reason=reason,
        ) from reason
    try:
        yield processes
        # What is in cycles, as DDP's reducers are, would hold the group until Python ends and then abort the process.
        gc.collect()
    except BranchworkError:
        # As soon as one process has ended, torchrun sends SIGTERM to the others: they must still say why they end.
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        raise
    finally:
        dist.destroy_process_group()


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


def check_single_process(what: str) -> None:
    """Raise `RunError` if torchrun has started several processes for `what`, a message, which runs in one."""
    with_others = int(os.environ.get("WORLD_SIZE", "1"))
    if with_others > 1:
        raise RunError(
            "torchrun has started {count} processes, but {what} must run in one: start it without torchrun",
            count=with_others,
            what=say(what),
        )


def is_lost(reason: BaseException) -> bool:
    """Return whether a process stopped answering. NCCL raises `DistBackendError` then; Gloo has no error of its own."""
    words = ("by peer", "gloo", "Gloo", "Broken pipe")
    return isinstance(reason, dist.DistError) or any(word in str(reason) for word in words)


def distribute(step: nn.Module, shape: tuple[int, ...], processes: Processes) -> nn.Module:
    """Return `step`, a net in training mode for images C×H×W of `shape`, with gradients averaged over all processes."""
    if processes.count == 1:
        return step
    gc.collect()  # what distributed it before is in a cycle, and would go on to wait for gradients
    weight = next(step.parameters())
    devices = [weight.device] if weight.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(
        step, device_ids=devices, find_unused_parameters=_has_unused(step, shape)
    )


def undistributed(step: nn.Module) -> nn.Module:
    """Return the module that `distribute` was given."""
    module: nn.Module = step.module if isinstance(step, nn.parallel.DistributedDataParallel) else step
    return module


def _has_unused(step: nn.Module, shape: tuple[int, ...]) -> bool:
    """Return whether some weight gets no gradient: all processes would wait for it."""
    weights = {name: weight.detach().requires_grad_(weight.requires_grad) for name, weight in step.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in step.named_buffers()}  # a batch norm counts what it sees
    like = next(iter(weights.values()))
    images = torch.zeros(2, *shape, device=like.device, dtype=like.dtype)
    functional_call(step, (weights, buffers), (images,)).sum().backward()
    return any(weight.requires_grad and weight.grad is None for weight in weights.values())


@contextmanager
def interruptible() -> Iterator[threading.Event]:
    """Return an event that the first Ctrl-C sets, so that no step is cut in two; a second one interrupts at once.

    So does the end of the terminal. Whatever this process ignores, as `nohup` has it, it goes on to ignore.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event  # only the main thread receives signals
        return
    # torchrun and cluster schedulers send SIGTERM, also after a Ctrl-C: it must not cut a step in two either.
    previous = {number: signal.getsignal(number) for number in (*STOPS, signal.SIGTERM)}
    heeded = [number for number, handler in previous.items() if handler not in (signal.SIG_IGN, None)]

    def stop(number: int, frame: object) -> None:
        event.set()
        if number == signal.SIGINT:
            signal.signal(number, previous[signal.SIGINT])

    for number in heeded:
        signal.signal(number, stop)
    try:
        yield event
    finally:
        for number in heeded:
            signal.signal(number, previous[number])
