"""The report of `select`: accuracy against MACs as a staircase, and in which order the branches left."""

from collections.abc import Sequence
from html import escape
from itertools import pairwise

from branchwork.catalogue.resolve import short_name
from branchwork.explaining.selection import Selection, Size
from branchwork.figures import BAD, GOOD, INK, inline_svg, new_figure, plain_axes
from branchwork.language import enumerated, say
from branchwork.pages import cards, footer, page, paragraph, plot, section, table


def selection_page(selection: Selection, training: str) -> str:
    """Return the report as HTML; `training` is the file beside it with the report of the smaller net's training."""
    sizes = selection.sizes
    link = f'<a href="{escape(training)}">{escape(training)}</a>'
    parts = [
        paragraph(
            say(
                "Goal: {goal}. Data: {data}, seed {seed}. Validation images decided; the test images were read once, "
                "at the end.",
                **vars(selection),
            )
        ),
        *([paragraph(say("The goal was not reached: {why}", why=selection.missed))] if selection.missed else []),
        cards(*_cards(selection)),
        section(
            say("Accuracy against MACs"),
            say(
                "Each step down is a branch that left: its width is what the branch cost, its height what the net lost "
                "without it, after brief fine-tuning."
            ),
            plot(_staircase(selection), least=0.54),
        ),
        section(
            say("Step by step"),
            say("At each step, branches were left out on trial; the one missed least was removed for good."),
            table(
                (say("left"), say("branches in the net"), say("validation"), say("loss"), say("MACs"), say("of all")),
                [_row(size, sizes[0]) for size in sizes],
            ),
        ),
        section(
            say("Importance, and the size of weights"),
            by_weights(selection),
            table(
                (say("branch"), say("rank by removal"), say("rank by weights"), say("weight size"), ""),
                worth_rows(selection),
            ),
        ),
        f"<p>{say('The training of the smaller net is in {link}.', link=link)}</p>",
        footer(say("Made by Branchwork. The figures are also in selection.json.")),
    ]
    title = say("The branches of {net} that are worth their cost", net=short_name(selection.whole))
    return page(title, parts)


def worth_rows(selection: Selection) -> list[tuple[str, ...]]:
    """Return the rows of the table of branches: both ranks, the size of the weights, and whether it was kept."""
    return [
        (
            branch.group,
            str(branch.rank_by_removal),
            str(branch.rank_by_weights),
            "–" if branch.weight_size is None else f"{branch.weight_size:.4f}",
            say("kept") if branch.kept else "",
        )
        for branch in selection.worth
    ]


def by_weights(selection: Selection) -> str:
    """Say which branches would have been kept by the size of their weights."""
    left = [branch.group for branch in selection.worth if branch.kept]
    largest = [branch.group for branch in selection.worth if branch.rank_by_weights <= len(left)]
    if not left:
        return ""
    if largest == left:
        return say("By the size of the weights, the same branches would have been kept.")
    return say(
        "By the size of the weights, {largest} would have been kept instead of {left}.",
        largest=_few(largest),
        left=_few(left),
    )


def _few(names: Sequence[str]) -> str:
    return enumerated(names, 6)


def _cards(selection: Selection) -> list[tuple[str, str, str]]:
    before, after, sizes = selection.before, selection.after, selection.sizes
    low, high = after.test_interval
    left = sizes[-1].left
    return [
        (
            say("MACs per image"),
            f"{after.macs:,}",
            say("{share:.0%} of {whole:,}", share=after.macs / before.macs, whole=before.macs),
        ),
        (
            say("parameters"),
            f"{after.parameters:,}",
            say("{share:.0%} of {whole:,}", share=after.parameters / before.parameters, whole=before.parameters),
        ),
        (
            say("branches left"),
            " ".join(left) if len(left) <= 4 else str(len(left)),
            say("of {branches}", branches=" ".join(sizes[0].left) if len(sizes[0].left) <= 6 else len(sizes[0].left)),
        ),
        (
            say("test accuracy"),
            f"{after.test_accuracy:.2%}",
            say(
                "{low:.2%} to {high:.2%} (95%); before: {accuracy:.2%}",
                low=low,
                high=high,
                accuracy=before.test_accuracy,
            ),
        ),
        (
            say("validation accuracy"),
            f"{after.validation_accuracy:.2%}",
            say("before: {accuracy:.2%}", accuracy=before.validation_accuracy),
        ),
        (
            say("time"),
            say("{seconds:.0f} s", seconds=selection.seconds),
            say("{steps:,} steps of fine-tuning", steps=selection.steps),
        ),
    ]


def _row(size: Size, whole: Size) -> tuple[str, ...]:
    return (
        size.removed or "–",
        _few(size.left),
        f"{size.validation_accuracy:.2%}",
        f"{size.validation_loss:.4f}",
        f"{size.macs:,}",
        f"{size.macs / whole.macs:.0%}",
    )


def _staircase(selection: Selection) -> str:
    sizes = selection.sizes
    macs = [size.macs / 1e6 for size in sizes]
    accuracies = [100 * size.validation_accuracy for size in sizes]
    with new_figure(6.4, 3.8) as figure:
        axes = figure.subplots()
        axes.step(macs, accuracies, where="post", color=GOOD, linewidth=1.8)
        axes.plot(macs, accuracies, "o", color=GOOD)
        many = len(sizes) > 9
        for before, size in pairwise(sizes):
            axes.annotate(
                f"− {size.removed}", ((before.macs + size.macs) / 2e6, 100 * before.validation_accuracy),
                xytext=(0, 4), textcoords="offset points", ha="left" if many else "center", va="bottom",
                rotation=50 if many else 0, fontsize=8 if many else 10,
            )  # fmt: skip
        axes.plot(macs[-1], 100 * selection.after.validation_accuracy, "D", color=BAD, label=say("trained to the end"))
        axes.axhline(accuracies[0], color=INK, alpha=0.4, linewidth=1, linestyle="--", label=say("the whole net"))
        axes.margins(x=0.06, y=0.18)
        axes.invert_xaxis()
        axes.set(xlabel=say("MACs per image, millions"), ylabel=say("validation accuracy, percent"))
        plain_axes(axes)
        axes.legend(frameon=False, loc="lower left")
        return inline_svg(figure)
