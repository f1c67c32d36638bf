"""The errors that a user can fix: each message says what was found, where, what was needed, and what to change."""

import difflib
import os
import re
import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

from branchwork.language import mark, say

# Folders whose code is not the user's: this package, and Python's own library.
OURS, _PYTHONS = f"{Path(__file__).parent}{os.sep}", f"{sysconfig.get_path('stdlib')}{os.sep}"

# What code of the user's own may raise; Ctrl-C is not hers.
FAILURES = (Exception, SystemExit)


class BranchworkError(Exception):
    """Base of every error that the user can fix. The command prints it without a traceback and exits 2.

    `message` is said in the user's language, with `values` in place of their {names}. If the cause is a misspelt
    attribute, such as `nn.Moudel`, the error ends with the one that was probably meant.
    """

    def __init__(self, message: str = "", /, **values: object) -> None:
        super().__init__(say(message, **values))

    def __str__(self) -> str:
        text, hint = super().__str__(), did_you_mean(self.__cause__)
        return text if hint in text else say("{text}.{hint}", text=text.removesuffix(".").removesuffix("。"), hint=hint)


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


def own_frame(reason: BaseException) -> traceback.FrameSummary | None:
    """Return the innermost frame of the user's code, or of a library if there is none; never torch's or ours."""
    frames = traceback.extract_tb(reason.__traceback__)
    known = (OURS, "<")
    theirs = [f for f in frames if f"{os.sep}torch{os.sep}" not in f.filename and not f.filename.startswith(known)]
    return next((f for f in reversed(theirs) if not is_library(f.filename)), theirs[-1] if theirs else None)


def with_kind(reason: BaseException) -> str:
    """Return the class and the message of an error, `KeyError: 'conv1'`; the class alone if there is no message."""
    return f"{type(reason).__name__}: {reason}".removesuffix(": ")


def with_line(message: str, reason: BaseException) -> str:
    """Return `message` with the place of `own_frame` behind it, if there is one."""
    frame = own_frame(reason)
    if frame is None:
        return message
    return say("{message} ({file}, line {line})", message=message, file=frame.filename, line=frame.lineno)


def is_library(file: str) -> bool:
    """Return whether a file of Python code is an installed library's, Python's or ours, and so not the user's."""
    installed = (f"{os.sep}{folder}{os.sep}" for folder in ("site-packages", "dist-packages"))
    return file.startswith((OURS, _PYTHONS)) or any(folder in file for folder in installed)


def attribute_meant(reason: BaseException | None) -> str:
    """Return the attribute that was probably meant where `reason` says that there is none; "" if none is near."""
    if not isinstance(reason, AttributeError) or not reason.name:
        return ""
    every = [name for name in dir(reason.obj) if not name.startswith("_")]
    # What was assigned to the object comes before what its class inherits, and may be as short as `mp`.
    own = [name for name in every if name not in dir(type(reason.obj))]
    near = difflib.get_close_matches(reason.name, own, n=1, cutoff=0.5)
    return next(iter(near or difflib.get_close_matches(reason.name, every, n=1)), "")


def did_you_mean(reason: BaseException | None) -> str:
    """Return the end of a message about a missing attribute: ` Did you mean self.conv2?`; "" if none is near.

    The word before the dot is that of the user's line: `nn` where she writes `nn.Moudel`.
    """
    close = attribute_meant(reason)
    if reason is None or not close:
        return ""
    frame = own_frame(reason)
    before = re.search(rf"([\w.]+)\.{getattr(reason, 'name', '')}\b", (frame and frame.line) or "")
    if before is not None and before[1] == "self":
        return say(" Did you mean self.{close}?", close=close)
    return say(" Did you mean {word}?", word=f"{before[1]}.{close}" if before else close)


def first_line(reason: BaseException) -> str:
    """Return the first line of another library's message, at most 300 characters."""
    lines = [line.strip() for line in str(reason).splitlines() if line.strip()]
    lines = [line for line in lines if not line.startswith("Exception from ")]  # positions in OpenVINO's own source
    return f"{lines[0] if lines else type(reason).__name__:.300}"


# What the system says most often.
SYSTEM_WORDS = (
    mark("No such file or directory"),
    mark("Permission denied"),
    mark("Is a directory"),
    mark("No space left on device"),
    mark("File too large"),
    mark("Read-only file system"),
    mark("File name too long"),
)


def system_words(reason: OSError) -> str:
    """Return the system's own message, in the user's language if it is a common one."""
    return say(reason.strerror or str(reason))


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the end of a message about an unknown name: the nearest known name, and all of them."""
    known = sorted(known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    return say(
        " Did you mean {close!r}? Known: {known}." if close else " Known: {known}.",
        close="".join(close),
        known=", ".join(known),
    )
