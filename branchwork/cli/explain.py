"""branchwork explain"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from branchwork.cli.output import DATA, STDOUT, Json, Source, deliver, interval, make_table, show
from branchwork.errors import ExplainError
from branchwork.language import milliseconds, say

if TYPE_CHECKING:
    from rich.table import Table

    from branchwork.explaining.figures import Explanation, PictureExplanation, Relation


def explain(
    run: Annotated[Path, Parameter(help="A run folder that branchwork train has made.")],
    /,
    *images: Annotated[Path, Parameter(help="Pictures, or folders of them; without any, the whole net is explained.")],
    class_name: Annotated[
        str | None,
        Parameter(name="--class", help="With pictures: the class to explain; by default what the net takes each for."),
    ] = None,
    data: Annotated[str | None, Parameter(help=f"{DATA}; by default what the net was trained for.")] = None,
    count: Annotated[
        int | None, Parameter(name="--images", help="Measure on so many images, drawn at random; on all by default.")
    ] = None,
    draw: Annotated[Path | None, Parameter(help="Draw it into this file, .svg or .png.")] = None,
    source: Source = None,
    json_file: Json = None,
) -> None:
    """Show what each branch of a trained net contributes and costs, or with pictures, what speaks for their class."""
    import branchwork
    from branchwork.cli.progress import Screen

    if images:
        if data is not None or count is not None or source is not None:
            raise ExplainError(
                "--data, --images and --source are for a whole net: leave them out, or leave out the pictures"
            )
        pictures = branchwork.explain_pictures(run, images, target=class_name, picture=draw)
        deliver(pictures, json_file, lambda: _show_pictures(pictures))
    else:
        if class_name is not None:
            raise ExplainError("--class goes with pictures: name some, or leave it out")
        found = branchwork.explain(run, data=data, images=count, source=source, picture=draw, observer=Screen())
        deliver(found, json_file, lambda: _show(found))
    if draw is not None and json_file != STDOUT:
        show(f"drawn: {draw}")


def _show(found: "Explanation") -> None:
    about = (
        f"{found.net} reads {found.accuracy:.2%} ({interval(found.interval)}) of {found.images:,} {found.split} images "
        f"of {found.data}"
    )
    alone = [f"{', '.join(found.single)}: one branch alone, so that nothing can be taken out"] if found.single else []
    show(
        _branches(found, about),
        "lost: points of accuracy, with the 95% interval of the change on the same images,",
        "  by mean: where each channel of the branch is its mean over images and positions; by zero: where it is 0",
        "weights: root of the mean square in its kernels and matrices; output: that of what it gives to the join",
        *(["F/x: ‖F(x)‖/‖x‖, the residual beside the shortcut, mean over images"] if found.residuals else []),
        f"ms: a batch of {found.timed_batch} images, as written, {found.threads} "
        f"thread{'s' if found.threads > 1 else ''}",
        *alone,
        _relations(found),
        *_verdict(found),
    )


def _branches(found: "Explanation", about: str) -> "Table":
    table = make_table(
        "branch", "lost by mean", "lost by zero", "weights", "output", "params", "MACs", "ms", title=about
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


def _relations(found: "Explanation") -> "Table":
    title = "Do the branches that are worth more (lost by mean) have more of it?"
    table = make_table("", "branches", "Spearman [95%]", "answer", title=title)
    for relation in found.relations:
        what = _MEASURES[relation.measure] + (f" ({relation.join})" if relation.join else "")
        table.add_row(
            what,
            str(relation.count),
            _correlation(relation),
            relation.verdict,
        )
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


def _verdict(found: "Explanation") -> list[str]:
    """The answer to the lecture's claim, over all branches with weights, by both ways to say how large those are."""
    mean, total = (
        next(r for r in found.relations if r.measure == measure and r.join is None)
        for measure in ("weight_rms", "weight_norm")
    )
    claim = say(
        "Does the branch that is worth more end up with the larger weights, as the lecture says?",
        "课上说，好的卷积核最后权重更大。更有价值的分支，权重真的更大吗？",
    )
    answers = {
        "yes": say("yes, the two orders go together", "是的，两种排序一致"),
        "no": say("no, their size says little about the worth", "不是，权重的大小说明不了多少价值"),
        "too close to call": say("too close to call", "难分高下，无法下结论"),
        "too few branches to tell": say(
            "too few branches to tell, since of fewer than five any order may be chance",
            "分支太少，无法判断：少于五个时，任何顺序都可能只是偶然",
        ),
    }
    a_weight, all_of_them = (
        say("by the size of a weight", "按单个权重的大小"),
        say("by that of all", "按全部权重的大小"),
    )
    colon = say(": ", "：")
    return [
        claim,
        f"  {a_weight}{colon}{answers[mean.verdict]} (n = {mean.count}, ρ = {_correlation(mean)})",
        f"  {all_of_them}{colon}{answers[total.verdict]} (n = {total.count}, ρ = {_correlation(total)})",
    ]


def _show_pictures(found: "tuple[PictureExplanation, ...]") -> None:
    for one in found:
        other = "" if one.target == one.predicted else f", taken for {one.predicted}"
        title = f"{one.image}: class {one.target}, {one.probability:.1%}{other}"
        gained = one.logit - one.black_logit
        table = make_table("branch", "share", "lost blind", "lost by zero", "left of the class")
        for join in one.joins:
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
            table if one.joins else "the net has no joins: no branches to tell apart",
            f"logit {one.logit:.2f}, {gained:+.2f} against a black picture: what the integrated gradients add up to",
            f"  (off by {one.error:.2g} after {one.steps} steps{_warning(one.complete)})",
            *(
                f"{join.join}: shares add up to {join.difference:.2f}, off by {join.error:.2g}{_warning(join.complete)}"
                for join in one.joins
                if not join.complete
            ),
        )
    if any(one.joins for one in found):
        show(
            "share: of the class's logit, against a black picture; shares add up to the join's number",
            "  (integrated gradients at the join, from what its branches give for the black picture)",
            "lost blind: what the logit falls by where this branch alone sees the black picture, and beside it",
            "  what is then left of the class's probability; by zero: where the branch gives 0",
        )


def _warning(complete: bool) -> str:
    return "" if complete else ", more than 1%: read them with care"
