"""The rows of `python -m benchmarks gpu`, each in a process of its own: python -m benchmarks.gpu_rows ROW --json FILE.

Rates are of the optimiser's steps alone, after a first epoch. Seconds of training are told apart from those in which
steps were recorded as a CUDA graph, which include what torch loads at its first steps.
"""

import faulthandler
import os
import signal
import statistics
import subprocess
import sys
import tarfile
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch
from cyclopts import App
from PIL import Image
from torch import nn
from torch.nn import functional as F

import branchwork
from benchmarks import public
from benchmarks.gpu import ROWS
from benchmarks.measure import ROOT
from benchmarks.process import JsonFile
from benchmarks.rows import CANDIDATES
from branchwork.datasets.batches import normalise
from branchwork.datasets.dataset import DataSet, Split
from branchwork.files import write_json
from branchwork.observer import Epoch, Observer
from branchwork.training.recipe import Recipe
from branchwork.training.recipes import RECIPES
from branchwork.training.result import Result

# Changes no image, so that nets are compared, and not what is done to the images.
PLAIN = {"flip": 0.0, "crop": 0.0, "colour": 0.0, "auxiliary": 0.0, "validation": 0.0, "learning_rate": 0.01}
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

app = App(result_action="return_value")


@dataclass
class Row(Observer):
    """A row while it is measured: its figures are written to `path` each time. `tiny` is a trial on the CPU."""

    path: Path
    folder: Path
    tiny: bool
    cifar: Path | None
    figures: dict[str, dict[str, Any]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu" if self.tiny else "cuda")

    def put(self, name: str, value: float, unit: str, **aims: float) -> None:
        """Write a figure, or a better one of the same name; `aims` are `at_least` or `at_most`."""
        self.figures[name] = {"name": name, "value": float(value), "unit": unit, **aims}
        self._write()

    def note(self, message: str) -> None:
        """Write a sentence, once; also what trainings say."""
        if message not in self.notes:
            self.notes.append(message)
            self._write()

    def warn(self, message: Warning | str, category: type[Warning], *where: Any) -> None:
        """Note a warning, instead of showing it."""
        self.note(f"{category.__name__}: {str(message)[:1000]}")

    def _write(self) -> None:
        write_json(self.path, {"figures": list(self.figures.values()), "notes": self.notes})

    def epoch(self, epoch: Epoch) -> None:
        self.rates.append(epoch.images_per_second)

    def train(self, net: str, data: DataSet, recipe: Recipe, out: str, **options: Any) -> Result:
        """Train; the rates of its epochs are then in `rates`."""
        self.rates.clear()
        options = {"device": str(self.device), "report": False, **options}
        settings = branchwork.Options(**options)
        return branchwork.train(net, data=data, recipe=recipe, options=settings, out=self.folder / out, progress=self)

    def wait(self) -> float:
        """Return the time when all work on the GPU is done."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()
        return perf_counter()


def mnist(row: Row) -> DataSet:
    """Return MNIST; where it cannot be had, or for a trial, the digits that come with Branchwork."""
    if not row.tiny:
        return branchwork.load_data("auto", progress=row)
    sample = branchwork.load_data("sample")
    return replace(sample, train=sample.train.pick(torch.arange(1024)), test=sample.test.pick(torch.arange(100)))


def digits(row: Row, name: str, least: float, most_seconds: float) -> None:
    """Train by the README's recipe with ten seeds, and then with three whose steps are not recorded."""
    candidate, data = CANDIDATES[name], mnist(row)
    recipe = RECIPES[candidate.recipe](candidate.net, len(data.train)).but(candidate.changes)
    aimed = row.tiny or data.name == "mnist"
    for capture, seeds in ((True, 1 if row.tiny else 10), (False, 1 if row.tiny else 3)):
        how = "" if capture else ", steps not recorded"
        results: list[Result] = []
        for seed in range(seeds):
            results.append(row.train(candidate.net, data, recipe, f"{capture}-{seed}", seed=seed, capture=capture))
            training = statistics.median(result.train_seconds - result.capture_seconds for result in results)
            mean = statistics.mean(result.test_accuracy for result in results)
            fast, right = ({"at_most": most_seconds}, {"at_least": least}) if capture and aimed else ({}, {})
            row.put(f"training, median of the seeds{how}", training, "s", **fast)
            row.put(f"test accuracy, mean of the seeds{how}", mean, "", **right)
            row.put(f"seeds{how}", len(results), "")
            if capture:
                row.put("recording, first in the process", results[0].capture_seconds, "s")
                row.put("recording, largest of the others", max((r.capture_seconds for r in results[1:]), default=0.0),
                        "s", at_most=1.0)  # fmt: skip


def residual(row: Row) -> None:
    digits(row, "residual-target", 0.99, 0.30)
    outcomes = []
    for seed in range(1 if row.tiny else 3):
        outcomes.append(public.run(mnist(row), seed, row.device))
        row.put("train_mnist_fast, training, median", statistics.median(o.train_seconds for o in outcomes), "s")
        row.put("train_mnist_fast, test accuracy", statistics.mean(o.test_accuracy or 0.0 for o in outcomes), "")


def inception(row: Row) -> None:
    digits(row, "inception-target", 0.987, 0.35)


class Tests:
    """A plugin of pytest that writes each outcome as it comes, and what a failure printed."""

    def __init__(self, row: Row) -> None:
        self.row, self.counts = row, {"passed": 0, "failed": 0, "skipped": 0}

    def pytest_warning_recorded(self, warning_message: warnings.WarningMessage) -> None:
        self.row.warn(warning_message.message, warning_message.category)

    def pytest_collectreport(self, report: Any) -> None:
        if report.failed:
            self.pytest_runtest_logreport(report)

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when in ("setup", "teardown") and report.passed:
            return
        self.counts[report.outcome] += 1
        if report.failed:
            self.row.note(f"{report.nodeid}\n{report.longreprtext[-4000:]}")
        self.row.put("passed", self.counts["passed"], "tests", **({} if self.row.tiny else {"at_least": 1}))
        self.row.put("failed", self.counts["failed"], "tests", at_most=0)
        self.row.put("skipped", self.counts["skipped"], "tests")


def tests(row: Row) -> None:
    """Run the tests that need a GPU. Other files of tests may want packages that a machine with a GPU lacks."""
    if find_spec("pytest") is None or not (ROOT / "tests").is_dir():
        row.note("not run: needs a checkout and pytest")
        return
    import pytest

    # With other versions than ours a warning is no failure, but it is noted.
    words = ["-p", "no:cacheprovider", "-o", "timeout=60", "-W", "default", str(ROOT / "tests/test_gpu.py")]
    ended = pytest.main(words, plugins=[Tests(row)])
    if ended not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
        raise RuntimeError(f"pytest ended with {ended!r}")


def noise(count: int, side: int, classes: int = 10) -> DataSet:
    images = torch.randint(
        0, 256, (count, 3, side, side), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    split = Split(images, torch.arange(count) % classes)
    names = tuple(f"class {number}" for number in range(classes))
    return DataSet("noise", split, split.pick(torch.arange(classes)), names, MEAN, STD, "crop", "random numbers")


def built_by_others(name: str, ours: str, side: int, row: Row) -> nn.Module:
    """Return torchvision's net, or where it is not installed ours, which has the same layers."""
    if find_spec("torchvision") is not None:
        import torchvision

        options = {"aux_logits": False, "transform_input": False, "init_weights": True} if name == "googlenet" else {}
        row.note("compared with torchvision's net")
        model: nn.Module = torchvision.models.get_model(name, num_classes=10, **options)
        return model
    row.note("compared with our net of the same layers, by torch's best practice: torchvision is not installed")
    return branchwork.build_net(ours, in_channels=3, num_classes=10, image_size=(side, side))


def steps_of(net: nn.Module, images: Split, batch: int, *, fast: bool) -> Callable[[], None]:
    """Return a step of `net` in plain torch, on the next batch; `fast` in bf16, as torch can be used at its best."""
    layout = torch.channels_last if fast else torch.contiguous_format
    net = net.train().to(images.labels.device, memory_format=layout)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9, fused=fast)
    compiled: Any = torch.compile(net) if fast and images.labels.is_cuda else net
    orders = cycle(torch.randperm(len(images), device=images.labels.device).split(batch))
    halved = torch.autocast(images.labels.device.type, torch.bfloat16) if fast else nullcontext()

    def step() -> None:
        chosen = next(orders)
        inputs = normalise(images.images[chosen], MEAN, STD).to(memory_format=layout)
        with halved:
            loss = F.cross_entropy(compiled(inputs).float(), images.labels[chosen])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()

    return step


def rate_of(step: Callable[[], None], row: Row, *, batch: int, count: int) -> tuple[float, float]:
    """Return images per second, and the seconds of the first three steps."""
    began = row.wait()
    for _ in range(3):
        step()
    warm = row.wait()
    for _ in range(count):
        step()
    return count * batch / (row.wait() - warm), warm - began


def at_224(row: Row, ours: str, theirs: str, least: float) -> None:
    """Train on noise in memory by default, by torch's best practice, by a tutorial's loop, and compiled."""
    side, batch, count = (32, 4, 12) if row.tiny else (224, 256, 4096)
    data = noise(count, side)
    recipe = branchwork.photos(theirs).but({**PLAIN, "epochs": 3, "batch_size": batch})

    def train(name: str, **options: Any) -> float:
        result = row.train(ours, data, recipe, name, **options)
        rate = statistics.median(row.rates[1:])
        row.put(name, rate, "images/s")
        row.put(f"{name}, first epoch", row.rates[0], "images/s")
        if result.capture_seconds:
            row.put("recording", result.capture_seconds, "s")
        return rate

    rate = train("ours")
    torch.manual_seed(0)
    images = Split(data.train.images.to(row.device), data.train.labels.to(row.device))
    for fast, how in ((True, "bf16, channels_last, torch.compile"), (False, "float32 as in a tutorial")):
        step = steps_of(built_by_others(theirs, ours, side, row), images, batch, fast=fast)
        best, warm_up = rate_of(step, row, batch=batch, count=3 if row.tiny else 24)
        row.put(f"plain torch, {how}", best, "images/s")
        row.put(f"plain torch, {how}, first 3 steps", warm_up, "s")
        if fast:
            row.put("ours by plain torch's best", rate / best, "×", at_least=least)
    train("ours, steps not recorded", capture=False)
    # What the same weights from the same seed would cost, if cuDNN does not give them by itself.
    torch.backends.cudnn.deterministic = True
    train("ours, by algorithms of cuDNN that repeat themselves")
    torch.backends.cudnn.deterministic = False
    if not row.tiny:
        train("ours, compiled", compile=True)


def resnet50(row: Row) -> None:
    at_224(row, "resnet50", "resnet50", 1.05)


def googlenet(row: Row) -> None:
    at_224(row, "googlenet[b5=3x3]", "googlenet", 1.15)


# Nets and epochs to try: wide rather than deep, since small layers leave a GPU idle. No GPU has tried them yet.
CIFAR_TRIES = (
    ("resnet8[width=64]", 10),
    ("resnet8[width=64]", 16),
    ("resnet14[width=64]", 16),
    ("resnet20[width=64]", 24),
)


def cifar(row: Row) -> None:
    """Train nets of ours to 94% and to 95%, and airbench94 on the same pictures."""
    if row.cifar is None:
        row.note("not measured: give the pictures with --cifar")
        return
    folder = row.cifar
    if folder.is_file():
        with tarfile.open(folder) as archive:
            archive.extractall(row.folder / "pictures", filter="data")
        (folder,) = {path.parent for path in (row.folder / "pictures").glob("**/train")}
    data = branchwork.load_data(str(folder))
    if row.device.type == "cuda" and find_spec("airbench") is not None and find_spec("torchvision") is not None:
        _airbench(row, data)
    else:
        row.note("airbench94 is not measured: it needs a GPU, and pip install airbench==0.1.8 torchvision")
    theirs = row.figures.get("airbench94, training, median")
    most = {0.94: {"at_most": 2 * theirs["value"]} if theirs else {}, 0.95: {"at_most": 30.0}}
    found: list[tuple[float, float]] = []
    for net, epochs in (("resnet8", 1),) if row.tiny else CIFAR_TRIES:
        changes = {"epochs": epochs, "batch_size": 20 if row.tiny else 512, "validation": 0.0}
        recipe = branchwork.fast_photos(net, len(data.train)).but(changes)
        results: list[Result] = []
        while len(results) < (1 if row.tiny else 5):
            seed = len(results)
            results.append(row.train(net, data, recipe, f"{net}-{epochs}-{seed}", seed=seed))
            seconds = statistics.median(result.train_seconds - result.capture_seconds for result in results)
            accuracy = statistics.mean(result.test_accuracy for result in results)
            row.put(f"{net}, {epochs} epochs, training, median", seconds, "s")
            row.put(f"{net}, {epochs} epochs, test accuracy, mean", accuracy, "")
            row.put(f"{net}, {epochs} epochs, seeds", len(results), "")
            if accuracy < 0.93:  # no other seed would bring the mean to 94%
                break
        found.append((accuracy, seconds))
        row.put("best test accuracy, mean", max(found)[0], "", at_least=0.95)
        for aim, aims in most.items():
            times = [seconds for accuracy, seconds in found if accuracy >= aim]
            if times:
                row.put(f"to {aim:.0%}, training, median of the fastest net", min(times), "s", **aims)


def _airbench(row: Row, data: DataSet) -> None:
    """Train airbench94 five times; it reads its images from files in the folder it runs in."""
    os.chdir(row.folder)
    Path("cifar10").mkdir()
    for name, split in (("train", data.train), ("test", data.test)):
        pictures = torch.as_tensor(split.images[:]).permute(0, 2, 3, 1).contiguous()
        torch.save({"images": pictures, "labels": split.labels, "classes": list(data.classes)}, f"cifar10/{name}.pt")
    import airbench

    airbench.warmup94(verbose=False)
    seconds, accuracies = [], []
    for _ in range(5):
        began = row.wait()
        net = airbench.train94(verbose=False)
        seconds.append(row.wait() - began)
        accuracies.append(airbench.evaluate(net, airbench.CifarLoader("cifar10", train=False), tta_level=2))
        row.put("airbench94, training, median", statistics.median(seconds), "s")
        row.put("airbench94, test accuracy, mean, with its test-time augmentation", statistics.mean(accuracies), "")


def pack(row: Row) -> None:
    """Train from a pack on disk and from the same images in memory, with random crops, flips and colours."""
    side, count = (32, 32) if row.tiny else (224, 4096)
    random = np.random.default_rng(0)
    for number in range(count):
        folder = row.folder / "pictures" / f"class-{number % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (16, 16, 3), dtype=np.uint8))
        coarse.resize((side, side)).save(folder / f"{number}.jpg")
    file = row.folder / "pictures.pack"
    branchwork.pack(row.folder / "pictures", out=file, size=(side, side))
    packed = branchwork.load_data(str(file))
    loaded = Split(torch.as_tensor(packed.train.images[:]), packed.train.labels)
    batch = 8 if row.tiny else 256
    recipe = branchwork.photos("resnet18").but({"epochs": 3, "batch_size": batch, "validation": 0.0})
    rates = {}
    for name, data in (("in memory", replace(packed, train=loaded)), ("from the pack", packed)):
        row.train("resnet18:stem=large", data, recipe, name)
        rates[name] = statistics.median(row.rates[1:])
        row.put(name, rates[name], "images/s")
    row.put("from the pack by in memory", rates["from the pack"] / rates["in memory"], "×", at_least=0.95)


def verbs(row: Row) -> None:
    """Time evaluate and explain here, and where no GPU is to be seen. select and study train: see the other rows."""
    net, side, count = ("resnet8", 32, 16) if row.tiny else ("resnet18:stem=large", 224, 512)
    pictures = row.folder / "pictures"
    for number in range(count):
        folder = pictures / ("train" if number % 2 else "test") / f"class-{number // 2 % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((side, side, 3), number % 256, np.uint8)).save(folder / f"{number}.png")
    data = branchwork.load_data(str(pictures), size=(side, side))
    recipe = branchwork.photos("resnet18").but({"epochs": 1, "batch_size": 8, "validation": 0.0})
    row.train(net, data, recipe, "run")
    code = (
        "import sys, time, branchwork; run, images = sys.argv[1], int(sys.argv[2])\n"
        "branchwork.explain(run, images=2)\n"
        "for verb, options in ((branchwork.evaluate, {}), (branchwork.explain, {'images': images})):\n"
        "    began = time.perf_counter(); verb(run, **options); print(time.perf_counter() - began)\n"
    )
    seconds = []
    for hidden in (None, ""):
        environment = os.environ | ({} if hidden is None else {"CUDA_VISIBLE_DEVICES": hidden})
        words = [sys.executable, "-c", code, str(row.folder / "run"), "4" if row.tiny else "32"]
        said = subprocess.run(words, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout
        seconds.append([float(line) for line in said.split()])
        for verb, took in zip(("evaluate", "explain"), seconds[-1], strict=True):
            row.put(f"{verb}{', without a GPU' if hidden is not None else ''}", took, "s")
    for verb, here, without in zip(("evaluate", "explain"), *seconds, strict=True):
        row.put(f"{verb}, times as fast", without / here, "×", at_least=10.0)


MEASURES = {
    "residual": residual, "tests": tests, "inception": inception, "resnet50": resnet50, "googlenet": googlenet,
    "cifar": cifar, "pack": pack, "verbs": verbs,
}  # fmt: skip
assert MEASURES.keys() == ROWS.keys()


@app.default
def main(name: str, *, json_file: JsonFile, folder: Path, tiny: bool = False, cifar: Path | None = None) -> None:
    # Where it stands, if it is asked; not where pytest sends what its tests print.
    with open(os.dup(sys.stderr.fileno()), "w", encoding="utf-8") as output:
        faulthandler.register(signal.SIGUSR1, file=output)
        row = Row(json_file, folder, tiny, cifar)
        warnings.showwarning = row.warn
        MEASURES[name](row)


if __name__ == "__main__":
    app()
