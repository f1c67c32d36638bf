"""The verb `study`: run the missing trainings, keep each record as it arrives, and answer the question."""

import json
import os
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from branchwork.catalogue.resolve import find_builder
from branchwork.datasets.dataset import DataSet
from branchwork.datasets.load import load_data
from branchwork.errors import Interrupted, StudyError, nearest
from branchwork.files import hold_lock, read_json, remove_parts, write_json, write_whole
from branchwork.graph.untouched import alone
from branchwork.language import say
from branchwork.observer import Observer
from branchwork.screen import watch
from branchwork.studies.bottleneck import BOTTLENECK
from branchwork.studies.branches import BRANCHES
from branchwork.studies.depth import DEPTH
from branchwork.studies.design import Arm, ArmResult, Preset, Records, Setting, Study, StudyResult
from branchwork.studies.records import Job, Record, read_record
from branchwork.studies.shortcuts import SHORTCUTS
from branchwork.studies.study_report import CHANGEABLE, study_page
from branchwork.studies.trainings import process_pool, run_jobs, shrinking
from branchwork.training.infer import pick_device
from branchwork.training.options import check_threads
from branchwork.training.run import claim_folder, holds

STUDIES = {study.name: study for study in (BRANCHES, BOTTLENECK, DEPTH, SHORTCUTS)}
ABOUT, TRAININGS, ANSWER, REPORT = "study.json", "trainings", "answer.json", "report.html"


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """How to run the trainings of a study, and which. Raises `StudyError` for an impossible value.

    `arms` are the labels of the nets to train, by default all of the preset's: questions about others are then left
    out. `epochs` and `precision` replace those of the preset's recipe. `seed` is the first seed. `workers` is an
    executor, or the number of processes that train at once; 1 trains in this process. The default is the number of
    cores, but 1 for `full` and on a GPU. Each training uses `threads` threads, so its result does not depend on where
    it runs.
    """

    arms: tuple[str, ...] | None = None
    epochs: int | None = None
    precision: str | None = None
    seed: int = 0
    workers: int | Executor | None = None
    threads: int = 1
    device: str = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**63 - 1000:
            raise StudyError("seed must be at least 0 and less than 2^63 - 1000, got {seed}", seed=self.seed)
        if isinstance(self.workers, int) and self.workers < 1:
            raise StudyError(
                "workers must be at least 1 (1 trains in this process), got {workers}", workers=self.workers
            )
        check_threads(self.threads, StudyError)


