"""The parts of a study: a question, the nets trained to answer it, and how their records become the answer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from branchwork.language import mark, say, sentences
from branchwork.shown import Shown
from branchwork.studies.records import Record
from branchwork.training.options import Execute
from branchwork.training.recipe import Recipe
from branchwork.training.statistics import (
    Mean,
    PairedDifference,
    difference_words,
    holm,
    margin_words,
    mean_words,
    measure_interval,
    measure_name,
    p_words,
    paired,
)

Preset = Literal["quick", "full"]
Verdict = Literal["yes", "no", "too close to call"]


@dataclass(frozen=True)
class Arm:
    """One net of a study: its label in figures and tables, and its NET argument.

    `facts` are what the answer groups arms by; `changes` are the fields of its recipe that differ from the study's.
    """

    label: str
    net: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """How the nets of a preset are trained; `records.Job` explains `images`, `side` and `gradients`."""

    recipe: Recipe
    seeds: int
    images: int | None = None
    side: int | None = None
    execute: Execute = "auto"
    gradients: bool = False


@dataclass(frozen=True)
class Conclusion:
    """A question, its verdict, and the sentence with the figures that the verdict rests on."""

    question: str
    verdict: Verdict
    words: str


@dataclass(frozen=True)
class Plot:
    """A figure of the report. `draw` returns it as SVG; it takes a second, so only the report calls it."""

    title: str
    words: str
    draw: Callable[[], str]


@dataclass(frozen=True)
class Table:
    """A table of the report; the first cell of each row names it."""

    title: str
    words: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Answer:
    """What a study found, with the plots and tables of its report."""

    findings: tuple[Conclusion, ...]
    comparisons: tuple[PairedDifference, ...]
    plots: tuple[Plot, ...]
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Records:
    """The records of a study by arm label and seed. Trainings that diverged have no errors and no seconds."""

    arms: tuple[Arm, ...]
    seeds: tuple[int, ...]
    by_training: Mapping[tuple[str, int], Record]

    def has(self, *labels: str) -> bool:
        """Return whether all of these arms belong to the study: it may be run with some of its arms."""
        return set(labels) <= {arm.label for arm in self.arms}

    def trained(self, label: str) -> dict[int, Record]:
        """Return the records of an arm by seed, without the trainings that diverged."""
        records = {seed: self.by_training[label, seed] for seed in self.seeds}
        return {seed: record for seed, record in records.items() if record.outcome == "trained"}

    def first(self, label: str) -> Record:
        """Return an arm's record for the first seed, for figures that do not depend on the seed."""
        return self.by_training[label, self.seeds[0]]

    def diverged(self, label: str) -> int:
        """Return how many trainings of an arm diverged."""
        return len(self.seeds) - len(self.trained(label))

    def values(self, label: str, measure: str) -> dict[int, float]:
        """Return a measure of an arm by seed, without the trainings that diverged."""
        return {seed: getattr(record, measure) for seed, record in self.trained(label).items()}

    def mean(self, label: str, measure: str) -> Mean | None:
        """Return the mean of a measure of an arm; None if all of its trainings diverged."""
        values = self.values(label, measure).values()
        return measure_interval(values, measure) if values else None

    def compare(self, pairs: Sequence[tuple[str, str]], measure: str) -> list[PairedDifference | None]:
        """Compare each pair of labels seed by seed, with a correction for all comparisons together.

        A pair without a seed that trained in both arms gives None.
        """
        return holm(
            [paired(self.values(a, measure), self.values(b, measure), names=(a, b), measure=measure) for a, b in pairs]
        )

    def costs_and_errors(self) -> list[tuple[str, int, Mean | None]]:
        """Return the label, the MACs and the mean test error of every arm."""
        return [(arm.label, self.first(arm.label).macs, self.mean(arm.label, "test_error")) for arm in self.arms]


