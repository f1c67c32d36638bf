"""Parameters that several verbs share, and how their text is parsed."""

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from branchwork.errors import DataError, NetError, RecipeError
from branchwork.files import check_writable
from branchwork.language import say

STDOUT = Path("-")
DATA = "mnist, fashion-mnist, cifar10, sample (7,000 built-in digits of MNIST), a folder or pack of images, or auto"


def _check_file(_: object, path: Path | None) -> None:
    # Anything else that begins with a hyphen is a flag, and its file was forgotten.
    if path is not None and path.name.startswith("-") and path != STDOUT:
        raise ValueError(say("needs a file, or - for standard output, but {path} is a flag", path=path))
    if path is not None and os.path.isdir(path):
        raise ValueError(say("needs a file, but {path} is a folder", path=path))
    if path not in (None, STDOUT):
        check_writable(path)  # before the work, and not after it


FILE = Parameter(allow_leading_hyphen=True, validator=_check_file)
SEVERAL = Parameter(consume_multiple=True, negative=())

Json = Annotated[
    Path | None, FILE, Parameter(name="--json", help="Write the figures to this file as JSON; - prints them.")
]
Run = Annotated[Path, Parameter(help="A run folder made by branchwork train.")]
AnyNet = Annotated[str, Parameter(help="A run folder, a built-in net, or one of your own (file.py:Class).")]
RunData = Annotated[str | None, Parameter(help=f"{DATA}; by default what the run was trained on.")]
Source = Annotated[Path | None, Parameter(help="A folder with the files of MNIST, Fashion-MNIST or CIFAR-10.")]
Size = Annotated[
    str | None,
    Parameter(help="The size of a folder's images: one side, or height and width such as 48x64; automatic by default."),
]
Fit = Annotated[
    Literal["crop", "pad", "stretch"] | None,
    Parameter(help="How a folder's pictures get that size: crop (the default), pad with black, or stretch."),
]
Shortcut = Annotated[
    Literal["identity", "scale", "conv", "gated", "gate-only", "dropout", "none"] | None,
    Parameter(help="The shortcut of residual blocks that keep their shape; the same as NET:shortcut=….", group="Net"),
]
Stem = Annotated[
    Literal["auto", "small", "large"] | None,
    Parameter(
        help="The stem (first layers): small suits images of up to 96 pixels, and auto chooses it for them.",
        group="Net",
    ),
]
Device = Annotated[str, Parameter(help="cpu, cuda, mps or auto.")]
Threads = Annotated[int | None, Parameter(help="Threads on the CPU; by default as many as there are cores.")]


@dataclass(frozen=True)
class DrawFlags:
    """The drawing."""

    draw: Annotated[Path | None, Parameter(help="Draw it into this file, .svg or .png, for a slide.")] = None
    theme: Annotated[
        Literal["light", "dark", "auto"],
        Parameter(
            help="The background of a drawing; auto follows the reader's system wherever a browser shows the SVG."
        ),
    ] = "light"


Drawing = Annotated[DrawFlags, Parameter(name="*")]
NOT_DRAWN = DrawFlags()


def parse_sizes(text: str, flag: str, *, only: int | None = None) -> tuple[int, ...]:
    """Parse `1x28x28`. Raises `NetError` unless all sizes are numbers above 0, and `only` so many if it is given."""
    sizes = re.split("[x×]", text)
    if not all(size.isdecimal() and int(size) for size in sizes) or only not in (None, len(sizes)):
        raise NetError("{flag} must be channels, height and width, such as 1x28x28, got {text!r}", flag=flag, text=text)
    return tuple(map(int, sizes))


def parse_image_shape(text: str, flag: str) -> tuple[int, int, int]:
    """Parse `1x28x28`. Raises `NetError` unless there are three numbers above 0."""
    channels, height, width = parse_sizes(text, flag, only=3)
    return channels, height, width


def parse_drop(text: str | None) -> float | None:
    """Parse `0.2%` into a fraction. Raises `RecipeError` for anything else."""
    if text is None:
        return None
    if not re.fullmatch(r"\d+(\.\d*)?%", text, re.ASCII):
        raise RecipeError("--drop must be a percentage of accuracy, such as 0.2%, got {text!r}", text=text)
    return float(text[:-1]) / 100


def parse_size(text: str | None) -> tuple[int, int] | None:
    """Parse `64` or `48x64` into height and width. Raises `DataError` unless there are one or two whole numbers."""
    if text is None:
        return None
    sides = re.split("[x×]", text)
    if len(sides) > 2 or not all(side.isdecimal() and len(side) < 10 for side in sides):
        raise DataError("--size must be one side, or height and width such as 48x64, got {text!r}", text=text)
    return int(sides[0]), int(sides[-1])
