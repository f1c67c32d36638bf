"""The verb `compare`: trained nets on the same test images."""

import itertools
import statistics
import string
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from branchwork.catalogue.resolve import short_name
from branchwork.comparing.compare_report import comparison_page
from branchwork.comparing.comparison import Comparison, Disagreement, Entry
from branchwork.comparing.pairs import Pair, adjust, make_pair
from branchwork.datasets.dataset import DataSet
from branchwork.datasets.sheet import draw_sheet, shorten
from branchwork.deploy.bench import take_turns
from branchwork.errors import DataError, RunError
from branchwork.figures import check_drawing, legible
from branchwork.files import check_writable, read_json, write_whole
from branchwork.graph.costs import count_macs, count_parameters
from branchwork.language import say
from branchwork.observer import Observer
from branchwork.screen import watch
from branchwork.training.evaluate import load_for, wilson_interval
from branchwork.training.infer import predict_logits
from branchwork.training.machine import machine
from branchwork.training.plan import Plan
from branchwork.training.result import read_result
from branchwork.training.run import MODEL, RESULT, SEEDS, Model, TrainedNet, holds, load_run
from branchwork.training.statistics import measure_interval

# Entries are called A, B, C…
LABELS = string.ascii_uppercase
# Seconds for which each net is timed.
TIMED = 0.5
# Pictures on a sheet: more would be too small.
MOST_DRAWN = 64


@dataclass(frozen=True)
class _Entrant:
    """What a run argument names: the nets of one seed or of several, with the seeds as far as they are known."""

    label: str
    folder: Path
    nets: tuple[TrainedNet, ...]
    seeds: tuple[int, ...]

    @property
    def model(self) -> Model:
        return self.nets[0].model


@dataclass(frozen=True)
class _Answers:
    """The answers of an entrant's nets, int64 S×N with a row for each seed, as classes of the data.

    With their probability, and whether they are right. `usual`, int64 N, is the answer of most seeds.
    """

    classes: Tensor
    probability: Tensor
    right: Tensor

    @property
    def usual(self) -> Tensor:
        return self.classes.mode(0).values


def compare(
    runs: Sequence[str | Path],
    *,
    data: str | None = None,
    source: Path | None = None,
    draw: Path | None = None,
    out: Path | None = None,
    progress: bool | Observer = False,
) -> Comparison:
    """Compare the nets of at least two run folders on the same test images, by default of the data they trained on.

    A folder of several seeds counts as one net, and is compared with others seed by seed. The nets may differ in all
    but their classes and pictures: each gets the pictures in its own format. With `draw`, the pictures that one reads
    and another does not are drawn into that file; with `out`, an HTML page of the whole comparison is written there.

    Raises `DataError` if classes or test images differ, with what differs, and `RunError` for a damaged run, for one
    seed beside several, and, before anything is compared, if a file cannot be written.
    """
    observer = watch(progress)
    if draw is not None:
        check_drawing(draw)
    if out is not None:
        check_writable(out)
    entrants = _find(runs)
    sets = _load_alike(entrants, data, source, observer=observer)
    shown, labels, names = sets[0], sets[0].test.labels, sets[0].classes
    answers = _answer_all(entrants, sets, observer)
    seconds = take_turns({entrant.label: partial(_run_once, entrant.nets[0]) for entrant in entrants}, TIMED)
    both = list(itertools.combinations(zip(entrants, answers, strict=True), 2))
    comparison = Comparison(
        data=shown.name,
        images=len(labels),
        classes=names,
        entries=tuple(
            _entry(entrant, answer, labels=labels, seconds=statistics.median(seconds[entrant.label]))
            for entrant, answer in zip(entrants, answers, strict=True)
        ),
        pairs=adjust([_pair(first, second, data=shown) for first, second in both], len(labels)),
        disagreements=_disagreements(entrants, answers, data=shown),
        threads=torch.get_num_threads(),
        machine=machine(),
    )
    if draw is not None and comparison.disagreements:
        with legible(draw):
            draw_disagreements(draw, comparison, shown)
    if out is not None:
        write_whole(out, comparison_page(comparison, shown))
    return comparison


