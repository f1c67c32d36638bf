"""branchwork select"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.text import Text

from branchwork.cli.output import Part, deliver, interval, make_table, show
from branchwork.cli.parameters import Device, Json, RunData, Source, Threads, parse_drop
from branchwork.errors import RecipeError
from branchwork.language import say
from branchwork.palette import branch_colours

if TYPE_CHECKING:
    from branchwork.datasets.dataset import DataSet
    from branchwork.explaining.selection import Selection


@dataclass(frozen=True)
class GoalFlags:
    """How far to go."""

    keep: Annotated[
        int | None, Parameter(help="Keep this many branches at each join, where branches meet; 2 by default.")
    ] = None
    macs: Annotated[float | None, Parameter(help="Keep at most this share of the net's MACs, such as 0.5.")] = None
    drop: Annotated[str | None, Parameter(help="Lose at most this much validation accuracy, such as 0.2%.")] = None
    each: Annotated[
        bool,
        Parameter(negative=(), help="Decide for each join separately: b5 of incep1 may go while b5 of incep2 stays."),
    ] = False


@dataclass(frozen=True)
class TrainFlags:
    """How the nets are trained."""

    epochs: Annotated[int | None, Parameter(help="Epochs of each training; by default the recipe's.")] = None
    seed: Annotated[int | None, Parameter(help="Seed of a net that is trained first; 0 by default.")] = None
    device: Device = "auto"
    threads: Threads = None


def select(
    net: Annotated[str, Parameter(help="A run folder, or a net, which is then trained first.")],
    /,
    *,
    data: RunData = None,
    goal: Annotated[GoalFlags, Parameter(name="*", group="Goal")] = GoalFlags(),
    training: Annotated[TrainFlags, Parameter(name="*")] = TrainFlags(),
    out: Annotated[
        Path | None, Parameter(help="The smaller net's run folder; by default runs/NET-DATA-selected-1, -2, …")
    ] = None,
    source: Source = None,
    json_file: Json = None,
) -> None:
    """Remove branches from a trained net, the least important first, and fine-tune, until the goal is reached.

    The choice is made on validation images. The result is a run folder like any other. After Ctrl-C, the same
    command with --out continues.
    """
    fraction = parse_drop(goal.drop)
    keep = 2 if (goal.keep, goal.macs, fraction) == (None, None, None) else goal.keep

    import branchwork
    from branchwork.screen import watch
    from branchwork.training.evaluate import load_for
    from branchwork.training.run import MODEL, holds

    options = branchwork.Options(seed=training.seed or 0, device=training.device, threads=training.threads)
    is_run, observer = bool(holds(Path(net), MODEL)), watch(True)
    if is_run and training.seed is not None:
        raise RecipeError("{net} is a run, whose seed decides what is held out: leave out --seed", net=net)
    data_set: str | DataSet | None = data
    if source is not None and is_run:
        data_set = load_for(branchwork.load_run(net).model, data, source, observer=observer)
    elif source is not None:
        data_set = branchwork.load_data(data or "auto", source=source, progress=observer)
    selection = branchwork.select(
        net,
        data=data_set,
        goal=branchwork.Goal(keep=keep, macs=goal.macs, drop=fraction, each=goal.each),
        epochs=training.epochs,
        options=options,
        out=out,
        progress=observer,
    )
    deliver(selection, json_file, lambda: show(*parts(selection)))


def parts(selection: "Selection") -> list[Part]:
    from branchwork.catalogue.resolve import short_name
    from branchwork.explaining.selection_report import by_weights, worth_rows

    sizes = make_table(
        "branches left", "removed", "validation", "MACs", "of all", "loss", "parameters", "steps", "seconds",
        spare=("seconds", "steps", "parameters", "loss"),
    )  # fmt: skip
    for size in selection.sizes:
        names = " ".join(size.left)
        sizes.add_row(
            names
            if len(names) <= 30
            else say("{left} of {all}", left=len(size.left), all=len(selection.sizes[0].left)),
            size.removed or "",
            f"{size.validation_accuracy:.2%}",
            f"{size.macs:,}",
            f"{size.macs / selection.sizes[0].macs:.0%}",
            f"{size.validation_loss:.4f}",
            f"{size.parameters:,}",
            str(size.steps),
            f"{size.seconds:.1f}",
        )
    worth = make_table("branch", "rank by removal", "rank by weights", "weight size", "", spare=("weight size",))
    kinds = list(dict.fromkeys(branch.group.rpartition(".")[2] for branch in selection.worth))
    colours = dict(zip(kinds, branch_colours(kinds), strict=True))
    for group, *cells in worth_rows(selection):
        worth.add_row(Text(group, style=colours[group.rpartition(".")[2]]), *cells)
    ends = make_table("net", "test accuracy (95%)", "validation", "MACs", "parameters", spare=("parameters",))
    for net, figures in ((selection.whole, selection.before), (selection.net, selection.after)):
        ends.add_row(
            short_name(net),
            f"{figures.test_accuracy:.2%} ({interval(figures.test_interval)})",
            f"{figures.validation_accuracy:.2%}",
            f"{figures.macs:,}",
            f"{figures.parameters:,}",
        )
    sentence = by_weights(selection)
    return [
        sizes,
        worth,
        *([sentence] if sentence else []),
        ends,
        *([say("The goal was not reached: {why}", why=selection.missed)] if selection.missed else []),
        say("{goal}; {data}, seed {seed}, in {seconds:.1f} s", **vars(selection)),
        say("report: {file}", file=selection.report),
    ]
