"""How the trainings of a study are run: one after the other, in a pool of processes, or in any executor."""

import functools
import math
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from branchwork.blocks import Concat
from branchwork.catalogue.weights import weight_rms
from branchwork.datasets.batches import generator_of, normalise, train_and_validation
from branchwork.datasets.dataset import DataSet, Split
from branchwork.datasets.load import load_data
from branchwork.errors import BatchTooLarge, DataError, StudyError, TrainingError, WeightsError, first_line
from branchwork.files import parse_json, temporary_folder
from branchwork.graph.costs import count_macs, count_parameters
from branchwork.graph.untouched import alone
from branchwork.observer import Epoch, Observer
from branchwork.studies.records import GRADIENT_IMAGES, GradientNorms, Job, Record
from branchwork.training.infer import predict_logits
from branchwork.training.machine import machine, using_threads, versions
from branchwork.training.options import Options
from branchwork.training.processes import STOPS
from branchwork.training.recipe import Recipe
from branchwork.training.result import Result
from branchwork.training.run import METRICS, Model, load_run
from branchwork.training.train import train

# torch's number of threads and its random numbers belong to the process: one training at a time in each.
_ONE_TRAINING = threading.Lock()


def run_jobs(jobs: Iterable[Job], executor: Executor | None) -> Iterator[tuple[Job, Record]]:
    """Yield each job with its record as they finish; without an executor, train in this process.

    If the caller stops early, jobs that have not started are cancelled. Raises what the trainings raise, and
    `StudyError` if the executor loses its workers or if their versions differ from this process's.
    """
    if executor is None:
        for job in jobs:
            yield job, train_job(job)
        return
    futures = {executor.submit(train_job, job): job for job in jobs}
    try:
        for future in as_completed(futures):
            record = future.result()
            _check_versions(record)
            yield futures[future], record
    except (BrokenExecutor, CancelledError) as reason:
        raise StudyError(
            "the executor lost a training ({reason}): the system may have ended its process for lack of "
            "memory. Finished trainings are kept. Run the same command again, perhaps with a smaller --workers",
            reason=first_line(reason),
        ) from reason
    finally:
        for future in futures:
            future.cancel()


def _check_versions(record: Record) -> None:
    """Raise `StudyError` if a training ran with different versions of what its result depends on."""
    here, there = (", ".join(f"{name} {v}" for name, v in found.items()) for found in (versions(), record.versions))
    if there != here:
        raise StudyError(
            "a worker on {machine} has other versions ({there}) than this process ({here}). Install the same "
            "ones there and start the workers again, so that all trainings can be compared",
            machine=record.machine,
            there=there,
            here=here,
        )


@contextmanager
def process_pool(workers: int) -> Iterator[Executor]:
    """Yield an executor of `workers` processes that end with this one, however it ends."""
    before = {child.pid for child in multiprocessing.active_children()}
    # A forked process would wait for ever for the threads of torch, which it does not inherit.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_begin_worker) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                if child.pid not in before:
                    child.kill()  # SIGTERM would end only the training, and the worker would begin the next
            raise


