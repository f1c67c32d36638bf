"""Commands that meet a fault, each in a process of its own. As a script, it reads orders and answers them line by line.

It imports once what commands need, and forks for each: a start takes seconds, a fork milliseconds. An order names the
`folder` to work in, the `words` of the command and at most one fault; file operations in the folder are counted from 1:

- `kill`: SIGKILL before this operation; of a file that it would make durable, only half of the bytes are left
- `signal` and `at`: this signal before this operation
- `room`: no file may grow beyond so many bytes, as on a full disk
- `memory`: at most so many bytes can be taken beyond what Python and torch have

With `here`, the command runs in this process itself, and what it imports need not be imported again.

The answer holds the `code` with which the process ended (of a signal, its negative number), what it said (`err`), and,
if it ended by itself, how many file `operations` it took and the most `memory` that it had, in bytes.
"""

import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

import branchwork
from branchwork.cli import main

WRITES = ("os.mkdir", "os.rmdir", "os.rename", "os.remove", "os.chmod", "os.truncate")


class Operations:
    """Counts the file operations of this process below a folder; before one of them, the fault of an order happens."""

    def __init__(self, folder: Path, order: dict) -> None:
        self.folder, self.order, self.count = f"{folder}{os.sep}", order, 0
        self.sync, os.fsync = os.fsync, self.fsync
        sys.addaudithook(self.watch)

    def watch(self, event: str, arguments: Sequence) -> None:
        opened = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        if (opened or event in WRITES) and isinstance(arguments[0], str | bytes | os.PathLike):
            path = os.path.abspath(os.fsdecode(arguments[0]))
            if path.startswith(self.folder) and "__pycache__" not in path:
                self.happen()

    def fsync(self, descriptor: int) -> None:
        if self.count + 1 == self.order.get("kill") and not os.path.isdir(f"/proc/self/fd/{descriptor}"):
            os.ftruncate(descriptor, os.fstat(descriptor).st_size // 2)
        self.happen()
        self.sync(descriptor)

    def happen(self) -> None:
        self.count += 1
        if self.count == self.order.get("kill"):
            os.kill(os.getpid(), signal.SIGKILL)
        if self.count == self.order.get("at"):
            os.kill(os.getpid(), self.order["signal"])


def obey(order: dict) -> tuple[int, dict]:
    """Run the command of an order in this process, which was forked for it."""
    folder = Path(order["folder"]).resolve()
    os.chdir(folder)
    # A shell may have told us to ignore some.
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    operations = Operations(folder, order)
    if "room" in order:
        resource.setrlimit(resource.RLIMIT_FSIZE, (order["room"], resource.RLIM_INFINITY))
    if "memory" in order:
        taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (taken + order["memory"], resource.RLIM_INFINITY))
    try:
        code = main(order["words"])
    except BaseException:
        traceback.print_exc()
        code = 1
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return code, {"operations": operations.count, "memory": memory}


def answer(order: dict) -> dict:
    """Fork a process that obeys, and return how it ended."""
    (said, says), (counted, counts) = os.pipe(), os.pipe()
    child = os.fork()
    if child == 0:
        os.dup2(says, 2)
        with open(says, "w") as sys.stderr:
            code, figures = obey(order)
        os.write(counts, json.dumps(figures).encode())
        os._exit(code)
    os.close(says)
    os.close(counts)
    with os.fdopen(said, errors="replace") as err, os.fdopen(counted) as figures:
        found = {"err": err.read(), **json.loads(figures.read() or "{}")}
    return {"code": os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), **found}


if __name__ == "__main__":
    for name in branchwork.__all__:
        getattr(branchwork, name)  # which imports its home
    answers = sys.stdout
    with open(os.devnull, "w") as sys.stdout:
        for line in sys.stdin:
            order = json.loads(line)
            if order.get("here"):
                os.chdir(order["folder"])
                given = {"code": main(order["words"]), "err": ""}
            else:
                given = answer(order)
            print(json.dumps(given), file=answers, flush=True)
    sys.stdout = answers
