"""branchwork explain"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.text import Text

from branchwork.cli.output import Part, Table, deliver, interval, make_table, show, where_drawn
from branchwork.cli.parameters import NOT_DRAWN, Drawing, Json, Run, RunData, Source
from branchwork.errors import ExplainError
from branchwork.language import mark, milliseconds, say
from branchwork.palette import colours_by_join

if TYPE_CHECKING:
    from branchwork.explaining.results import Explanation, PictureExplanation, Relation


@dataclass(frozen=True)
class DataFlags:
    """The images that a whole net is measured on."""

    data: RunData = None
    count: Annotated[
        int | None, Parameter(name="--images", help="Measure on this many images, drawn at random; by default on all.")
    ] = None
    source: Source = None


def explain(
    run: Run,
    /,
    *pictures: Annotated[
        Path, Parameter(help="Pictures, or folders of them; without any, the whole net is explained.")
    ],
    class_name: Annotated[
        str | None,
        Parameter(name="--class", help="With pictures: the class to explain; by default the predicted one."),
    ] = None,
    measured: Annotated[DataFlags, Parameter(name="*")] = DataFlags(),
    drawing: Drawing = NOT_DRAWN,
    json_file: Json = None,
) -> None:
    """Show what each branch of a trained net contributes and costs; with pictures, what supports their class."""
    import branchwork

    data, count, source = measured.data, measured.count, measured.source
    draw, theme = drawing.draw, drawing.theme
    if pictures:
        if data is not None or count is not None or source is not None:
            raise ExplainError(
                "--data, --images and --source are for a whole net: leave them out, or leave out the pictures"
            )
        explanations = branchwork.explain_pictures(run, pictures, target=class_name, draw=draw, theme=theme)
        deliver(explanations, json_file, lambda: show(*picture_parts(explanations, draw)))
    else:
        if class_name is not None:
            raise ExplainError("--class goes with pictures: name some, or leave it out")
        explanation = branchwork.explain(
            run, data=data, images=count, source=source, draw=draw, theme=theme, progress=True
        )
        deliver(explanation, json_file, lambda: show(*parts(explanation, draw)))


def parts(found: "Explanation", draw: Path | None = None) -> list[Part]:
    from branchwork.explaining.ranks import WEAK  # imports torch

    single = say("{joins}: a single branch, which cannot be removed.", joins=", ".join(found.single))
    return [
        _branch_table(found),
        say("What is lost is in points of accuracy, in brackets the 95% interval of the change on the same images."),
        say("Replaced by its mean: each channel of the branch gives its mean over all images and positions."),
        say("Replaced by zero: the branch gives 0, which the rest of the net may never have seen in training."),
        say(
            "Milliseconds are for a batch of {batch} images, as written; threads: {threads}.",
            batch=found.timed_batch,
            threads=found.threads,
        ),
        say(
            "Size of weights and of output: root mean square of the kernels and matrices, and of what the branch gives."
        ),
        *([single] if found.single else []),
        *([_residual_table(found)] if found.residuals else []),
        _relation_table(found),
        say(
            "Yes: the whole interval is above 0. No: all of it is below {weak}, so there is no clear "
            "positive correlation.",
            weak=WEAK,
        ),
        *verdict_lines(found),
        *where_drawn("drawn: {file}", draw),
    ]


def _branch_table(found: "Explanation") -> Table:
    """Return a row for each branch, the worth and the costs first: a narrow terminal drops columns on the right."""
    title = say(
        "{net} is right on {accuracy:.2%} ({interval}) of {images}",
        **(vars(found) | {"interval": interval(found.interval), "images": found.measured_on}),
    )
    table = make_table(
        "branch", "accuracy lost without it\n(replaced by its mean)", "lost if\nreplaced\nby zero", "share of\nMACs",
        "milliseconds", "size of\nweights", "size of\noutput", "parameters", "MACs", title=title,
    )  # fmt: skip
    table.padding = (0, 1, 0, 0)
    colours = colours_by_join((branch.join, branch.branch) for branch in found.branches)
    join = ""
    for branch in found.branches:
        if branch.join != join:
            join = branch.join
            table.add_row(join, style="bold")
        low, high = branch.lost_by_mean_interval
        table.add_row(
            Text(f"  {branch.branch}", style=colours[branch.join, branch.branch]),
            f"{100 * branch.lost_by_mean:.2f} [{100 * low:.2f}, {100 * high:.2f}]",
            f"{100 * branch.lost_by_zero:.2f}",
            f"{branch.macs / found.macs:.1%}" if branch.macs else "·",
            milliseconds(branch.milliseconds) if branch.milliseconds else "·",
            "·" if branch.weight_rms is None else f"{branch.weight_rms:.3g}",
            f"{branch.activation_rms:.3g}",
            f"{branch.parameters:,}" if branch.parameters else "·",
            f"{branch.macs:,}" if branch.macs else "·",
        )
    return table


def _residual_table(found: "Explanation") -> Table:
    title = say("How large is the residual F(x) compared with its shortcut x? ‖F(x)‖/‖x‖, mean over the images")
    table = make_table("join", "times the shortcut", title=title)
    for join, ratio in found.residuals.items():
        table.add_row(join, f"{ratio:.2f}")
    return table


def _relation_table(found: "Explanation") -> Table:
    title = say("Is more lost without larger branches? Spearman's rank correlation: 1 the same order, −1 the opposite")
    table = make_table("size", "branches", "correlation [95%]", "answer", title=title)
    for relation in found.relations:
        measure = say(_MEASURES[relation.measure]) + (f" ({relation.join})" if relation.join else "")
        table.add_row(measure, str(relation.count), _correlation(relation), say(relation.verdict))
    return table


_MEASURES = {
    "weight_rms": mark("weights, root mean square"),
    "weight_norm": mark("weights, root of the sum of squares"),
    "activation_rms": mark("output, root mean square"),
    "macs": mark("MACs"),
}


def _correlation(relation: "Relation") -> str:
    if relation.spearman is None:
        return "·"
    bounds = "" if relation.interval is None else f" [{relation.interval[0]:.2f}, {relation.interval[1]:.2f}]"
    return f"{relation.spearman:.2f}{bounds}"


def verdict_lines(found: "Explanation") -> list[str]:
    """Answer the lecture's claim, over all branches with weights, by two measures of how large weights are."""
    by = {"weight_rms": say("by the mean size of its weights: "), "weight_norm": say("by their total size: ")}
    overall = {str(relation.measure): relation for relation in found.relations if relation.join is None}
    if overall["weight_rms"].verdict == "too few branches to tell":  # and so by the other measure
        return [say("too few branches to tell: with fewer than five, any order may be chance")]
    lines = [say("Does the branch that is worth more end up with the larger weights, as the lecture says?")]
    answers = {
        "yes": say("yes, the two orders agree"),
        "no": say("no, larger weights do not mean more worth"),
        "too close to call": say("too close to call"),
    }
    for measure, words in by.items():
        relation = overall[measure]
        lines.append(f"  {words}{answers[relation.verdict]} (n = {relation.count}, ρ = {_correlation(relation)})")
    return lines


