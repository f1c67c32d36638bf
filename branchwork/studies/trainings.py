"""One training of a study: what it is, and what comes back from wherever it ran."""

import functools
import hashlib
import json
import math
import tempfile
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from branchwork.blocks import Concat
from branchwork.datasets.batches import generator_of, normalise, train_and_validation
from branchwork.datasets.dataset import DataSet, Split
from branchwork.datasets.load import load_data
from branchwork.errors import BatchTooLarge, DataError, TrainingError, WeightsError
from branchwork.graph.costs import count_macs, count_parameters
from branchwork.nets.resolve import short_name
from branchwork.nets.weights import weight_rms
from branchwork.observer import Epoch, Observer
from branchwork.training.checkpoint import load_state
from branchwork.training.execution import Execute
from branchwork.training.infer import predict_logits
from branchwork.training.machine import machine, using_threads, versions
from branchwork.training.recipe import Recipe
from branchwork.training.run import Model, load_run
from branchwork.training.train import Result, train

Record = dict[str, Any]

# The images whose gradient is measured: the same at every moment of a training.
GRADIENT_IMAGES = 128

# torch's number of threads and its random numbers are the process's: one training at a time, whatever the executor.
_ALONE = threading.Lock()


@dataclass(frozen=True)
class Job:
    """All that a training of a study depends on; it can be sent anywhere.

    `checksum` is that of the training images that `data`, with `size` and `fit`, has to have. Of them, `images` are
    taken at most, drawn by the seed, and where `side` is given, squares of pixels are averaged until the images are
    about so high. With `gradients`, their norms are measured by layer.
    """

    net: str
    data: str
    checksum: int
    size: tuple[int, int] | None
    fit: str | None
    recipe: Mapping[str, Any]
    seed: int
    threads: int
    device: str
    execute: Execute
    images: int | None
    side: int | None
    gradients: bool

    @property
    def key(self) -> str:
        """The name of its record: another for anything that changes what the training gives."""
        content = json.dumps(asdict(self), sort_keys=True).encode()
        return f"{short_name(self.net)}-seed-{self.seed}-{hashlib.sha256(content).hexdigest()[:12]}"


def train_job(job: Job) -> Record:
    """Train, and give one record: the outcome (`trained`, or `diverged` with a message) and all that was measured.

    Errors and accuracies are fractions, in eval mode on images that nothing changed. Raises what `train` does, but for
    a training that diverged, which is an outcome; and `DataError` where the data here are others.
    """
    began = time.perf_counter()
    with _ALONE, using_threads(job.threads), tempfile.TemporaryDirectory(prefix="branchwork-") as folder:
        data = reduce_data(_load(job.data, job.size, job.fit, job.checksum), job)
        recipe = Recipe(**job.recipe)
        watch = _Watch(Path(folder) / "run", job, data, recipe)
        record = {
            "job": asdict(job),
            "parameters": count_parameters(watch.net),
            "macs": count_macs(watch.net, (data.channels, *data.image_size)),
            "machine": machine(),
            "versions": versions(),
        }
        try:
            watch.measure(0)
            result = train(
                job.net,
                data=data,
                recipe=recipe,
                seed=job.seed,
                out=watch.folder,
                device=job.device,
                threads=job.threads,
                execute=job.execute,
                observer=watch,
            )
            found = {"outcome": "trained", "message": None, **_measures(watch.folder, data, result, recipe, job)}
        except BatchTooLarge:
            raise
        except (TrainingError, WeightsError) as reason:
            found = {"outcome": "diverged", "message": str(reason).partition(":")[0]}
        took = time.perf_counter() - began
        return record | found | {"gradients": watch.gradients, "whole_seconds": took}


def reduce_data(data: DataSet, job: Job) -> DataSet:
    """The data of `job`: fewer training images, and smaller images."""
    train = data.train
    if job.images is not None and job.images < len(train):
        chosen = torch.randperm(len(train), generator=generator_of(job.seed, "study images"))[: job.images]
        train = train.pick(chosen.sort().values)
    factor = shrinking(data.image_size, job.side)
    return replace(
        data,
        train=_shrunk(train, factor),
        test=_shrunk(data.test, factor),
        validation=None if data.validation is None else _shrunk(data.validation, factor),
    )


