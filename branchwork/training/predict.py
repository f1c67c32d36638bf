"""Classify pictures with a trained net."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from branchwork.catalogue.resolve import short_name
from branchwork.datasets.reading import find_pictures, read_picture
from branchwork.datasets.sheet import draw_sheet, shorten
from branchwork.errors import ImageError, RecipeError
from branchwork.figures import check_drawing, legible
from branchwork.files import printable
from branchwork.language import say
from branchwork.observer import Observer
from branchwork.screen import watch
from branchwork.shown import Several, Shown
from branchwork.training.doubts import NAMES, Doubt, Guess, answer_doubts, place_and_doubt, unlike_doubts
from branchwork.training.infer import predict_logits
from branchwork.training.pretrained import load_pretrained
from branchwork.training.run import Model, TrainedNet, load_run

# Pictures on a sheet: more would be too small.
MOST_SHOWN = 200


@dataclass(frozen=True)
class Prediction(Shown):
    """The most probable classes of one picture, in order; or `error`, the reason why it could not be read.

    `warnings` are reasons to doubt the answer.
    """

    image: str
    guesses: tuple[Guess, ...]
    error: str | None = None
    warnings: tuple[Doubt, ...] = ()


def predict(
    run: str | Path,
    pictures: str | Path | Iterable[str | Path],
    *,
    top: int = 3,
    draw: Path | None = None,
    weights: str | Path | None = None,
    progress: bool | Observer = False,
) -> Several[Prediction]:
    """Return the `top` most probable classes of each of `pictures`, files or folders, by the net of a run.

    With `weights="imagenet"`, `run` is a net of the catalogue for which torchvision publishes weights; they are
    downloaded first, and the classes are ImageNet's. `weights` may also be such a file. A picture that cannot be read
    does not stop the others: its `error` says why. With `draw`, a sheet of the pictures as the net received them is
    drawn into that file. Raises `ImageError` for an empty folder, `RunError` for a damaged run, `WeightsError` for
    weights that cannot be had and `RecipeError` if `top` is less than 1.
    """
    if top < 1:
        raise RecipeError("top must be at least 1, got {top}", top=top)
    if draw is not None:
        check_drawing(draw)
    trained = load_run(run) if weights is None else load_pretrained(str(run), str(weights), watch(progress))
    paths = find_pictures(pictures)
    read: dict[Path, Tensor] = {}
    doubts: dict[Path, list[Doubt]] = {}
    errors: dict[Path, str] = {}
    for path in paths:
        try:
            read[path], doubts[path] = _read(path, trained.model)
        except ImageError as reason:
            errors[path] = printable(str(reason))
    answers = dict(zip(read, _answer(list(read.values()), trained, top), strict=True))
    predictions = Several(
        Prediction(printable(path), (), errors[path])
        if path in errors
        else Prediction(printable(path), answers[path][0], None, _merge(doubts[path], answers[path][1]))
        for path in paths
    )
    if draw is not None and read:
        with legible(draw):
            draw_predictions(draw, dict(zip(paths, predictions, strict=True)), read, net=short_name(trained.model.net))
    return predictions


def draw_predictions(
    path: Path, predictions: Mapping[Path, Prediction], read: Mapping[Path, Tensor], *, net: str
) -> None:
    """Draw the pictures as the net received them, each with its answer and the reasons to doubt it."""
    shown = list(read)[:MOST_SHOWN]
    captions = []
    for each in shown:
        best, doubts = predictions[each].guesses[0], predictions[each].warnings
        lines = [printable(Path(each.name)), f"{shorten(best.name, 18)} {best.probability:.0%}"]
        captions.append("\n".join((*lines, *(say(NAMES[doubt.kind]) for doubt in doubts))))
    if len(shown) < len(read):
        title = say(
            "the first {shown} of {count} pictures as {net} received them", shown=len(shown), count=len(read), net=net
        )
    else:
        title = say("each picture as {net} received it, with its answer", net=net)
    draw_sheet(path, torch.stack([read[each] for each in shown]), captions, title=title)


def _merge(of_picture: Sequence[Doubt], of_answer: Sequence[Doubt]) -> tuple[Doubt, ...]:
    """Return all doubts; that several figures are unlike one digit goes without saying."""
    return (*of_picture, *(doubt for doubt in of_answer if not of_picture or doubt.kind != "unlike"))


def read_image(path: Path, model: Model) -> Tensor:
    """Return the picture at `path` as the net receives it: uint8 C×H×W. Raises `ImageError`."""
    return _read(path, model)[0]


def _read(path: Path, model: Model) -> tuple[Tensor, list[Doubt]]:
    picture = read_picture(path)
    try:
        return place_and_doubt(picture, model)
    except ImageError as reason:
        raise ImageError("{path}: {reason}", path=path, reason=reason) from reason


def _answer(images: Sequence[Tensor], trained: TrainedNet, top: int) -> list[tuple[tuple[Guess, ...], list[Doubt]]]:
    """Return the most probable classes of each image, and the reasons to doubt them."""
    if not images:
        return []
    names = trained.model.classes
    stacked = torch.stack(list(images))
    probable = predict_logits(trained.net, stacked, trained.model).softmax(1)
    values, indices = probable.topk(min(max(top, 2), len(names)))
    answers = []
    rows = zip(values.tolist(), indices.tolist(), unlike_doubts(stacked, trained), strict=True)
    for probabilities, order, unlike in rows:
        guesses = [Guess(names[index], value) for value, index in zip(probabilities, order, strict=True)]
        answers.append((tuple(guesses[:top]), [*unlike, *answer_doubts(guesses[:2])]))
    return answers