def study(
    name: str,
    *,
    preset: Preset = "quick",
    data: str | None = None,
    seeds: int | None = None,
    out: str | Path | None = None,
    options: StudyOptions | None = None,
    progress: bool | Observer = False,
) -> StudyResult:
    """Answer one of the questions `branches`, `bottleneck`, `depth` and `shortcuts` by training.

    Every net of the study, or each of the `arms` in its options, is trained on `data` with `seeds` seeds, by default
    the preset's number. Each record is written to the folder `out`, by default `studies/NAME-DATA-PRESET`, when its
    training ends: the same call continues an interrupted study, and a call with more seeds trains only the new ones.
    `quick` takes about ten minutes on two cores; `full` is the papers' setting, for GPUs.

    Raises `StudyError`, `DataError` or `NetError`, and `Interrupted` after Ctrl-C, with finished trainings kept.
    """
    observer, options = watch(progress), options or StudyOptions()
    chosen = _find(name, preset)
    if seeds is not None and not 1 <= seeds <= 1000:
        raise StudyError(
            "seeds must be from 1 to 1000, got {seeds}; an interval needs at least 2, better 3 or more", seeds=seeds
        )
    data_set = load_data(data or chosen.data, progress=observer)
    setting = chosen.setting(preset, len(data_set.train))
    changes = {name: value for name in CHANGEABLE if (value := getattr(options, name)) is not None}
    setting = replace(setting, recipe=setting.recipe.but(changes))
    arms = _choose_arms(chosen, preset, options.arms)
    numbers = tuple(range(options.seed, options.seed + (seeds or setting.seeds)))
    _check_nets(arms, data_set, setting)
    jobs = {
        (arm.label, seed): _job(arm, setting, data=data_set, seed=seed, options=options)
        for seed in numbers
        for arm in arms
    }
    folder = Path(out) if out is not None else Path("studies") / f"{name}-{data_set.name}-{preset}"
    about = {
        "study": name,
        "preset": preset,
        "data": data_set.argument,
        "checksum": data_set.train.checksum(),
        "threads": options.threads,
        "device": options.device,
        "setting": asdict(setting),
        "arms": [asdict(arm) for arm in arms],
    }
    _claim(folder, about)
    activity = say("is working on the study in {folder}", folder=folder)
    with hold_lock(folder / ".lock", activity, error=StudyError):
        remove_parts(folder, folder / TRAININGS)
        workers = options.workers
        if workers is None:
            quick = preset == "quick" and pick_device(options.device).type == "cpu"
            workers = os.cpu_count() or 1 if quick else 1
        by_key, trained = _complete(folder, list(jobs.values()), workers, observer=observer)
        records = Records(arms, numbers, {training: by_key[job.key] for training, job in jobs.items()})
        answer = chosen.answer(records)
        result = StudyResult(
            study=chosen.name,
            preset=preset,
            data=data_set.name,
            seeds=records.seeds,
            findings=answer.findings,
            rows=tuple(_arm_result(arm, records, chosen.measures) for arm in arms),
            comparisons=answer.comparisons,
            trainings=len(jobs),
            trained=trained,
            seconds=sum(record.whole_seconds for record in by_key.values()),
            machines=tuple(dict.fromkeys(record.machine for record in by_key.values())),
            versions=tuple(map(dict, dict.fromkeys(tuple(r.versions.items()) for r in by_key.values()))),
            folder=str(folder),
            report=str(folder / REPORT),
        )
        page = study_page(chosen, result, setting=setting, data=data_set, records=records, answer=answer)
        write_whole(folder / REPORT, page)
        write_json(folder / ANSWER, asdict(result))
        return result


def _find(name: str, preset: str) -> Study:
    if name not in STUDIES:
        raise StudyError("there is no study called {name!r}.{hint}", name=name, hint=nearest(name, STUDIES))
    if preset not in get_args(Preset):
        raise StudyError(
            "preset must be one of {choices}, got {preset!r}", choices=", ".join(get_args(Preset)), preset=preset
        )
    return STUDIES[name]


def _choose_arms(study: Study, preset: Preset, labels: tuple[str, ...] | None) -> tuple[Arm, ...]:
    """Return the arms with these labels, by default all, in the study's order. Raises `StudyError`."""
    arms = {arm.label: arm for arm in study.arms(preset)}
    if labels is None:
        return tuple(arms.values())
    if not study.divisible:
        raise StudyError("the answer of the study {name} needs all of its nets: leave out --arms", name=study.name)
    for label in labels:
        if label not in arms:
            raise StudyError(
                "the study {name} has no arm {label!r} with --preset {preset}: name some of {arms}, separated by "
                "commas",
                name=study.name,
                label=label,
                preset=preset,
                arms=", ".join(arms),
            )
    return tuple(arm for arm in arms.values() if arm.label in labels)


