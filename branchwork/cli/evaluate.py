"""branchwork evaluate"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from branchwork.cli.output import deliver, interval, make_table, show
from branchwork.cli.parameters import Json, Run, RunData, Source
from branchwork.language import say

if TYPE_CHECKING:
    from rich.table import Table

    from branchwork.training.evaluate import Evaluation

# With more classes, nobody could read the confusion matrix.
MOST_CLASSES = 100


def evaluate(
    run: Run,
    /,
    *,
    data: RunData = None,
    top: Annotated[
        int | None, Parameter(help="Also count the answers whose class is among so many; 5 if there are over ten.")
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

    draw = draw or run / "mistakes.png"
    evaluation = branchwork.evaluate(run, data=data, top=top, source=source, draw=draw, progress=True)
    deliver(evaluation, json_file, lambda: _show(evaluation, draw))


def _show(evaluation: "Evaluation", draw: Path) -> None:
    from branchwork.nets.resolve import short_name

    classes = make_table("class", "images", "precision", "recall", "F1")
    for figures in evaluation.classes:
        numbers = (f"{number:.2%}" for number in (figures.precision, figures.recall, figures.f1))
        classes.add_row(figures.name, f"{figures.images:,}", *numbers)

    wrong = evaluation.images - sum(row[index] for index, row in enumerate(evaluation.confusion))
    show(
        classes,
        _confusion(evaluation),
        f"{short_name(evaluation.net)} on {evaluation.data}: {evaluation.accuracy:.2%} of {evaluation.images:,} "
        f"test images, 95% interval {interval(evaluation.interval)}; {wrong:,} misclassified",
        *_more(evaluation),
        *([f"the most confident mistakes: {draw}"] if wrong else []),
    )


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
            "equally many images",
            mass=100 * calibration.ece_equal_mass,
            width=100 * calibration.ece,
            bins=BINS,
        )
    )
    return lines


def _confusion(evaluation: "Evaluation") -> "Table | str":
    names = [figures.name for figures in evaluation.classes]
    if len(names) > MOST_CLASSES:
        return f"the confusion matrix of {len(names):,} classes is too large to read: see --json FILE"
    # Long names would make the matrix too wide: its columns are then numbered.
    numbered = max(map(len, names)) > 4
    headers = [str(index) for index in range(len(names))] if numbered else names
    confusion = make_table(
        "true class", *headers, title="Confusion matrix: a row for each true class, a column for each answer"
    )
    confusion.padding = (0, 1, 0, 0)
    for index, (name, row) in enumerate(zip(names, evaluation.confusion, strict=True)):
        label = f"{index} {name}" if numbered else name
        confusion.add_row(label, *(f"{count:,}" if count else "·" for count in row))
    return confusion