def _begin_worker() -> None:
    for number in STOPS:  # which reach the whole group; the first process handles them
        signal.signal(number, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has a parent"
    parent.join()
    os._exit(1)


def train_job(job: Job) -> Record:
    """Run one training and return its record.

    Raises what `train` raises, except that a training which diverges is recorded; and `DataError` if the data here
    differ from those that the study started with.
    """
    began = time.perf_counter()
    with _ONE_TRAINING, using_threads(job.threads), temporary_folder() as folder:
        data = reduce_data(_load(job.data, job.size, fit=job.fit, checksum=job.checksum), job)
        recipe = Recipe(**job.recipe)
        run, watch = folder / "run", _GradientWatch(job, data, recipe)
        parameters, macs = count_parameters(watch.net), count_macs(watch.net, data.image_shape)
        outcome: dict[str, Any]
        try:
            watch.measure(0)
            result = train(
                job.net,
                data=data,
                recipe=recipe,
                options=Options(
                    seed=job.seed, device=job.device, threads=job.threads, execute=job.execute, report=False
                ),
                out=run,
                progress=watch,
            )
            outcome = {"outcome": "trained", "message": None, **_measures(run, data, result, recipe=recipe, job=job)}
        except BatchTooLarge:
            raise
        except (TrainingError, WeightsError) as reason:
            outcome = {"outcome": "diverged", "message": str(reason).partition(":")[0]}
        return Record(
            job=job,
            parameters=parameters,
            macs=macs,
            machine=machine(),
            versions=versions(),
            gradients=tuple(watch.gradients),
            whole_seconds=time.perf_counter() - began,
            **outcome,
        )


def _measures(folder: Path, data: DataSet, result: Result, *, recipe: Recipe, job: Job) -> dict[str, Any]:
    """Return the fields of the record of a training that did not diverge."""
    trained = load_run(folder)
    used, _ = train_and_validation(data, recipe.validation, job.seed, used=recipe.fraction)
    logits = predict_logits(trained.net, used.images, trained.model)
    wrong = int((logits.argmax(1) != used.labels).sum())
    lines = (folder / METRICS).read_text(encoding="utf-8").splitlines()
    history = [parse_json(line, dict[str, Any], folder / METRICS) for line in lines]
    kept = ("epoch", "train_loss", "validation_accuracy", "learning_rate", "seconds")
    return {
        "train_error": wrong / len(used),
        "train_loss": float(F.cross_entropy(logits, used.labels)),
        "test_error": 1 - result.test_accuracy,
        "validation_error": None if result.validation_accuracy is None else 1 - result.validation_accuracy,
        "train_images": len(used),
        "image_size": data.image_size,
        "seconds": result.train_seconds,
        "images_per_second": result.images_per_second,
        "peak_memory_bytes": result.peak_memory_bytes,
        "epochs": tuple({key: epoch[key] for key in kept} for epoch in history),
        "branches": branch_sizes(trained.net),
        "device": result.device,
        "precision": result.precision,
        "execution": result.execution,
    }


def branch_sizes(net: nn.Module) -> dict[str, dict[str, float]]:
    """Return, for each `Concat`, the root mean square of each branch's kernels; 0 if it has none."""
    return {
        path: {name: weight_rms(branch.parameters()) or 0.0 for name, branch in module.branches().items()}
        for path, module in net.named_modules()
        if isinstance(module, Concat)
    }


# The data of a study.


@functools.lru_cache(maxsize=2)
def _load(name: str, size: tuple[int, int] | None, *, fit: str | None, checksum: int) -> DataSet:
    """Load the data, once per process. Raises `DataError` if they differ from those that the study started with."""
    data = load_data(name, size=size, fit=fit)
    if data.train.checksum() != checksum:
        raise DataError(
            "the training images of {name} here differ from those where the study was started: give every worker the "
            "same files",
            name=name,
        )
    return data


def reduce_data(data: DataSet, job: Job) -> DataSet:
    """Return the data of `job`: fewer training images, and smaller images."""
    train = data.train
    if job.images is not None and job.images < len(train):
        drawn = torch.randperm(len(train), generator=generator_of(job.seed, "study images"))[: job.images]
        train = train.pick(drawn.sort().values)
    factor = shrinking(data.image_size, job.side)
    return replace(
        data,
        train=_shrunk(train, factor),
        test=_shrunk(data.test, factor),
        validation=None if data.validation is None else _shrunk(data.validation, factor),
    )


def shrinking(image_size: tuple[int, int], side: int | None) -> int:
    """Return the side of the squares of pixels to average, so that the shorter side becomes about `side` pixels."""
    return 1 if side is None else max(1, min(image_size) // side)


def _shrunk(split: Split, factor: int) -> Split:
    if factor == 1:
        return split
    images = [
        F.avg_pool2d(split.images[start : start + 1000].float(), factor).round_().to(torch.uint8)
        for start in range(0, len(split), 1000)
    ]
    return Split(torch.cat(images), split.labels)


# The gradients of a training.


class _GradientWatch(Observer):
    """Measures a training's gradients by layer after some of its epochs, always on the same images."""

    def __init__(self, job: Job, data: DataSet, recipe: Recipe) -> None:
        self.job = job
        with alone():
            build = Model.of(job.net, data).builder()
            torch.manual_seed(job.seed)  # as `train` does, so that these are its initial weights
            self.net = build()
        split, _ = train_and_validation(data, recipe.validation, job.seed, used=recipe.fraction)
        few = split.pick(torch.arange(min(GRADIENT_IMAGES, len(split))))
        self.images, self.labels = normalise(few.images[:], data.mean, data.std), few.labels
        self.epochs = {1, -(-recipe.epochs // 4), -(-recipe.epochs // 2), recipe.epochs}
        self.gradients: list[GradientNorms] = []

    def epoch(self, epoch: Epoch) -> None:
        if self.job.gradients and epoch.epoch in self.epochs:
            self.net.load_state_dict(epoch.weights)
            self.measure(epoch.epoch)

    def measure(self, epoch: int) -> None:
        """Note the norms of the gradients of the mean loss after `epoch` epochs."""
        if self.job.gradients:
            with alone():  # so that the training's dropout draws the same numbers
                torch.manual_seed(self.job.seed)
                norms = gradient_norms(self.net, self.images, self.labels)
            self.gradients.append(GradientNorms(epoch, norms))


def gradient_norms(net: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float | None]:
    """Return the L2 norm of the gradient of the mean cross-entropy by each kernel and matrix of `net`, in its order.

    None if not finite. Taken in float64, because the squares of vanishing values are 0 in float32. The net
    runs in training mode, which changes the statistics of batch norms.
    """
    net.train().zero_grad()
    F.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]
    gradients = {name: parameter.grad for name, parameter in net.named_parameters() if parameter.dim() >= 2}
    norms = {name: float(grad.double().norm()) for name, grad in gradients.items() if grad is not None}
    return {name: norm if math.isfinite(norm) else None for name, norm in norms.items()}
