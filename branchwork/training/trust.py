"""Which code of run folders this user trusts. No other is run: a run may come from anybody.

What was trusted, or trained here, is remembered by its hash, as an empty file in the user's folder for states. Code
that was changed has another hash.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path

import platformdirs

# Whether the user trusts whatever code is met: the command's flag.
TRUSTING: ContextVar[bool] = ContextVar("trusting", default=False)
_REMEMBERED: set[Path] = set()


@contextmanager
def trusting(trust: bool) -> Iterator[None]:
    """Trust the code of every run that is loaded inside, if `trust` says so."""
    token = TRUSTING.set(trust)
    try:
        yield
    finally:
        TRUSTING.reset(token)


def is_trusted(net: str, files: Mapping[Path, bytes]) -> bool:
    """Return whether this user trusts the code `files`, run to build `net`."""
    place = _place(net, files)
    return place in _REMEMBERED or os.path.isfile(place)


def remember(net: str, files: Mapping[Path, bytes]) -> None:
    """Remember that this user trusts the code `files`, run to build `net`."""
    place = _place(net, files)
    _REMEMBERED.add(place)
    with suppress(OSError):  # where the home cannot be written, it is remembered until this process ends
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()


def trusted_folder() -> Path:
    """Return the folder that remembers what this user trusts."""
    return platformdirs.user_state_path("branchwork") / "trusted"


def _place(net: str, files: Mapping[Path, bytes]) -> Path:
    hashes = {path.as_posix(): hashlib.sha256(content).hexdigest() for path, content in files.items()}
    digest = hashlib.sha256(json.dumps([net, hashes], sort_keys=True).encode()).hexdigest()
    return trusted_folder() / digest
