"""What a user can do wrong. Each error carries one message: what was found, where, what was needed, what to change."""

import difflib
from collections.abc import Iterable


class BranchworkError(Exception):
    """Base of every error that the user can mend. The command prints it without a traceback and exits 2."""


class NetError(BranchworkError):
    """A net that is unknown, cannot be built, or whose branches do not fit."""


class WeightsError(BranchworkError):
    """Weights that are missing, damaged, or belong to another net."""


class DataError(BranchworkError):
    """A data set that is unknown, cannot be had, or is damaged."""


class ImageError(BranchworkError):
    """A picture that cannot be read or holds nothing to recognise."""


class RecipeError(BranchworkError):
    """A recipe with an unknown key or an impossible value."""


class RunError(BranchworkError):
    """A run folder that cannot be written, read or continued."""


class TrainingError(BranchworkError):
    """A training that cannot go on, such as one whose loss is not finite."""


class Interrupted(BranchworkError):
    """The user stopped a training; its state is saved and it can be continued."""


def nearest(word: str, known: Iterable[str]) -> str:
    """The clause that ends a message about an unknown name: the nearest known one, and all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Known: {', '.join(known)}."
