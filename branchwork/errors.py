"""The errors that a user can fix: each message says what was found, where, what was needed, and what to change."""

import difflib
import os
import traceback
from collections.abc import Iterable
from pathlib import Path

from branchwork.language import say


class BranchworkError(Exception):
    """Base of every error that the user can fix. The command prints it without a traceback and exits 2.

    `message` is said in the user's language, with `values` in place of their {names}.
    """

    def __init__(self, message: str = "", /, **values: object) -> None:
        super().__init__(say(message, **values))


class NetError(BranchworkError):
    """A net is unknown, cannot be built, or its branches do not fit together."""


class WeightsError(BranchworkError):
    """Weights are missing, damaged, or belong to another net."""


class DataError(BranchworkError):
    """A data set is unknown, unavailable or damaged."""


class ImageError(BranchworkError):
    """A picture cannot be read, or shows nothing to recognise."""


class RecipeError(BranchworkError):
    """A recipe has an unknown key or an impossible value."""


class RunError(BranchworkError):
    """A run folder cannot be written, read or resumed."""


class TrainingError(BranchworkError):
    """A training cannot continue, for example because its loss is not finite."""


class Diverged(TrainingError):
    """A training whose loss or weights became infinite or NaN."""


class BatchTooLarge(TrainingError):
    """A batch does not fit into the memory of the device."""


class ToldElsewhere(BranchworkError):
    """Another process of the same training reports the error; this one exits silently."""


class EngineError(BranchworkError):
    """An inference engine is missing, too old, or cannot do what was asked."""


class StudyError(BranchworkError):
    """A study is unknown, its folder holds another study, or its trainings cannot run where they were sent."""


class ExportError(BranchworkError):
    """A net cannot be exported, or the file cannot be written or differs from the net."""


class ExplainError(BranchworkError):
    """An explanation cannot be given: the net lacks the class, or a package is missing."""


class Interrupted(BranchworkError):
    """The user stopped a training; its state is saved and it can be resumed."""


def own_line(reason: BaseException) -> str:
    """Return `file.py, line 12`: the innermost line that is neither torch's nor ours, or "" if there is none."""
    ours = str(Path(__file__).parent)
    frames = traceback.extract_tb(reason.__traceback__)
    known = (ours, "<")
    theirs = [f for f in frames if f"{os.sep}torch{os.sep}" not in f.filename and not f.filename.startswith(known)]
    return f"{theirs[-1].filename}, line {theirs[-1].lineno}" if theirs else ""


def first_line(reason: BaseException) -> str:
    """Return the first line of another library's message, at most 300 characters."""
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Exception from ")]  # positions in OpenVINO's own source
    return f"{lines[0] if lines else type(reason).__name__:.300}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known name, and all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Known: {', '.join(known)}."
