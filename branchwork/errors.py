"""What a user can do wrong. Each error carries one message: what was found, where, what was needed, what to change."""

import difflib
import os
import traceback
from collections.abc import Iterable
from pathlib import Path


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


class BatchTooLarge(TrainingError):
    """A batch that does not fit into the memory of the device."""


class ToldElsewhere(BranchworkError):
    """What the first of several processes tells the user; this one ends without a word."""


class EngineError(BranchworkError):
    """An inference engine that is missing, too old, or lacks what is asked of it."""


class StudyError(BranchworkError):
    """A study that is unknown, whose folder holds another, or whose trainings cannot run where they were sent."""


class ExportError(BranchworkError):
    """A net that no file can hold, or a file that cannot be written or does not give what the net gives."""


class ExplainError(BranchworkError):
    """An explanation that cannot be given, such as for a class that the net lacks or without a package it needs."""


class Interrupted(BranchworkError):
    """The user stopped a training; its state is saved and it can be continued."""


def own_line(reason: BaseException) -> str:
    """`file.py, line 12`: the innermost line that is neither torch's nor ours; "" where there is none."""
    ours = str(Path(__file__).parent)
    frames = traceback.extract_tb(reason.__traceback__)
    own = [f for f in frames if f"{os.sep}torch{os.sep}" not in f.filename and not f.filename.startswith((ours, "<"))]
    return f"{own[-1].filename}, line {own[-1].lineno}" if own else ""


def first_line(reason: BaseException) -> str:
    """What another library says is wrong, in one line that is not too long."""
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Exception from ")]  # places in OpenVINO's own source
    return f"{lines[0] if lines else type(reason).__name__:.300}"


def nearest(word: str, known: Iterable[str]) -> str:
    """The clause that ends a message about an unknown name: the nearest known one, and all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return f"{hint} Known: {', '.join(known)}."
