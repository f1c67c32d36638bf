"""branchwork predict"""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from branchwork.cli.output import Part, complain, deliver, make_table, show, where_drawn, write_text
from branchwork.cli.parameters import FILE, STDOUT, Json
from branchwork.errors import RecipeError
from branchwork.language import mark, say

if TYPE_CHECKING:
    from branchwork.training.predict import Prediction


def predict(
    run: Annotated[Path, Parameter(help="A run folder made by branchwork train or, with --weights, a built-in net.")],
    /,
    *pictures: Annotated[
        Path, Parameter(help="Pictures, or folders of them: any size, any colour, dark on light or light on dark.")
    ],
    top: Annotated[int, Parameter(help="How many classes to show for each picture.")] = 3,
    weights: Annotated[
        str | None,
        Parameter(
            help="With a net instead of a run: imagenet, for the weights that torchvision publishes, or a file of them."
        ),
    ] = None,
    draw: Annotated[Path | None, Parameter(help="Draw the pictures, as the net receives them, into this file.")] = None,
    csv_file: Annotated[
        Path | None, FILE, Parameter(name="--csv", help="Write the answers to this file as CSV; - prints them.")
    ] = None,
    json_file: Json = None,
) -> int:
    """Classify pictures with a trained net, with probabilities and reasons to doubt them."""
    if csv_file == json_file == STDOUT:
        raise RecipeError("--csv - and --json - both go to standard output: write one of them to a file")

    import branchwork

    predictions = branchwork.predict(run, pictures, top=top, draw=draw, weights=weights, progress=True)
    if csv_file is not None:
        write_text(_csv(predictions), csv_file)
    deliver(predictions, json_file, lambda: None if csv_file == STDOUT else show(*parts(predictions, draw)))
    failed = [prediction.error for prediction in predictions if prediction.error is not None]
    for error in failed:
        complain(error)
    return 2 if failed else 0


def parts(predictions: "tuple[Prediction, ...]", draw: Path | None = None) -> list[Part]:
    from branchwork.training.doubts import NAMES

    readable = [prediction for prediction in predictions if prediction.error is None]
    if not readable:
        return []
    doubted = [prediction for prediction in readable if prediction.warnings]
    doubts = [mark("doubt")] if doubted else []
    table = make_table("picture", *doubts, "answer", "", *[""] * (2 * (len(readable[0].guesses) - 1)))
    for words in (*table.columns[1 : 1 + len(doubts)], *table.columns[1 + len(doubts) :: 2]):
        words.justify, words.no_wrap = "left", False
    for prediction in readable:
        cells = [cell for guess in prediction.guesses for cell in (guess.name, f"{guess.probability:.1%}")]
        names = ", ".join(say(NAMES[doubt.kind]) for doubt in prediction.warnings)
        table.add_row(prediction.image, *([names] if doubted else []), *cells)
    return [
        table,
        *(f"{prediction.image}: {doubt.message}" for prediction in doubted for doubt in prediction.warnings),
        *where_drawn("pictures as the net gets them: {file}", draw),
    ]


def _csv(predictions: "tuple[Prediction, ...]") -> str:
    """Return a row for each picture and class; a picture that could not be read has one row, with the error.

    Reasons to doubt an answer are in each row of the picture.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "rank", "class", "probability", "warnings", "error"))
    for prediction in predictions:
        warnings = "; ".join(doubt.message for doubt in prediction.warnings)
        for rank, guess in enumerate(prediction.guesses, 1):
            writer.writerow((prediction.image, rank, guess.name, f"{guess.probability:.6f}", warnings, ""))
        if prediction.error is not None:
            writer.writerow((prediction.image, "", "", "", "", prediction.error))
    return text.getvalue()
