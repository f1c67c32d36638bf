"""branchwork study"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from branchwork.cli.output import DATA, Json, deliver, make_table, show
from branchwork.language import say

if TYPE_CHECKING:
    from branchwork.studies.study import StudyResult


def study(
    name: Annotated[str, Parameter(help="branches, bottleneck, depth or shortcuts.")],
    /,
    *,
    preset: Annotated[
        Literal["quick", "full"],
        Parameter(help="quick is minutes on two cores; full is the papers' setting, for GPUs."),
    ] = "quick",
    data: Annotated[
        str | None,
        Parameter(help=f"{DATA}; by default fashion-mnist for depth and shortcuts, auto for the others."),
    ] = None,
    seeds: Annotated[int | None, Parameter(help="How many trainings of each net; the preset's own by default.")] = None,
    seed: Annotated[int, Parameter(help="The first seed.")] = 0,
    out: Annotated[
        Path | None, Parameter(help="The study's folder; studies/NAME-DATA-PRESET by default. What it has is kept.")
    ] = None,
    workers: Annotated[
        int | None, Parameter(help="Processes that train at once; 1 trains in this one. As many as cores for quick.")
    ] = None,
    scheduler: Annotated[
        str | None, Parameter(help="Train on the cluster of this dask scheduler, as tcp://host:8786.")
    ] = None,
    threads: Annotated[int, Parameter(help="Threads of each training; another number gives other roundings.")] = 1,
    device: Annotated[str, Parameter(help="cpu, cuda, mps or auto.")] = "auto",
    language: Annotated[Literal["en", "zh"] | None, Parameter(help="Of the answer and its report.")] = None,
    json_file: Json = None,
) -> None:
    """Answer a question of the lecture by training: with figures, intervals, a test, and a report.

    Each training is kept as it comes: the same command goes on where one was stopped.
    """
    import branchwork
    from branchwork.cli.progress import Screen

    if language is not None:
        os.environ["BRANCHWORK_LANG"] = language
    result = branchwork.study(
        name,
        preset=preset,
        data=data,
        seeds=seeds,
        seed=seed,
        out=out,
        workers=workers,
        scheduler=scheduler,
        threads=threads,
        device=device,
        observer=Screen(),
    )
    deliver(result, json_file, lambda: _show(result))


def _show(result: "StudyResult") -> None:
    from branchwork.studies.records import measure_name
    from branchwork.studies.wording import mean_words, verdict_name

    measures = list(result.rows[0].means)
    table = make_table(say("net", "网络"), *map(measure_name, measures), measure_name("macs"))
    for row in result.rows:
        means = [mean_words(measure, row.means[measure]) for measure in measures]
        table.add_row(row.label, *means, f"{row.macs:,}")
    show(
        table,
        *(
            f"{finding.question} {verdict_name(finding.verdict).upper()}\n  {finding.words}"
            for finding in result.findings
        ),
        say(
            f"{result.trainings} trainings on {result.data}, {len(result.seeds)} seeds; report: {result.report}",
            f"在 {result.data} 上训练 {result.trainings} 次，{len(result.seeds)} 个种子；报告：{result.report}",
        ),
    )
