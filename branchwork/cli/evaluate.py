"""branchwork evaluate"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter
from rich.text import Text

from branchwork.cli.output import Part, Table, deliver, drawn_beside, fits, interval, make_table, show, where_drawn
from branchwork.cli.parameters import Json, Run, RunData, Source
from branchwork.language import say
from branchwork.palette import LIGHT

if TYPE_CHECKING:
    from branchwork.training.evaluate import Evaluation

# How many classes are named for which the images of one are mistaken.
MOST_MISTAKEN = 3


def evaluate(
    run: Run,
    /,
    *,
    data: RunData = None,
    top: Annotated[
        int | None,
        Parameter(
            help="Also count how often the true class is among the N most probable; "
            "5 by default with more than ten classes."
        ),
    ] = None,
    draw: Annotated[
        Path | None,
        Parameter(help="Where to draw the most confident mistakes; by default mistakes.png in the run folder."),
    ] = None,
    source: Source = None,
    json_file: Json = None,
) -> None:
    """Test a trained net: accuracy, each class, the confusion matrix, and a picture of the most confident mistakes."""
    import branchwork

    draw, left_out = (draw, []) if draw else drawn_beside(run, "mistakes.png")
    evaluation = branchwork.evaluate(run, data=data, top=top, source=source, draw=draw, progress=True)
    lines = [*parts(evaluation, draw), *left_out]
    deliver(evaluation, json_file, lambda: show(*lines))


def parts(evaluation: "Evaluation", draw: Path | None = None) -> list[Part]:
    from branchwork.catalogue.resolve import short_name

    wrong = evaluation.images - sum(row[index] for index, row in enumerate(evaluation.confusion))
    result = say(
        "{net} on {data}: {accuracy:.2%} of {images:,} test images, 95% interval {interval}; {wrong:,} misclassified",
        **(vars(evaluation) | {"net": short_name(evaluation.net), "interval": interval(evaluation.interval)}),
        wrong=wrong,
    )
    drawn = where_drawn("the most confident mistakes: {file}", draw if wrong else None)
    tables = _classes(evaluation), _confusion(evaluation)
    return [*tables, result, *_more(evaluation), *drawn]


def _classes(evaluation: "Evaluation") -> Table:
    """Return a row for each class, with the classes for which its images are taken most often."""
    names = [figures.name for figures in evaluation.classes]
    spare = ("F1", "precision", "images")
    table = make_table("class", "images", "precision", "recall", "F1", "mistaken for", spare=spare)
    table.columns[-1].justify, table.columns[-1].no_wrap = "left", False
    for true, figures in enumerate(evaluation.classes):
        row = evaluation.confusion[true]
        others = sorted((index for index in range(len(row)) if index != true and row[index]), key=lambda i: -row[i])
        mistaken = ", ".join(f"{names[index]}\u00a0({row[index]:,})" for index in others[:MOST_MISTAKEN])
        numbers = (f"{number:.2%}" for number in (figures.precision, figures.recall, figures.f1))
        table.add_row(figures.name, f"{figures.images:,}", *numbers, mistaken)
    return table


def _more(evaluation: "Evaluation") -> list[str]:
    """Say how often the class is among the most probable ones, and whether the probabilities can be believed."""
    from branchwork.training.calibration import BINS

    lines = []
    if evaluation.top is not None:
        share = f"{evaluation.top_accuracy:.2%}"
        lines.append(say("the true class is among the {top} most probable: {share}", top=evaluation.top, share=share))
    calibration = evaluation.calibration
    lines.append(
        say(
            "calibration error: {width:.2f} points over {bins} bins of equal width, {mass:.2f} over {bins} bins of "
            "equal numbers of images",
            mass=100 * calibration.ece_equal_mass,
            width=100 * calibration.ece,
            bins=BINS,
        )
    )
    return lines


def _confusion(evaluation: "Evaluation") -> Table | str:
    from branchwork.training.evaluate import MOST_CLASSES

    names = [figures.name for figures in evaluation.classes]
    if len(names) > MOST_CLASSES:
        return say("the confusion matrix of {n:,} classes is too large to read: see --json FILE", n=len(names))
    title = say("Confusion matrix: a row for each true class, a column for each answer")
    table = make_table("true class", names=names, title=title)
    table.padding = (0, 1, 0, 0)
    for true, (name, row) in enumerate(zip(names, evaluation.confusion, strict=True)):
        cells = (
            Text(f"{count:,}", style="bold" if answer == true else LIGHT.bad) if count else "·"
            for answer, count in enumerate(row)
        )
        table.add_row(name, *cells)
    if not fits(table):
        return say("the confusion matrix is wider than this terminal: see --json FILE")
    return table
