"""A study: train what is missing, keep each record as it comes, and answer."""

import json
import os
from concurrent.futures import Executor
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch

from branchwork.datasets.dataset import DataSet
from branchwork.datasets.load import load_data
from branchwork.errors import Interrupted, StudyError, nearest
from branchwork.files import hold_lock, write_json, write_whole
from branchwork.nets.resolve import find_builder
from branchwork.observer import Observer
from branchwork.studies.bottleneck import BOTTLENECK
from branchwork.studies.branches import BRANCHES
from branchwork.studies.depth import DEPTH
from branchwork.studies.design import Arm, Finding, Preset, Setting, Study
from branchwork.studies.executors import cluster, process_pool, run_jobs
from branchwork.studies.records import Records, read_record
from branchwork.studies.shortcuts import SHORTCUTS
from branchwork.studies.statistics import Comparison, Mean
from branchwork.studies.study_report import study_page
from branchwork.studies.trainings import Job, Record, shrinking
from branchwork.training.infer import pick_device
from branchwork.training.machine import check_threads
from branchwork.training.run import claim_folder, holds

STUDIES = {study.name: study for study in (BRANCHES, BOTTLENECK, DEPTH, SHORTCUTS)}
ABOUT, TRAININGS, ANSWER, REPORT = "study.json", "trainings", "answer.json", "report.html"


@dataclass(frozen=True)
class Row:
    """One net of a study: how many trainings diverged, and its means over the others; None where all did."""

    label: str
    net: str
    parameters: int
    macs: int
    diverged: int
    means: dict[str, Mean | None]


@dataclass(frozen=True)
class StudyResult:
    """A study's answer. `trained` of the `trainings` were run now, the others had been before.

    `seconds` is the sum over all trainings, with their tests, wherever they ran.
    """

    study: str
    preset: str
    data: str
    seeds: tuple[int, ...]
    findings: tuple[Finding, ...]
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...]
    trainings: int
    trained: int
    seconds: float
    machines: tuple[str, ...]
    versions: tuple[dict[str, str], ...]
    folder: str
    report: str


def study(
    name: str,
    *,
    preset: Preset = "quick",
    data: str | None = None,
    seeds: int | None = None,
    seed: int = 0,
    out: str | Path | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    executor: Executor | None = None,
    threads: int = 1,
    device: str = "auto",
    observer: Observer | None = None,
) -> StudyResult:
    """Answer one of the questions `branches`, `bottleneck`, `depth` and `shortcuts` by training.

    Every net of the study is trained on `data` with each of `seeds` seeds from `seed` on, and each training's record is
    kept in the folder `out`, by default `studies/NAME-DATA-PRESET`, as it comes: the same call goes on where one was
    stopped, and with more seeds trains only those. `quick` takes some minutes on two cores, `full` is the papers'
    setting, for GPUs. Trainings run in the `executor` that is given, on the dask cluster of `scheduler`, in a pool of
    `workers` processes, or where that is 1 in this one; by default in as many as there are cores for `quick`, and in
    this one for `full` and on a GPU. Each has `threads` threads, so that where it ran changes nothing.

    Raises `StudyError`, `DataError` or `NetError`, and `Interrupted` after Ctrl-C, with what is finished kept.
    """
    observer = observer or Observer()
    chosen = _find(name, preset)
    if (executor is not None and (scheduler or workers)) or (scheduler and workers):
        raise StudyError("trainings run in one place: give one of executor, scheduler and workers")
    if workers is not None and workers < 1:
        raise StudyError(f"workers is {workers}, and it must be at least 1, which trains in this process")
    check_threads(threads, StudyError)
    data_set = load_data(data or chosen.data, observer=observer)
    setting = chosen.setting(preset, len(data_set.train))
    numbers = _seeds(setting.seeds if seeds is None else seeds, seed)
    arms = chosen.arms(preset)
    _check_nets(arms, data_set, setting)
    jobs = {
        (arm.label, number): _job(arm, setting, data_set, number, threads, device) for number in numbers for arm in arms
    }
    folder = Path(out) if out is not None else Path("studies") / f"{name}-{data_set.name}-{preset}"
    about = {
        "study": name,
        "preset": preset,
        "data": data_set.argument,
        "checksum": data_set.train.checksum(),
        "threads": threads,
        "device": device,
        "setting": asdict(setting),
        "arms": [asdict(arm) for arm in arms],
    }
    _claim(folder, about)
    with hold_lock(folder / ".lock", f"works on the study in {folder}", error=StudyError):
        if executor is None and scheduler is None:
            quick = preset == "quick" and pick_device(device).type == "cpu"
            workers = workers or (os.cpu_count() or 1 if quick else 1)
        found, trained = _complete(folder, list(jobs.values()), executor, scheduler, workers, observer)
        records = Records(arms, numbers, {place: found[job.key] for place, job in jobs.items()})
        return _answer(chosen, preset, data_set, setting, records, trained, folder)


def _find(name: str, preset: str) -> Study:
    if name not in STUDIES:
        raise StudyError(f"there is no study called {name!r}.{nearest(name, STUDIES)}")
    if preset not in get_args(Preset):
        raise StudyError(f"preset is {preset!r}, and it must be one of {', '.join(get_args(Preset))}")
    return STUDIES[name]


def _seeds(count: int, first: int) -> tuple[int, ...]:
    if not 1 <= count <= 1000:
        raise StudyError(f"seeds is {count}, and it must be from 1 to 1000; an interval takes 2, and better 3 or more")
    if not 0 <= first < 2**63 - 1000:
        raise StudyError(f"seed is {first}, and it must be at least 0 and less than 2^63 - 1000")
    return tuple(range(first, first + count))