def _find(runs: Sequence[str | Path]) -> list[_Entrant]:
    folders = [Path(runs)] if isinstance(runs, str | Path) else list(map(Path, runs))
    if not 2 <= len(folders) <= len(LABELS):
        raise RunError(
            "a comparison needs from 2 to {most} runs, got {count}: name their folders",
            most=len(LABELS),
            count=len(folders),
        )
    repeated = [
        folder for index, folder in enumerate(folders) if folder.resolve() in map(Path.resolve, folders[:index])
    ]
    if repeated:
        raise RunError("{folder} is named twice: name different runs", folder=repeated[0])
    entrants = list(map(_entrant, LABELS, folders))
    several, single = ([e for e in entrants if (len(e.nets) > 1) is many] for many in (True, False))
    if several and single:
        raise RunError(
            "{several} holds {count} seeds, but {single} is a single run, which cannot tell a better net "
            "from luck: name one of the seeds, such as {one}, or train the other with --seeds too",
            several=several[0].folder,
            count=len(several[0].nets),
            single=single[0].folder,
            one=several[0].nets[0].folder,
        )
    for first, second in itertools.combinations(several, 2):
        if len(set(first.seeds) & set(second.seeds)) < 2:
            raise RunError(
                "{first} has the seeds {seeds} and {second} has {others}: at least two must be the same, since nets "
                "are compared seed by seed",
                first=first.folder,
                second=second.folder,
                seeds=", ".join(map(str, first.seeds)),
                others=", ".join(map(str, second.seeds)),
            )
    return entrants


def _entrant(label: str, folder: Path) -> _Entrant:
    if holds(folder, SEEDS) and not holds(folder, MODEL):
        plans = read_json(folder / SEEDS, list[Plan], remedy="train again into another folder")
        seeds = tuple(plan.options.seed for plan in plans)
        return _Entrant(label, folder, tuple(load_run(folder / f"seed-{seed}") for seed in seeds), seeds)
    trained = load_run(folder)
    return _Entrant(label, folder, (trained,), (read_result(folder).seed,) if holds(folder, RESULT) else ())


def _load_alike(
    entrants: Sequence[_Entrant], data: str | None, source: Path | None, *, observer: Observer
) -> list[DataSet]:
    """Return the same test images for each entrant, in the format of its net. Raises `DataError` if they differ."""
    first = entrants[0].model
    reference = load_for(first, data, source, observer=observer)
    for entrant in entrants[1:] if data is None else ():
        if entrant.model.data != first.data:
            theirs = load_for(first, entrant.model.data, source, observer=observer)
            _check_same(reference, theirs, folders=(entrants[0].folder, entrant.folder))
    loaded = {_format(first): reference}
    for entrant in entrants:
        if _format(entrant.model) not in loaded:
            loaded[_format(entrant.model)] = load_for(entrant.model, data or first.data, source, observer=observer)
    sets = [loaded[_format(entrant.model)] for entrant in entrants]
    assert all(torch.equal(s.test.labels, reference.test.labels) and s.classes == reference.classes for s in sets)
    return sets


def _format(model: Model) -> tuple[object, ...]:
    """Return all of `model` that decides which images are loaded, and whether they suit it."""
    return model.in_channels, model.image_size, model.pictures, frozenset(model.classes)


def _check_same(first: DataSet, second: DataSet, *, folders: tuple[Path, Path]) -> None:
    if first.classes == second.classes and first.test.checksum() == second.test.checksum():
        return
    count = len(first.test)
    values = {
        "first": folders[0],
        "second": folders[1],
        "data": first.argument,
        "other": second.argument,
        "count": count,
    }
    if count != len(second.test):
        raise DataError(
            "{first} and {second} were trained on different data: {data} has {count:,} test images, {other} has "
            "{others:,}. To compare both on one of them, name it with --data",
            **values,
            others=len(second.test),
        )
    changed = 0
    for start in range(0, count, 256):
        rows = slice(start, start + 256)
        images = (first.test.images[rows] != second.test.images[rows]).flatten(1).any(1)
        changed += int((images | (first.test.labels[rows] != second.test.labels[rows])).sum())
    raise DataError(
        "{first} and {second} were trained on different data: {changed:,} of {count:,} test images, or their labels, "
        "differ between {data} and {other}. To compare both on one of them, name it with --data",
        **values,
        changed=changed,
    )


def _answer_all(entrants: Sequence[_Entrant], sets: Sequence[DataSet], observer: Observer) -> list[_Answers]:
    answers: list[_Answers] = []
    try:
        for entrant, data_set in zip(entrants, sets, strict=True):
            observer.count(say("nets evaluated"), len(answers), len(entrants))
            answers.append(_answer(entrant, data_set))
    finally:
        observer.count_end()
    return answers


