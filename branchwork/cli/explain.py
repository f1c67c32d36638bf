"""branchwork explain"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from branchwork.cli.output import deliver, interval, make_table, show
from branchwork.cli.parameters import STDOUT, Json, Run, RunData, Source
from branchwork.errors import ExplainError
from branchwork.language import milliseconds, say

if TYPE_CHECKING:
    from rich.table import Table

    from branchwork.explaining.results import Explanation, PictureExplanation, Relation


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
    data: RunData = None,
    count: Annotated[
        int | None, Parameter(name="--images", help="Measure on this many images, drawn at random; by default on all.")
    ] = None,
    draw: Annotated[Path | None, Parameter(help="Draw the explanation into this file, .svg or .png.")] = None,
    source: Source = None,
    json_file: Json = None,
) -> None:
    """Show what each branch of a trained net contributes and costs; with pictures, what speaks for their class."""
    import branchwork

    if pictures:
        if data is not None or count is not None or source is not None:
            raise ExplainError(
                "--data, --images and --source are for a whole net: leave them out, or leave out the pictures"
            )
        explanations = branchwork.explain_pictures(run, pictures, target=class_name, draw=draw)
        deliver(explanations, json_file, lambda: _show_pictures(explanations))
    else:
        if class_name is not None:
            raise ExplainError("--class goes with pictures: name some, or leave it out")
        explanation = branchwork.explain(run, data=data, images=count, source=source, draw=draw, progress=True)
        deliver(explanation, json_file, lambda: _show(explanation))
    if draw is not None and json_file != STDOUT:
        show(f"drawn: {draw}")


def _show(found: "Explanation") -> None:
    title = (
        f"{found.net} is right on {found.accuracy:.2%} ({interval(found.interval)}) of {found.images:,} {found.split} "
        f"images of {found.data}"
    )
    single = [f"{', '.join(found.single)}: a single branch, which cannot be removed"] if found.single else []
    show(
        _branch_table(found, title),
        "lost: points of accuracy, with the 95% interval of the change on the same images,",
        "  by mean: where each channel of the branch is its mean over images and positions; by zero: where it is 0",
        "weights: root mean square of its kernels and matrices; output: root mean square of its output",
        *(["F/x: ‖F(x)‖/‖x‖, the residual beside the shortcut, mean over images"] if found.residuals else []),
        f"ms: a batch of {found.timed_batch} images, as written, {found.threads} "
        f"thread{'s' if found.threads > 1 else ''}",
        *single,
        _relation_table(found),
        *verdict_lines(found),
    )


def _branch_table(found: "Explanation", title: str) -> "Table":
    table = make_table(
        "branch", "lost by mean", "lost by zero", "weights", "output", "params", "MACs", "ms", title=title
    )
    table.padding = (0, 1, 0, 0)
    join = ""
    for branch in found.branches:
        if branch.join != join:
            join = branch.join
            ratio = found.residuals.get(join)
            table.add_row(join, "" if ratio is None else f"F/x {ratio:.2f}", style="bold")
        table.add_row(
            f"  {branch.branch}",
            _points(branch.lost_by_mean, branch.lost_by_mean_interval),
            _points(branch.lost_by_zero, branch.lost_by_zero_interval),
            "·" if branch.weight_rms is None else f"{branch.weight_rms:.3g}",
            f"{branch.activation_rms:.3g}",
            f"{branch.parameters:,}" if branch.parameters else "·",
            f"{branch.macs:,}" if branch.macs else "·",
            milliseconds(branch.milliseconds) if branch.milliseconds else "·",
        )
    return table


def _points(value: float, bounds: tuple[float, float]) -> str:
    return f"{100 * value:.2f} [{100 * bounds[0]:.2f}, {100 * bounds[1]:.2f}]"


def _relation_table(found: "Explanation") -> "Table":
    title = "Rank correlation of the accuracy lost (by mean) with size and cost"
    table = make_table("", "branches", "Spearman [95%]", "answer", title=title)
    for relation in found.relations:
        measure = _MEASURES[relation.measure] + (f" ({relation.join})" if relation.join else "")
        table.add_row(measure, str(relation.count), _correlation(relation), relation.verdict)
    return table


_MEASURES = {
    "weight_rms": "weights, root mean square",
    "weight_norm": "weights, root of all squares",
    "activation_rms": "output",
    "macs": "MACs",
}


def _correlation(relation: "Relation") -> str:
    if relation.spearman is None:
        return "·"
    bounds = "" if relation.interval is None else f" [{relation.interval[0]:.2f}, {relation.interval[1]:.2f}]"
    return f"{relation.spearman:.2f}{bounds}"


def verdict_lines(found: "Explanation") -> list[str]:
    """Answer the lecture's claim, over all branches with weights, by two measures of how large weights are."""
    mean, total = (
        next(r for r in found.relations if r.measure == measure and r.join is None)
        for measure in ("weight_rms", "weight_norm")
    )
    claim = say("Does the branch that is worth more end up with the larger weights, as the lecture says?")
    answers = {
        "yes": say("yes, the two orders agree"),
        "no": say("no, the size of the weights says little about the worth"),
        "too close to call": say("too close to call"),
        "too few branches to tell": say("too few branches to tell: with fewer than five, any order may be chance"),
    }
    by_mean, by_total = (
        say("by the mean size of its weights: "),
        say("by their total size: "),
    )
    return [
        claim,
        f"  {by_mean}{answers[mean.verdict]} (n = {mean.count}, ρ = {_correlation(mean)})",
        f"  {by_total}{answers[total.verdict]} (n = {total.count}, ρ = {_correlation(total)})",
    ]


def _show_pictures(explanations: "tuple[PictureExplanation, ...]") -> None:
    for picture in explanations:
        prediction = "" if picture.target == picture.predicted else f", predicted as {picture.predicted}"
        title = f"{picture.image}: class {picture.target}, {picture.probability:.1%}{prediction}"
        gained = picture.logit - picture.black_logit
        table = make_table("branch", "share", "loss if blind", "loss by zero", "probability if blind")
        for join in picture.joins:
            table.add_row(join.join, f"{join.difference:.2f}", style="bold")
            for branch in join.branches:
                table.add_row(
                    f"  {branch.branch}",
                    f"{branch.share:.2f}",
                    f"{branch.lost_blind:.2f}",
                    f"{branch.lost_by_zero:.2f}",
                    f"{branch.probability_blind:.1%}",
                )
        show(
            title,
            table if picture.joins else "the net has no joins, and so no branches to compare",
            f"logit {picture.logit:.2f}, {gained:+.2f} against a black picture: the sum of the integrated gradients",
            f"  (off by {picture.error:.2g} after {picture.steps} steps{_warning(picture.complete)})",
            *(
                f"{join.join}: shares add up to {join.difference:.2f}, off by {join.error:.2g}{_warning(join.complete)}"
                for join in picture.joins
                if not join.complete
            ),
        )
    if any(picture.joins for picture in explanations):
        show(
            "share: part of the class's logit, compared with a black picture; shares add up to the join's number",
            "  (integrated gradients at the join, starting from the branches' outputs for the black picture)",
            "loss if blind: how much the logit falls if only this branch reads the black picture;",
            "  probability if blind: the probability of the class then;",
            "loss by zero: how much the logit falls if the branch's output is 0",
        )


def _warning(complete: bool) -> str:
    return "" if complete else ", more than 1%: read them with caution"
