"""branchwork evaluate"""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from branchwork.cli.output import DATA, Json, Source, deliver, interval, make_table, show

if TYPE_CHECKING:
    from rich.table import Table

    from branchwork.training.evaluate import Evaluation

# A confusion matrix of more classes is for programs.
MOST_CLASSES = 100


def evaluate(
    run: Annotated[Path, Parameter(help="A run folder that branchwork train has made.")],
    /,
    *,
    data: Annotated[str | None, Parameter(help=f"{DATA}; by default what the net was trained for.")] = None,
    picture: Annotated[
        Path | None,
        Parameter(help="Where the surest mistakes are drawn; mistakes.png in the run folder by default."),
    ] = None,
    source: Source = None,
    json_file: Json = None,
) -> None:
    """Test a trained net: accuracy, each class, the confusion matrix, and the surest mistakes as a picture."""
    import branchwork
    from branchwork.cli.progress import Screen

    picture = picture or run / "mistakes.png"
    evaluation = branchwork.evaluate(run, data=data, source=source, picture=picture, observer=Screen())
    deliver(evaluation, json_file, lambda: _show(evaluation, picture))


def _show(evaluation: "Evaluation", picture: Path) -> None:
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
        f"test images, 95% interval {interval(evaluation.interval)}; {wrong:,} misread",
        *([f"the surest mistakes: {picture}"] if wrong else []),
    )


def _confusion(evaluation: "Evaluation") -> "Table | str":
    names = [figures.name for figures in evaluation.classes]
    if len(names) > MOST_CLASSES:
        return f"the confusion matrix of {len(names):,} classes is too large to be read: --json FILE has it"
    # Long names would make the matrix too wide to be read: its columns are then numbered.
    long = max(map(len, names)) > 4
    heads = [str(index) for index in range(len(names))] if long else names
    confusion = make_table(
        "true class", *heads, title="Confusion matrix: a row for each true class, a column for each answer"
    )
    confusion.padding = (0, 1, 0, 0)
    for index, (name, row) in enumerate(zip(names, evaluation.confusion, strict=True)):
        label = f"{index} {name}" if long else name
        confusion.add_row(label, *(f"{count:,}" if count else "·" for count in row))
    return confusion