def shrinking(image_size: tuple[int, int], side: int | None) -> int:
    """The side of the squares of pixels that become one, so that the shorter side is about `side` pixels."""
    return 1 if side is None else max(1, min(image_size) // side)


def _shrunk(split: Split, factor: int) -> Split:
    if factor == 1:
        return split
    images = [
        F.avg_pool2d(split.images[at : at + 1000].float(), factor).round_().to(torch.uint8)
        for at in range(0, len(split), 1000)
    ]
    return Split(torch.cat(images), split.labels)


@functools.lru_cache(maxsize=2)
def _load(name: str, size: tuple[int, int] | None, fit: str | None, checksum: int) -> DataSet:
    """The data, once a process. Raises `DataError` where they are not those that the study began with."""
    data = load_data(name, size=size, fit=fit)
    if data.train.checksum() != checksum:
        raise DataError(
            f"{name} has other training images here than where the study was started: give every worker the same files"
        )
    return data


class _Watch(Observer):
    """Measures a training's gradients by layer, on the same images, from the weights that its run folder holds."""

    def __init__(self, folder: Path, job: Job, data: DataSet, recipe: Recipe) -> None:
        self.folder, self.job = folder, job
        self.model = Model.of(job.net, data, dict(job.recipe))
        with torch.random.fork_rng(devices=[]):
            build = self.model.builder()
            torch.manual_seed(job.seed)  # as `train` does, so that it begins with these weights
            self.net = build()
        split, _ = train_and_validation(data, recipe.validation, job.seed, recipe.fraction)
        few = split.pick(torch.arange(min(GRADIENT_IMAGES, len(split))))
        self.images, self.labels = normalise(few.images[:], data.mean, data.std), few.labels
        self.moments = {1, -(-recipe.epochs // 4), -(-recipe.epochs // 2), recipe.epochs}
        self.gradients: list[dict[str, Any]] = []

    def epoch(self, epoch: Epoch) -> None:
        if self.job.gradients and epoch.epoch in self.moments:
            tensors = load_state(self.folder).tensors
            self.net.load_state_dict({k.removeprefix("net."): v for k, v in tensors.items() if k.startswith("net.")})
            self.measure(epoch.epoch)

    def measure(self, epoch: int) -> None:
        """Note the norms of the gradients of the mean loss after `epoch` epochs."""
        if self.job.gradients:
            with torch.random.fork_rng(devices=[]):  # the training's dropout draws as it would without
                torch.manual_seed(self.job.seed)
                norms = gradient_norms(self.net, self.images, self.labels)
            self.gradients.append({"epoch": epoch, "norms": norms})


def gradient_norms(net: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float | None]:
    """The L2 norm of the gradient of the mean cross-entropy by each kernel and matrix of `net`, in its order.

    None where it is infinite. Taken in float64, since the squares of what vanishes are 0 in float32. In training
    mode: the statistics of batch norms change.
    """
    net.train().zero_grad()
    F.cross_entropy(net(images), labels).backward()  # type: ignore[no-untyped-call]
    named = [(name, parameter.grad) for name, parameter in net.named_parameters() if parameter.dim() >= 2]
    norms = {name: float(grad.double().norm()) for name, grad in named if grad is not None}
    return {name: norm if math.isfinite(norm) else None for name, norm in norms.items()}


def _measures(folder: Path, data: DataSet, result: Result, recipe: Recipe, job: Job) -> Record:
    trained = load_run(folder)
    used, _ = train_and_validation(data, recipe.validation, job.seed, recipe.fraction)
    logits = predict_logits(trained.net, used.images, trained.model)
    wrong = int((logits.argmax(1) != used.labels).sum())
    history = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
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
        "epochs": [{key: epoch[key] for key in kept} for epoch in history],
        "branches": branch_sizes(trained.net),
        "device": result.device,
        "precision": result.precision,
        "execution": result.execution,
    }


def branch_sizes(net: nn.Module) -> dict[str, dict[str, float]]:
    """For each `Concat`, the root of the mean square of each branch's kernels; 0 where it has none."""
    return {
        path: {name: weight_rms(branch.parameters()) or 0.0 for name, branch in module.branches().items()}
        for path, module in net.named_modules()
        if isinstance(module, Concat)
    }
