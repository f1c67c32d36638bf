"""The verb `doctor`: what this installation can do, and what it lacks."""

import os
import platform
import shutil
import tempfile
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import torch

from branchwork.datasets.sources import cache_folder
from branchwork.deploy.engines import FLOORS, find_package
from branchwork.deploy.formats import FORMATS
from branchwork.errors import system_words
from branchwork.language import mark, say, sentences
from branchwork.shown import Shown
from branchwork.training.infer import pick_device, pick_precision
from branchwork.training.machine import compiler_problem, processor, versions
from branchwork.training.trust import trusted_folder

# The packages of the extras, each with its extra and what needs it. Those of the extra `deploy` are known by `FORMATS`.
_EXTRAS = {
    "captum": ("explain", "explain RUN PICTURES"),
    "tensorboard": ("log", "train --log tensorboard"),
    "distributed": ("cluster", "StudyOptions(workers=client.get_executor())"),
}


@dataclass(frozen=True)
class Device:
    """A device that nets can run on, and the precision that `auto` chooses there."""

    name: str
    description: str
    precision: str


@dataclass(frozen=True)
class Place:
    """A folder that is written to; `problem` says why it cannot be, and is None if it can."""

    purpose: str
    path: str
    free_bytes: int | None
    problem: str | None


@dataclass(frozen=True)
class Requirement:
    """A package that some verbs need; `problem` says why it cannot be used, and is None if it can."""

    name: str
    version: str | None
    needed_for: tuple[str, ...]
    problem: str | None


@dataclass(frozen=True)
class Installation(Shown):
    """What `doctor` found. `device` is the one that `--device auto` chooses."""

    versions: dict[str, str]
    system: str
    device: str
    devices: tuple[Device, ...]
    places: tuple[Place, ...]
    requirements: tuple[Requirement, ...]

    @property
    def problems(self) -> tuple[str, ...]:
        found = [*(place.problem for place in self.places), *(package.problem for package in self.requirements)]
        return tuple(problem for problem in found if problem is not None)


def doctor() -> Installation:
    """Look at versions, devices, the folders that are written to, and packages that some verbs need.

    Nothing is installed, fetched or left behind.
    """
    device = pick_device("auto")
    compiler = compiler_problem(device)
    return Installation(
        versions(),
        platform.platform(),
        str(device),
        tuple(_devices()),
        (
            _place(say("data sets"), cache_folder(), mark("Set BRANCHWORK_DATA to a folder that you may write to.")),
            _place(say("runs"), Path("runs"), mark("Work in another folder, or name one with --out.")),
            _place(say("trusted code"), trusted_folder(), mark("What you trust is then forgotten each time.")),
        ),
        (
            *(_of_deploy(name) for name in FLOORS),
            *(_of_extra(name, extra, use) for name, (extra, use) in _EXTRAS.items()),
            Requirement(
                "torch.compile", torch.__version__, ("train --compile", "bench --engines torch.compile"), compiler
            ),
        ),
    )


def _devices() -> list[Device]:
    names = ["cpu", *(f"cuda:{index}" for index in range(torch.cuda.device_count()))]
    names += ["mps"] if torch.backends.mps.is_available() else []
    descriptions = {"cpu": processor(), "mps": say("used only with --device mps")}
    descriptions |= {name: torch.cuda.get_device_name(name) for name in names if name.startswith("cuda")}
    return [Device(name, descriptions[name], pick_precision("auto", torch.device(name))) for name in names]


def _place(purpose: str, path: Path, remedy: str) -> Place:
    """Try to write to `path`, or where it would be made, which is not done."""
    path = path.absolute()
    folder = next(place for place in (path, *path.parents) if os.path.exists(place))
    try:
        with tempfile.TemporaryFile(dir=folder):
            return Place(purpose, str(path), shutil.disk_usage(folder).free, None)
    except OSError as reason:
        cause = say("{path} cannot be written to: {reason}.", path=path, reason=system_words(reason))
        return Place(purpose, str(path), None, sentences((cause, say(remedy))))


def _of_deploy(name: str) -> Requirement:
    version, problem = find_package(name)
    uses = [f"export --to {to}" for to, form in FORMATS.items() if name in (form.engine, *form.packages)]
    uses += [
        f"export --to {to} --precision int8" for to, form in FORMATS.items() if name == form.quantiser and not uses
    ]
    bench = [f"bench --engines {name}"] if name in [form.engine for form in FORMATS.values()] else []
    return Requirement(name, version, (*uses, *bench), problem)


def _of_extra(name: str, extra: str, use: str) -> Requirement:
    try:
        return Requirement(name, metadata.version(name), (use,), None)
    except metadata.PackageNotFoundError:
        command = f'pip install "branchwork[{extra}]"'
        return Requirement(name, None, (use,), say("{name} is not installed: {command}", name=name, command=command))
