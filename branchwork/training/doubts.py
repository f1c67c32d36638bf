"""Reasons to doubt the answer for a picture: what it shows besides one figure, and what the net makes of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from PIL import Image

from branchwork.datasets.blobs import find_blobs
from branchwork.datasets.placing import RULES, find_ink
from branchwork.language import mark, say
from branchwork.training.run import Model

Kind = Literal["several", "frame", "scraps", "unlike", "close"]
# In a word or two, for tables and captions.
NAMES: dict[Kind, str] = {
    "several": mark("several figures"),
    "frame": mark("a frame"),
    "scraps": mark("scraps"),
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


def picture_doubts(picture: Image.Image, model: Model) -> list[Doubt]:
    """Return what a picture shows besides one digit; nothing for a net of photographs. Raises `ImageError`."""
    if model.pictures != "digits":
        return []
    blobs = find_blobs(find_ink(picture, model.image_size, RULES["digits"]))
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


def answer_doubts(best: Sequence[Guess]) -> list[Doubt]:
    """Return whether the most probable class is hardly more probable than the next one."""
    if len(best) < 2 or best[0].probability - best[1].probability >= MARGIN:
        return []
    words = {"first": best[0].name, "second": best[1].name}
    shares = {"share": f"{best[0].probability:.0%}", "other": f"{best[1].probability:.0%}"}
    message = say("{first} ({share}) and {second} ({other}) are nearly as probable", **words, **shares)
    return [Doubt("close", message)]