def _check_nets(arms: tuple[Arm, ...], data: DataSet, setting: Setting) -> None:
    """Raise `NetError` if the images are too small for one of the nets."""
    factor = shrinking(data.image_size, setting.side)
    height, width = (side // factor for side in data.image_size)
    with alone():
        for arm in arms:
            find_builder(
                arm.net, in_channels=data.channels, num_classes=len(data.classes), image_size=(height, width)
            )()


def _job(arm: Arm, setting: Setting, *, data: DataSet, seed: int, options: StudyOptions) -> Job:
    return Job(
        net=arm.net,
        data=data.argument,
        checksum=data.train.checksum(),
        size=data.image_size if data.path else None,
        fit=data.pictures if data.path else None,
        recipe=asdict(setting.recipe.but(arm.changes)),
        seed=seed,
        threads=options.threads,
        device=options.device,
        execute=setting.execute,
        images=setting.images,
        side=setting.side,
        gradients=setting.gradients,
    )


def _claim(folder: Path, about: dict[str, Any]) -> None:
    """Start this study in `folder`, or continue it. Raises `StudyError` if the folder holds another study."""
    if not holds(folder, ABOUT):
        write_json(claim_folder(folder, "") / ABOUT, about)
        return
    before = read_json(folder / ABOUT, dict[str, Any], error=StudyError, remedy="choose another --out")
    differences = [
        say("its {key} is {found}, not {value}", key=key, found=before.get(key), value=value)
        if isinstance(value, str | int)
        else say("its {key} differs", key=key)
        for key, value in json.loads(json.dumps(about)).items()
        if before.get(key) != value
    ]
    if differences:
        raise StudyError(
            "{folder} holds another study ({differences}): choose another --out",
            folder=folder,
            differences="; ".join(differences),
        )


def _complete(
    folder: Path, jobs: list[Job], workers: int | Executor, *, observer: Observer
) -> tuple[dict[str, Record], int]:
    """Return every job's record by its key, and how many of them were trained now."""
    paths = {job.key: folder / TRAININGS / f"{job.key}.json" for job in jobs}
    records = {job.key: record for job in jobs if (record := read_record(paths[job.key], job)) is not None}
    missing = [job for job in jobs if job.key not in records]
    if records and missing:
        observer.note(
            say(
                "{folder}: {records} of {jobs} trainings are already done",
                folder=folder,
                records=len(records),
                jobs=len(jobs),
            )
        )
    if not missing:
        return records, 0
    missing.sort(key=_size, reverse=True)  # the longest first, so that all workers finish at about the same time
    title = say("trainings, into {folder}", folder=folder)
    try:
        with _executor(workers, len(missing)) as executor:
            observer.count(title, len(records), len(jobs))
            for job, record in run_jobs(missing, executor):
                write_json(paths[job.key], asdict(record))
                records[job.key] = record
                observer.note(f"{len(records)}/{len(jobs)}  {_outcome_words(record)}")
                observer.count(title, len(records), len(jobs))
    except (KeyboardInterrupt, Interrupted):
        raise Interrupted(
            "stopped: {records} of {jobs} trainings are kept in {folder}. Run the same command again to continue",
            records=len(records),
            jobs=len(jobs),
            folder=folder,
        ) from None
    finally:
        observer.count_end()
    return records, len(missing)


@contextmanager
def _executor(workers: int | Executor, most: int) -> Iterator[Executor | None]:
    """Yield the executor to train in; None for this process."""
    if isinstance(workers, Executor):
        yield workers
    elif min(workers, most) == 1:
        yield None
    else:
        with process_pool(min(workers, most)) as pool:
            yield pool


def _size(job: Job) -> int:
    """Return the number in the name of a net, which grows with its depth."""
    return int("".join(filter(str.isdigit, job.net.partition("[")[0])) or 0)


def _outcome_words(record: Record) -> str:
    if record.outcome == "diverged":
        return say(
            "{net}, seed {seed}: diverged ({reason})",
            net=record.job.net,
            seed=record.job.seed,
            reason=record.message,
        )
    return say(
        "{net}, seed {seed}: training error {train_error:.2%}, test error {test_error:.2%}, {seconds:.1f} s",
        net=record.job.net,
        seed=record.job.seed,
        train_error=record.train_error,
        test_error=record.test_error,
        seconds=record.seconds,
    )


def _arm_result(arm: Arm, records: Records, measures: tuple[str, ...]) -> ArmResult:
    record = records.first(arm.label)
    return ArmResult(
        label=arm.label,
        net=arm.net,
        parameters=record.parameters,
        macs=record.macs,
        diverged=records.diverged(arm.label),
        means={measure: records.mean(arm.label, measure) for measure in measures},
    )
