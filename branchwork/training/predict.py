"""Classify pictures with a trained net."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from branchwork.datasets.placing import to_image
from branchwork.datasets.reading import find_pictures, read_picture
from branchwork.datasets.sheet import check_sheet, draw_sheet, shorten
from branchwork.errors import ImageError, RecipeError
from branchwork.files import printable
from branchwork.nets.resolve import short_name
from branchwork.training.infer import predict_logits
from branchwork.training.run import Model, TrainedNet, load_run

# Pictures on a sheet: more would be too small.
MOST_SHOWN = 200


@dataclass(frozen=True)
class Guess:
    """A class and its probability, a fraction."""

    name: str
    probability: float


@dataclass(frozen=True)
class Prediction:
    """The most probable classes of one picture, in order; or `error`, the reason why it could not be read."""

    image: str
    guesses: tuple[Guess, ...]
    error: str | None = None


def predict(
    run: str | Path, images: str | Path | Iterable[str | Path], *, top: int = 3, draw: Path | None = None
) -> tuple[Prediction, ...]:
    """Return the `top` most probable classes of each picture in `images`, files or folders, by the net of a run.

    A picture that cannot be read does not stop the others: its `error` says why. With `draw`, a sheet of
    the pictures as the net received them is drawn into that file. Raises `ImageError` for an empty folder, `RunError`
    for a damaged run and `RecipeError` if `top` is less than 1.
    """
    if top < 1:
        raise RecipeError("top must be at least 1, got {top}", top=top)
    if draw is not None:
        check_sheet(draw)
    trained = load_run(run)
    paths = find_pictures(map(Path, [images] if isinstance(images, str | Path) else images))
    if not paths:
        raise ImageError("no pictures were given: name files, or a folder of them")
    read: dict[Path, Tensor] = {}
    errors: dict[Path, str] = {}
    for path in paths:
        try:
            read[path] = read_image(path, trained.model)
        except ImageError as reason:
            errors[path] = printable(str(reason))
    guesses = dict(zip(read, _guess(list(read.values()), trained, top), strict=True))
    predictions = tuple(Prediction(printable(path), guesses.get(path, ()), errors.get(path)) for path in paths)
    if draw is not None and read:
        shown = list(read)[:MOST_SHOWN]
        captions = [
            f"{printable(Path(path.name))}\n{shorten(guesses[path][0].name, 18)} {guesses[path][0].probability:.0%}"
            for path in shown
        ]
        few = f"the first {len(shown)} of {len(read)} pictures" if len(shown) < len(read) else "each picture"
        title = f"{few} as {short_name(trained.model.net)} received it, with its answer"
        draw_sheet(draw, torch.stack([read[path] for path in shown]), captions, title=title)
    return predictions


def read_image(path: Path, model: Model) -> Tensor:
    """Return the picture at `path` as the net receives it: uint8 C×H×W. Raises `ImageError`."""
    picture = read_picture(path)
    try:
        return to_image(picture, channels=model.in_channels, size=model.image_size, method=model.pictures)
    except ImageError as reason:
        raise ImageError("{path}: {reason}", path=path, reason=reason) from reason


def _guess(images: Sequence[Tensor], trained: TrainedNet, top: int) -> list[tuple[Guess, ...]]:
    if not images:
        return []
    probabilities = predict_logits(trained.net, torch.stack(list(images)), trained.model).softmax(1)
    values, indices = probabilities.topk(min(top, len(trained.model.classes)))
    return [
        tuple(Guess(trained.model.classes[index], value) for value, index in zip(*row, strict=True))
        for row in zip(values.tolist(), indices.tolist(), strict=True)
    ]
