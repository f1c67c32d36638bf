"""Tries of a promise under faults: how many, how they are counted, and commands that meet them."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[2]
T = TypeVar("T")
# Set by `pytest --all-faults`.
every = False


def many(few: int, all_of_them: int) -> int:
    """Return how many tries to make: a few in `make test`, all in `make test-faults`."""
    return all_of_them if every else few


def some(of: Sequence[T], few: int) -> list[T]:
    """Return what to try: a few that were drawn once and for all, or all of them."""
    return list(of) if every else sorted(random.Random(1).sample(of, min(few, len(of))))


class Tries:
    """Counts the tries of one promise, and keeps what failed, so that one failure does not hide the others."""

    def __init__(self) -> None:
        self.count, self.failures = 0, []

    @contextmanager
    def one(self, what: str) -> Iterator[None]:
        self.count += 1
        try:
            yield
        except Exception as reason:  # an assertion, or what a test meets
            self.failures.append(f"{what}: {type(reason).__name__}: {reason}")


@contextmanager
def commands() -> Iterator[Callable[..., dict[str, Any]]]:
    """Lend a function that runs a command of Branchwork under a fault; fault_server.py says which there are."""
    # No GPU: a process that has begun to use one must not fork.
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = f"{ROOT}{os.pathsep}{ROOT / 'tests'}"
    words = [sys.executable, ROOT / "tests/helpers/fault_server.py"]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env=environment, **pipes) as process:

        def run(folder: Path, *words: object, **fault: object) -> dict[str, Any]:
            order = {"folder": str(folder), "words": [*map(str, words)], **fault}
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
            return json.loads(process.stdout.readline())

        yield run


def one_message(answer: dict[str, Any]) -> bool:
    """Whether a command was refused as a user should be: exit code 2, and one message last."""
    lines = [line for line in answer["err"].splitlines() if line.startswith("branchwork: ")]
    return answer["code"] == 2 and len(lines) == 1 and "Traceback" not in answer["err"]


def fresh(start: Path, folder: Path) -> Path:
    """Make `folder` a copy of `start`, whatever it is now."""
    shutil.rmtree(folder, ignore_errors=True)
    return shutil.copytree(start, folder)
