"""Reasons to doubt the answer for a picture: what it shows besides one figure, and what the net makes of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

from branchwork.datasets.blobs import find_blobs
from branchwork.datasets.placing import RULES, Ink, find_ink, place_ink, to_image
from branchwork.language import mark, say
from branchwork.training.familiar import FALSE_ALARMS, familiar_digits, read_by_last
from branchwork.training.run import Model, TrainedNet

Kind = Literal["several", "frame", "scraps", "unlike", "close"]
# In a word or two, for tables and captions.
NAMES: dict[Kind, str] = {
    "several": mark("several figures"),
    "frame": mark("a frame"),
    "scraps": mark("many pieces"),
    "unlike": mark("unlike a digit"),
    "close": mark("a close call"),
}
# More pieces of ink than this are no figures.
MOST_FIGURES = 12
# Two classes whose probabilities differ by less are nearly as likely as each other.
MARGIN = 0.2


@dataclass(frozen=True)
class Guess:
    """A class and its probability, a fraction."""

    name: str
    probability: float


@dataclass(frozen=True)
class Doubt:
    """A reason to doubt an answer: its kind, and a sentence that says what to change."""

    kind: Kind
    message: str


def place_and_doubt(picture: Image.Image, model: Model) -> tuple[Tensor, list[Doubt]]:
    """Return a picture as the net receives it, uint8 C×H×W, and what it shows besides one digit.

    Only pictures for nets of digits are searched for more. Raises `ImageError`.
    """
    if not _reads_digits(model):
        method, size = model.pictures, model.image_size
        return to_image(picture, channels=model.in_channels, size=size, method=method), []
    rule = RULES[model.pictures]
    ink = find_ink(picture, model.image_size, rule)
    return torch.from_numpy(place_ink(ink, model.image_size, rule))[None], _ink_doubts(ink)


def _ink_doubts(ink: Ink) -> list[Doubt]:
    blobs = find_blobs(ink)
    doubts = []
    if blobs.framed:
        message = say("something surrounds the figure and was read as part of it: crop the picture inside of it")
        doubts.append(Doubt("frame", message))
    if blobs.figures > MOST_FIGURES:
        message = say("the ink is in {count} pieces, and none stands out: is there a figure?", count=blobs.figures)
        doubts.append(Doubt("scraps", message))
    elif blobs.figures > 1:
        message = say("{count} figures were read as one: give a picture of each", count=blobs.figures)
        doubts.append(Doubt("several", message))
    return doubts


def unlike_doubts(images: Tensor, trained: TrainedNet) -> list[list[Doubt]]:
    """Return for each image N×C×H×W whether it is unlike the digits that the net knows; nothing for other nets."""
    if not _reads_digits(trained.model):
        return [[] for _ in images]
    message = say(
        "it is unlike the training digits: only {share:.0%} of test digits are further from them", share=FALSE_ALARMS
    )
    unlike = familiar_digits(trained).is_unlike(read_by_last(trained, images))
    return [[Doubt("unlike", message)] if strange else [] for strange in unlike]


def answer_doubts(best: Sequence[Guess]) -> list[Doubt]:
    """Return whether the most probable class is hardly more probable than the next one."""
    if len(best) < 2 or best[0].probability - best[1].probability >= MARGIN:
        return []
    words = {"first": best[0].name, "second": best[1].name}
    shares = {"share": f"{best[0].probability:.0%}", "other": f"{best[1].probability:.0%}"}
    message = say("{first} ({share}) and {second} ({other}) are almost equally probable", **words, **shares)
    return [Doubt("close", message)]


def _reads_digits(model: Model) -> bool:
    return (model.pictures, model.in_channels, model.image_size) == ("digits", 1, (28, 28))
