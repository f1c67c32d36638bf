"""branchwork study"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from branchwork.cli.output import Part, deliver, make_table, show
from branchwork.cli.parameters import DATA, Device, Json
from branchwork.language import say

if TYPE_CHECKING:
    from branchwork.studies.design import StudyResult


@dataclass(frozen=True)
class Trainings:
    """Which trainings, how many, and how they run."""

    arms: Annotated[
        str | None,
        Parameter(
            help="Only these nets, by their labels, such as plain-20,plain-56; questions about others are left out. "
            "For depth and shortcuts."
        ),
    ] = None
    epochs: Annotated[int | None, Parameter(help="Epochs of each training; by default the preset's.")] = None
    precision: Annotated[
        Literal["auto", "fp32", "bf16", "fp64"] | None,
        Parameter(help="Precision of convolutions and matrix products; by default fp32."),
    ] = None
    seeds: Annotated[
        int | None,
        Parameter(help="How many times to train each net; by default the preset's number."),
    ] = None
    seed: Annotated[int, Parameter(help="The first seed.")] = 0
    workers: Annotated[
        int | None,
        Parameter(
            help="Processes that train at once; by default as many as there are cores for quick, else 1 (this process)."
        ),
    ] = None
    threads: Annotated[int, Parameter(help="Threads per training; the number changes the rounding of results.")] = 1
    device: Device = "auto"


def study(
    name: Annotated[str, Parameter(help="branches, bottleneck, depth or shortcuts.")],
    /,
    *,
    preset: Annotated[
        Literal["quick", "full"],
        Parameter(help="quick takes about ten minutes on two cores; full is the papers' setting, for GPUs."),
    ] = "quick",
    data: Annotated[
        str | None,
        Parameter(help=f"{DATA}; by default fashion-mnist for depth and shortcuts, auto for the others."),
    ] = None,
    trainings: Annotated[Trainings, Parameter(name="*")] = Trainings(),
    out: Annotated[
        Path | None,
        Parameter(help="The study's folder; by default studies/NAME-DATA-PRESET. Its finished trainings are kept."),
    ] = None,
    json_file: Json = None,
) -> None:
    """Answer a question from the lecture by training nets, with intervals, a significance test and a report.

    Each finished training is kept: after a stop, the same command continues.
    """
    import branchwork
    from branchwork.studies.study import StudyOptions

    arms = None if trainings.arms is None else tuple(label.strip() for label in trainings.arms.split(","))
    given = vars(trainings) | {"arms": arms}
    seeds = given.pop("seeds")
    options = StudyOptions(**given)
    result = branchwork.study(name, preset=preset, data=data, seeds=seeds, out=out, options=options, progress=True)
    deliver(result, json_file, lambda: show(*parts(result)))


def parts(result: "StudyResult") -> list[Part]:
    from branchwork.studies.design import verdict_name
    from branchwork.training.statistics import mean_words, measure_name

    measures = list(result.rows[0].means)
    table = make_table("net", names=(*map(measure_name, measures), measure_name("macs")))
    for row in result.rows:
        means = [mean_words(measure, row.means[measure]) for measure in measures]
        table.add_row(say(row.label), *means, f"{row.macs:,}")
    return [
        table,
        *(
            f"{finding.question} {verdict_name(finding.verdict).upper()}\n  {finding.words}"
            for finding in result.findings
        ),
        say(
            "{trainings} trainings on {data}, {seeds} seeds; report: {report}",
            **(vars(result) | {"seeds": len(result.seeds)}),
        ),
    ]