def _answer(entrant: _Entrant, data: DataSet) -> _Answers:
    probabilities, answers = [], []
    for trained in entrant.nets:
        # The net's class numbers as the data's, by name.
        numbers = torch.tensor([data.classes.index(name) for name in trained.model.classes])
        best, predicted = predict_logits(trained.net, data.test.images, trained.model).softmax(1).max(1)
        probabilities.append(best)
        answers.append(numbers[predicted])
    classes = torch.stack(answers)
    return _Answers(classes, torch.stack(probabilities), classes == data.test.labels)


def _run_once(trained: TrainedNet) -> None:
    with torch.inference_mode():
        trained.net(torch.zeros(1, *trained.model.input_shape))


def _entry(entrant: _Entrant, answers: _Answers, *, labels: Tensor, seconds: float) -> Entry:
    net, shape = entrant.nets[0].net, entrant.model.input_shape
    accuracies = answers.right.double().mean(1).tolist()
    mean = measure_interval(accuracies, "test_error")
    if mean.low is None or mean.high is None:  # of one seed
        interval = wilson_interval(int(answers.right.sum()), len(labels))
    else:
        interval = mean.low, mean.high
    times = [read_result(run.folder).train_seconds for run in entrant.nets if holds(run.folder, RESULT)]
    right = [answers.right[:, labels == number] for number in range(len(entrant.model.classes))]
    return Entry(
        label=entrant.label,
        folder=str(entrant.folder),
        net=short_name(entrant.model.net),
        seeds=entrant.seeds,
        accuracies=tuple(accuracies),
        accuracy=mean.mean,
        interval=interval,
        right=tuple(float(of_class.sum(1).double().mean()) for of_class in right),
        input_shape=shape,
        parameters=count_parameters(net),
        macs=count_macs(net, shape),
        milliseconds=1000 * seconds,
        train_seconds=statistics.mean(times) if len(times) == len(entrant.nets) else None,
    )


def _pair(one: tuple[_Entrant, _Answers], other: tuple[_Entrant, _Answers], *, data: DataSet) -> Pair:
    """Compare two entrants, seed by seed if they have several."""
    (first, ours), (second, theirs) = one, other
    rows = [(0, 0)]
    if len(first.nets) > 1:
        rows = [(first.seeds.index(seed), second.seeds.index(seed)) for seed in first.seeds if seed in second.seeds]
    of_first, of_second = (list(side) for side in zip(*rows, strict=True))
    return make_pair(
        (first.label, second.label),
        ours.right[of_first],
        theirs.right[of_second],
        labels=data.test.labels,
        classes=data.classes,
    )


def _disagreements(
    entrants: Sequence[_Entrant], answers: Sequence[_Answers], *, data: DataSet
) -> tuple[Disagreement, ...]:
    """Return the images that some entrants read and others do not, the most confident mistakes first."""
    usual = torch.stack([answer.usual for answer in answers])
    reads = usual == data.test.labels
    labels = [entrant.label for entrant in entrants]
    found = []
    for index in (reads.any(0) & ~reads.all(0)).nonzero()[:, 0].tolist():
        choices = usual[:, index].tolist()
        sure = [
            float(answer.probability[answer.classes[:, index] == choice, index].mean())
            for answer, choice in zip(answers, choices, strict=True)
        ]
        found.append(
            Disagreement(
                index=index,
                true=data.classes[int(data.test.labels[index])],
                answers={label: data.classes[choice] for label, choice in zip(labels, choices, strict=True)},
                probabilities=dict(zip(labels, sure, strict=True)),
                read_by=tuple(label for label, read in zip(labels, reads[:, index].tolist(), strict=True) if read),
            )
        )
    return tuple(sorted(found, key=Disagreement.confidence_of_mistake, reverse=True))


def draw_disagreements(path: Path, comparison: Comparison, data: DataSet) -> None:
    """Draw the pictures that one reads and another does not, grouped by who reads them."""
    shown = sorted(comparison.disagreements[:MOST_DRAWN], key=lambda each: each.read_by)
    captions = [
        "\n".join(
            (
                say("{name}, right: {labels}", name=shorten(each.true, 12), labels=" ".join(each.read_by)),
                *(
                    f"{label}: {shorten(each.answers[label], 12)} {each.probabilities[label]:.0%}"
                    for label in each.answers
                ),
            )
        )
        for each in shown
    ]
    title = say(
        "{shown:,} of {count:,} pictures that one net gets right and another does not: true class, then each answer",
        shown=len(shown),
        count=len(comparison.disagreements),
    )
    draw_sheet(path, data.test.images[[each.index for each in shown]], captions, title=title)