def picture_parts(explanations: "tuple[PictureExplanation, ...]", draw: Path | None = None) -> list[Part]:
    said: list[Part] = []
    for picture in explanations:
        said += [
            _title(picture),
            say(
                "The net's score for {target!r} (its logit) is {score:.2f}, {gained:+.2f} against a black picture.",
                target=picture.target,
                score=picture.logit,
                gained=picture.logit - picture.black_logit,
            ),
            say("The parts of its pixels add up to that within {error:.2g}.", error=abs(picture.error))
            if picture.complete
            else say(
                "The parts of its pixels are off by {error:.2g}, more than 1%: read them with caution.",
                error=picture.error,
            ),
            _evidence_table(picture) if picture.joins else say("The net has no joins, and so no branches to compare."),
            *(
                say(
                    "The parts of the branches of {join} are off by {error:.2g}, more than 1%: read them with caution.",
                    join=join.join,
                    error=join.error,
                )
                for join in picture.joins
                if not join.complete
            ),
        ]
    if any(picture.joins for picture in explanations):
        said += [
            say(
                "Adds to the score: against a black picture, by integrated gradients; the branches of a join add up to "
                "the join's figure."
            ),
            say("Sees a black picture: the branch gives its output for black, and everything else sees the picture."),
        ]
    return [*said, *where_drawn("drawn: {file}", draw)]


def _title(picture: "PictureExplanation") -> str:
    values = {"image": picture.image, "predicted": picture.predicted, "share": f"{picture.probability:.1%}"}
    if picture.target == picture.predicted:
        return say("{image}: the net reads {predicted!r} ({share})", **values)
    return say(
        "{image}: the net reads {predicted!r}; this explains {target!r} ({share})", target=picture.target, **values
    )


def _evidence_table(picture: "PictureExplanation") -> Table:
    target = picture.target
    table = make_table(
        "branch",
        say("adds to the\nscore of {target!r}", target=target),
        "score lost if it\nsees a black picture",
        say("probability of\n{target!r} then", target=target),
        "score lost\nif it gives 0",
    )
    colours = colours_by_join((join.join, branch.branch) for join in picture.joins for branch in join.branches)
    for join in picture.joins:
        table.add_row(join.join, f"{join.difference:.2f}", style="bold")
        for branch in join.branches:
            table.add_row(
                Text(f"  {branch.branch}", style=colours[join.join, branch.branch]),
                f"{branch.share:.2f}",
                f"{branch.lost_blind:.2f}",
                f"{branch.probability_blind:.1%}",
                f"{branch.lost_by_zero:.2f}",
            )
    return table