def _check_nets(arms: tuple[Arm, ...], data: DataSet, setting: Setting) -> None:
    """Raises `NetError` where the images are too small for one of the nets."""
    factor = shrinking(data.image_size, setting.side)
    height, width = (side // factor for side in data.image_size)
    with torch.random.fork_rng(devices=[]):
        for arm in arms:
            find_builder(
                arm.net, in_channels=data.channels, num_classes=len(data.classes), image_size=(height, width)
            )()


def _job(arm: Arm, setting: Setting, data: DataSet, seed: int, threads: int, device: str) -> Job:
    return Job(
        net=arm.net,
        data=data.argument,
        checksum=data.train.checksum(),
        size=data.image_size if data.path else None,
        fit=data.pictures if data.path else None,
        recipe=asdict(setting.recipe.but(arm.changes)),
        seed=seed,
        threads=threads,
        device=device,
        execute=setting.execute,
        images=setting.images,
        side=setting.side,
        gradients=setting.gradients,
    )


def _claim(folder: Path, about: dict[str, Any]) -> None:
    """Begin this study in `folder`, or go on with it. Raises `StudyError` where it holds another."""
    if not holds(folder, ABOUT):
        write_json(claim_folder(folder, "") / ABOUT, about)
        return
    path = folder / ABOUT
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        other = [key for key, value in json.loads(json.dumps(about)).items() if before.get(key) != value]
    except (OSError, ValueError, AttributeError, RecursionError) as reason:
        raise StudyError(f"{path} is damaged ({reason}): choose another --out") from reason
    if other:
        differences = "; ".join(_difference(key, before.get(key), about[key]) for key in other)
        raise StudyError(f"{folder} holds another study ({differences}): choose another --out")


def _difference(key: str, before: object, now: object) -> str:
    return f"its {key} is {before}, not {now}" if isinstance(now, str | int) else f"its {key} is other than now"


def _complete(
    folder: Path,
    jobs: list[Job],
    executor: Executor | None,
    scheduler: str | None,
    workers: int | None,
    observer: Observer,
) -> tuple[dict[str, Record], int]:
    """Every job's record by its key, and how many were trained for that."""
    places = {job.key: folder / TRAININGS / f"{job.key}.json" for job in jobs}
    found = {key: record for key, path in places.items() if (record := read_record(path)) is not None}
    missing = [job for job in jobs if job.key not in found]
    if found and missing:
        observer.note(f"{folder}: {len(found)} of {len(jobs)} trainings are here already")
    if not missing:
        return found, 0
    # The longest first, so that none is left for the end, alone.
    missing.sort(key=lambda job: -_weight(job))
    title = f"trainings, into {folder}"
    try:
        with _place(executor, scheduler, min(workers or 1, len(missing))) as where:
            observer.count(title, len(found), len(jobs))
            for job, record in run_jobs(missing, where):
                write_json(places[job.key], record)
                found[job.key] = record
                observer.note(f"{len(found)}/{len(jobs)}  {_said(job, record)}")
                observer.count(title, len(found), len(jobs))
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted(
            f"stopped: {len(found)} of {len(jobs)} trainings are kept in {folder}. The same command goes on from there"
        ) from None
    finally:
        observer.count_end()
    return found, len(missing)


def _place(executor: Executor | None, scheduler: str | None, workers: int) -> Any:
    if scheduler is not None:
        return cluster(scheduler)
    if executor is None and workers > 1:
        return process_pool(workers)
    return nullcontext(executor)


def _weight(job: Job) -> int:
    """A deeper net's name has the larger number; it is only for the order."""
    return int("".join(filter(str.isdigit, job.net.partition("[")[0])) or 0)


def _said(job: Job, record: Record) -> str:
    words = f"{job.net}, seed {job.seed}: "
    if record["outcome"] == "diverged":
        return words + f"diverged ({record['message']})"
    return words + (
        f"training error {record['train_error']:.2%}, test error {record['test_error']:.2%}, {record['seconds']:.1f} s"
    )


def _answer(
    chosen: Study,
    preset: Preset,
    data: DataSet,
    setting: Setting,
    records: Records,
    trained: int,
    folder: Path,
) -> StudyResult:
    answer = chosen.answer(records)
    everything = records.found.values()
    rows = [
        Row(
            label=arm.label,
            net=arm.net,
            parameters=records.any_of(arm.label)["parameters"],
            macs=records.any_of(arm.label)["macs"],
            diverged=records.diverged(arm.label),
            means={measure: records.mean(arm.label, measure) for measure in chosen.measures},
        )
        for arm in records.arms
    ]
    versions = [dict(kind) for kind in dict.fromkeys(tuple(record["versions"].items()) for record in everything)]
    result = StudyResult(
        study=chosen.name,
        preset=preset,
        data=data.name,
        seeds=records.seeds,
        findings=answer.findings,
        rows=tuple(rows),
        comparisons=answer.comparisons,
        trainings=len(records.found),
        trained=trained,
        seconds=sum(record["whole_seconds"] for record in everything),
        machines=tuple(dict.fromkeys(record["machine"] for record in everything)),
        versions=tuple(versions),
        folder=str(folder),
        report=str(folder / REPORT),
    )
    write_whole(folder / REPORT, study_page(chosen, result, setting, data, records, answer))
    write_json(folder / ANSWER, asdict(result))
    return result
