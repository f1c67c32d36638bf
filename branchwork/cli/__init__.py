"""The command `branchwork`: one short file per verb. Only these files print, and loading them does not import torch."""

import errno
import io
import os
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from cyclopts import App, CycloptsError

import branchwork
from branchwork.cli.bench import bench
from branchwork.cli.compare import compare
from branchwork.cli.data import data
from branchwork.cli.demo import demo
from branchwork.cli.doctor import doctor
from branchwork.cli.evaluate import evaluate
from branchwork.cli.explain import explain
from branchwork.cli.export import export
from branchwork.cli.help import SpokenHelp, add_examples, usage_error
from branchwork.cli.inspect import inspect
from branchwork.cli.nets import nets
from branchwork.cli.output import complain
from branchwork.cli.predict import predict
from branchwork.cli.select import select
from branchwork.cli.study import study
from branchwork.cli.train import train
from branchwork.cli.ui import ui
from branchwork.errors import BranchworkError, Interrupted, ToldElsewhere, system_words
from branchwork.language import LANGUAGES, say
from branchwork.training.trust import trusting

app = App(
    name="branchwork",
    help="Convolutional networks that branch (Inception) and skip (residual): train them, look into them, ship them.",
    version=branchwork.__version__,
    help_format="plaintext",
    help_formatter=SpokenHelp(),
    result_action="return_value",
    suppress_keyboard_interrupt=False,
)
for verb in (
    train, evaluate, predict, compare, nets, inspect, explain, select, ui, study, export, bench, data, demo, doctor,
):  # fmt: skip
    app.command(verb)
app.register_install_completion_command(help="Let bash, zsh, fish or PowerShell complete commands and flags.")

# Why standard output cannot be written to. Writing to files has errors of its own.
CANNOT_PRINT = (errno.EPIPE, errno.ENOSPC, errno.EIO, errno.EBADF)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 after a user's error, 130 after Ctrl-C."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that cannot show × shows ?
    try:
        words, trust = take_trust(choose_language(sys.argv[1:] if arguments is None else arguments))
        add_examples(app)
        with trusting(trust), ended_as_by_ctrl_c():
            code = app(words, exit_on_error=False, print_error=False)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except ToldElsewhere:
        return 2
    except CycloptsError as reason:
        complain(usage_error(reason))
        return 2
    except BranchworkError as reason:
        complain(str(reason).strip())
        return 130 if isinstance(reason, Interrupted) else 2
    except KeyboardInterrupt:
        complain(say("interrupted"))
        return 130
    except (MemoryError, RuntimeError) as reason:
        from branchwork.training.machine import is_out_of_memory

        if not is_out_of_memory(reason):
            raise
        complain(say("there is not enough memory: close other programs, or take smaller images, batches or nets"))
        return 2
    except OSError as reason:
        if reason.filename is not None or reason.errno not in CANNOT_PRINT:
            raise
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # what is left to be written
        if reason.errno == errno.EPIPE:  # the reader of a pipe, such as `head`, has closed it
            return 141
        complain(say("cannot write to the standard output: {reason}", reason=system_words(reason)))
        return 2


@contextmanager
def ended_as_by_ctrl_c() -> Iterator[None]:
    """Let a scheduler's SIGTERM and the end of the terminal raise `KeyboardInterrupt`, unless they are handled."""
    heeded = []
    if threading.current_thread() is threading.main_thread():
        numbers = (getattr(signal, name) for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name))
        heeded = [number for number in numbers if signal.getsignal(number) == signal.SIG_DFL]
    for number in heeded:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number in heeded:
            signal.signal(number, signal.SIG_DFL)


def choose_language(arguments: Sequence[str]) -> list[str]:
    """Return the arguments without `--lang en` or `--lang zh`, and speak that language here and in child processes."""
    words = list(arguments)
    end = words.index("--") if "--" in words else len(words)
    for index, word in enumerate(words[:end]):
        flag, equals, value = word.partition("=")
        if flag == "--lang":
            taken = 1 if equals else 2
            value = value if equals else " ".join(words[index + 1 : end][:1])
            if value not in LANGUAGES:
                raise BranchworkError("--lang must be en or zh, got {value!r}", value=value)
            os.environ["BRANCHWORK_LANG"] = value
            return words[:index] + words[index + taken :]
    return words


def take_trust(words: list[str]) -> tuple[list[str], bool]:
    """Return the arguments without `--trust`, and whether it was there: run folders may then run their code."""
    end = words.index("--") if "--" in words else len(words)
    kept = [word for word in words[:end] if word != "--trust"]
    return kept + words[end:], len(kept) < end
