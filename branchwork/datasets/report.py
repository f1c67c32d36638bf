"""What was found in a folder of images: figures, and everything that is wrong with it."""

from dataclasses import dataclass
from typing import Literal

SplitName = Literal["train", "validation", "test"]
SPLITS: tuple[SplitName, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Problem:
    """One file or folder, by its path within the data, and what is wrong with it in a word and in a sentence.

    What is `left_out` is neither trained on nor tested on; the rest is only worth knowing.
    """

    kind: str
    path: str
    message: str
    left_out: bool = True


@dataclass(frozen=True)
class Sizes:
    """Widths and heights in pixels, upright: the least, the median and the greatest of each."""

    widths: tuple[int, int, int]
    heights: tuple[int, int, int]


@dataclass(frozen=True)
class FolderReport:
    """A folder of images, every file of which was decoded once.

    `counts` is usable images by class name for each split. `files` is how many pictures there are, `left_out` how
    many of them are not used. `held_out` is the share of every class that was taken from the training images to test
    on, 0 where the folder has a test part of its own. `oddities` counts the files whose kind was changed to 8-bit grey
    or RGB.
    """

    folder: str
    counts: dict[str, dict[str, int]]
    files: int
    left_out: int
    held_out: float
    sizes: Sizes
    oddities: dict[str, int]
    problems: tuple[Problem, ...]
