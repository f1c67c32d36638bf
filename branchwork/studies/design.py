"""What a study is: a question, the nets that are trained to answer it, and how their figures make the answer."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from branchwork.studies.records import Records
from branchwork.studies.statistics import Comparison
from branchwork.training.execution import Execute
from branchwork.training.recipe import Recipe

Preset = Literal["quick", "full"]
Verdict = Literal["yes", "no", "too close to call"]


@dataclass(frozen=True)
class Arm:
    """One of the nets that a study compares: its label in pictures and tables, and the net argument.

    `changes` are what its recipe has otherwise than the others'; `facts` what the answer sorts by.
    """

    label: str
    net: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Setting:
    """How the nets of a preset are trained: see `Job` for `images`, `side` and `gradients`."""

    recipe: Recipe
    seeds: int
    images: int | None = None
    side: int | None = None
    execute: Execute = "auto"
    gradients: bool = False


@dataclass(frozen=True)
class Finding:
    """One question, the verdict, and the sentence with the figures that it was made from."""

    question: str
    verdict: Verdict
    words: str


@dataclass(frozen=True)
class Picture:
    """`draw` gives it as SVG, which takes a second that only the report needs."""

    title: str
    words: str
    draw: Callable[[], str]


@dataclass(frozen=True)
class Table:
    title: str
    words: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class Answer:
    findings: tuple[Finding, ...]
    comparisons: tuple[Comparison, ...]
    pictures: tuple[Picture, ...]
    tables: tuple[Table, ...] = ()


@dataclass(frozen=True)
class Study:
    """`claim` and `question` give words in the reader's language. `data` is what is trained on by default.

    `setting` takes the preset and the number of training images. `measures` are those of the records that the table of
    nets shows, first the one that the study goes by.
    """

    name: str
    data: str
    claim: Callable[[], str]
    question: Callable[[], str]
    arms: Callable[[Preset], tuple[Arm, ...]]
    setting: Callable[[Preset, int], Setting]
    measures: tuple[str, ...]
    answer: Callable[[Records], Answer]