@dataclass(frozen=True)
class Study:
    """A study. `data` is its default data set.

    `setting` takes the preset and the number of training images. `measures` are the columns of the table of nets; the
    first one decides. If the study is `divisible`, its `answer` leaves out the questions whose arms were not trained.
    """

    name: str
    data: str
    claim: str
    question: str
    arms: Callable[[Preset], tuple[Arm, ...]]
    setting: Callable[[Preset, int], Setting]
    measures: tuple[str, ...]
    answer: Callable[[Records], Answer]
    divisible: bool = False


@dataclass(frozen=True)
class ArmResult:
    """One net of a study: how many of its trainings diverged, and its means over the others (None if all did)."""

    label: str
    net: str
    parameters: int
    macs: int
    diverged: int
    means: dict[str, Mean | None]


@dataclass(frozen=True)
class StudyResult(Shown):
    """A study's answer. Of its `trainings`, `trained` were run by this call, the others before it.

    `seconds` is the total time of all trainings and their tests, on whatever machine.
    """

    study: str
    preset: Preset
    data: str
    seeds: tuple[int, ...]
    findings: tuple[Conclusion, ...]
    rows: tuple[ArmResult, ...]
    comparisons: tuple[PairedDifference, ...]
    trainings: int
    trained: int
    seconds: float
    machines: tuple[str, ...]
    versions: tuple[dict[str, str], ...]
    folder: str
    report: str


def verdict_name(verdict: Verdict) -> str:
    """Return a verdict in the reader's language."""
    return say({"yes": mark("yes"), "no": mark("no"), "too close to call": mark("too close to call")}[verdict])


def compared(
    records: Records,
    pair: tuple[str, str],
    difference: PairedDifference | None,
    *,
    measure: str,
    question: str,
    margin: float,
    yes: Literal["more", "less"],
) -> Conclusion:
    """Answer `question` from the `difference` between a `pair` of arms: yes if its judgement is `yes`.

    Differences within `margin` count as equal.
    """
    first, second = (records.mean(label, measure) for label in pair)
    words = [
        say(
            "{measure}: {first} {first_mean}, {second} {second_mean}.",
            measure=measure_name(measure),
            first=say(pair[0]),
            first_mean=mean_words(measure, first),
            second=say(pair[1]),
            second_mean=mean_words(measure, second),
        ),
        *_diverged_words(records, pair),
    ]
    if difference is None:
        words.append(say("There is nothing to compare."))
        return Conclusion(question, "too close to call", sentences(words))
    if difference.low is None or difference.high is None or difference.adjusted is None:
        words.append(say("One seed gives no interval: use --seeds 3 or more."))
        return Conclusion(question, "too close to call", sentences(words))
    change, low, high = (
        difference_words(measure, value) for value in (difference.difference, difference.low, difference.high)
    )
    words.append(
        say(
            "On the same seeds the difference is {change} s ({low} to {high}), {p}."
            if measure == "seconds"
            else "On the same seeds the difference is {change} points ({low} to {high}), {p}.",
            change=change,
            low=low,
            high=high,
            p=p_words(difference.adjusted),
        )
    )
    judgement = difference.judge(margin)
    # Diverged trainings are in none of these figures, so they can only confirm that their net is the worse one.
    if any(records.diverged(label) and judgement != worse for label, worse in zip(pair, ("more", "less"), strict=True)):
        judgement = "open"
    if judgement == "open":
        return Conclusion(question, "too close to call", sentences(words))
    if judgement == "same":
        words.append(say("The two are equal within the margin of {margin}.", margin=margin_words(measure, margin)))
    else:
        assert first is not None and second is not None, "compared arms have means"
        words.append(
            say("The intervals overlap nevertheless.")
            if first.overlaps(second)
            else say("The intervals do not overlap.")
        )
    return Conclusion(question, "yes" if judgement == yes else "no", sentences(words))


def _diverged_words(records: Records, labels: tuple[str, ...]) -> list[str]:
    """Return how many trainings of each arm diverged; nothing about arms without any."""
    total = len(records.seeds)
    counts = {label: records.diverged(label) for label in labels}
    return [
        say("{count} of {total} trainings of {label} diverged.", count=count, total=total, label=say(label))
        for label, count in counts.items()
        if count
    ]
