"""Several processes that train one net together, on one machine or several, as torchrun starts them.

The first of them, of rank 0, is the only one that writes and prints.
"""

import gc
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
import torch.distributed as dist
from torch import nn
from torch.func import functional_call

from branchwork.errors import BranchworkError, RunError, ToldElsewhere

T = TypeVar("T")


@dataclass(frozen=True)
class Processes:
    """This process's place among those that train together; alone by default.

    What is here for several is exact: sums are of float64, and each process gets the same.
    """

    rank: int = 0
    count: int = 1
    local_rank: int = 0

    @property
    def first(self) -> bool:
        return self.rank == 0

    def device(self, name: str) -> torch.device:
        """The device that this process trains on: each of a machine's has a GPU of its own."""
        device = torch.device(name)
        return torch.device("cuda", self.local_rank) if device.type == "cuda" and self.count > 1 else device

    def own(self, things: Sequence[T]) -> Sequence[T]:
        """This process's share of `things`, in a row; nothing where they are too few."""
        low, high = (len(things) * rank // self.count for rank in (self.rank, self.rank + 1))
        return things[low:high]

    def sum(self, numbers: Sequence[float]) -> list[float]:
        """The sums of the numbers that each process gives."""
        if self.count == 1:
            return list(numbers)
        total = torch.tensor(numbers, dtype=torch.float64)
        dist.all_reduce(total)
        return [float(number) for number in total]

    def of_first(self, number: float) -> float:
        """`number` in the first process and 0 in the others, so that a sum is the first one's."""
        return number if self.first else 0.0

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Whether each of the flags is set in some process."""
        return tuple(count > 0 for count in self.sum([float(flag) for flag in flags]))

    def every(self, value: T) -> list[T]:
        """What each process gives, in the order of their ranks."""
        values = [value] * self.count
        if self.count > 1:
            dist.all_gather_object(values, value)
        return values

    def share(self, value: T) -> T:
        """What the first process gives."""
        values = [value]
        if self.count > 1:
            dist.broadcast_object_list(values, 0)
        return values[0]

    def share_buffers(self, net: nn.Module) -> None:
        """Give all processes the first one's statistics of batch norms, which are those that are kept."""
        if self.count > 1:
            for buffer in net.buffers():
                dist.broadcast(buffer, 0)

    def together(self, work: Callable[[], T]) -> T:
        """What `work` gives in this process, where it succeeds in all of them.

        Where it fails in one, the first raises the `BranchworkError` of the first that did and the others
        `ToldElsewhere`, so that none is left waiting and the user reads one message.
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
        """`error`, which all processes have met, as the first raises it; the others are silent."""
        return error if self.first else ToldElsewhere(str(error))


@contextmanager
def joined() -> Iterator[Processes]:
    """The processes that torchrun has started with this one, connected; one alone where it was not torchrun.

    GPUs speak through NCCL, everything else through Gloo. Within another `joined` it is the same. Raises `RunError`
    where the others cannot be reached.
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
            f"process {rank} of {count} cannot reach the others ({reason}): start it with torchrun, the same "
            "command on each machine, with one --rdzv-endpoint that all of them can reach"
        ) from reason
    try:
        yield processes
        # What is in cycles, as DDP's reducers are, would hold the group until Python ends and then abort the process.
        gc.collect()
    finally:
        dist.destroy_process_group()


_VARIABLES = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


def need_alone(what: str) -> None:
    """Raises `RunError` where torchrun has started several processes for `what`, which takes one."""
    with_others = int(os.environ.get("WORLD_SIZE", "1"))
    if with_others > 1:
        raise RunError(f"torchrun has started {with_others} processes, and {what} takes one: leave torchrun out")


def is_lost(reason: BaseException) -> bool:
    """Whether a process stopped answering. Gloo has no error of its own for that, NCCL a `DistBackendError`."""
    words = ("by peer", "gloo", "Gloo", "Broken pipe")
    return isinstance(reason, dist.DistError) or any(word in str(reason) for word in words)


def distribute(step: nn.Module, shape: tuple[int, ...], processes: Processes) -> nn.Module:
    """`step`, a net in training mode that takes N×C×H×W with C×H×W of `shape`, with gradients averaged over all."""
    if processes.count == 1:
        return step
    weight = next(step.parameters())
    devices = [weight.device] if weight.device.type == "cuda" else None
    return nn.parallel.DistributedDataParallel(
        step, device_ids=devices, find_unused_parameters=_has_unused(step, shape)
    )


def _has_unused(step: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a weight gets no gradient, for which all processes would otherwise wait."""
    weights = {name: weight.detach().requires_grad_(weight.requires_grad) for name, weight in step.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in step.named_buffers()}  # a batch norm counts what it sees
    like = next(iter(weights.values()))
    images = torch.zeros(2, *shape, device=like.device, dtype=like.dtype)
    functional_call(step, (weights, buffers), (images,)).sum().backward()
    return any(weight.requires_grad and weight.grad is None for weight in weights.values())
