"""Progress for people, on stderr: a bar on a terminal, one line in a notebook that is replaced, else plain lines."""

import html
import sys
import time
from contextlib import suppress
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from branchwork.language import say
from branchwork.observer import Epoch, Observer, Step

# Without a terminal, the seconds between two lines about what is going on; in a notebook, between two updates.
PLAIN_SECONDS, NOTEBOOK_SECONDS = 15.0, 0.2


def watch(progress: bool | Observer) -> Observer:
    """Return the observer that `progress` is or asks for: True shows progress, False is silent."""
    if isinstance(progress, Observer):
        return progress
    if not progress:
        return Observer()
    if _in_notebook():
        return Notebook()
    file: Any = sys.stderr and _Lossy(sys.stderr)
    console = Console(file=file, stderr=True, highlight=False, emoji=False, soft_wrap=True)
    return Terminal(console) if console.is_terminal else Lines(console)


class _Lossy:
    """A stream that loses what cannot be written: no training ends because nobody can read its progress any more."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # full or broken; closed
            self._stream.write(text)

    def flush(self) -> None:
        with suppress(OSError, ValueError):
            self._stream.flush()


def _in_notebook() -> bool:
    ipython: Any = sys.modules.get("IPython")  # a notebook has imported it
    return ipython is not None and hasattr(ipython.get_ipython(), "kernel")


class Lines(Observer):
    """Prints lines that stay, and now and then one about what is going on. Subclasses replace the latter in place."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.last_line = 0.0
        self.accuracy = ""  # of the last epoch, as text
        self.counting: tuple[float, int] | None = None  # since when, and from which number
        self.downloading = False

    def line(self, text: str) -> None:
        """Show a line that stays."""
        self.last_line = time.monotonic()
        self.console.print(text, markup=False)

    def replace(self, title: str, state: str, *, done: int, total: int) -> None:
        """Show how far the task `title` is, in place of what was shown before; `total` is 0 while it is unknown."""
        if time.monotonic() - self.last_line > PLAIN_SECONDS:
            self.line(f"{title}  {state}")

    def close(self) -> None:
        """The task has ended."""

    def note(self, message: str) -> None:
        self.line(message)

    def download(self, name: str, done: int, total: int) -> None:
        if not self.downloading:
            self.downloading, self.last_line = True, 0.0  # told at once
        megabytes, of = done / 1e6, total / 1e6
        state = say("{done:.1f} of {total:.1f} MB", done=megabytes, total=of) if total else f"{megabytes:.1f} MB"
        self.replace(say("fetching {name}", name=name), state, done=done, total=total)

    def download_end(self) -> None:
        self.downloading = False
        self.close()

    def count(self, title: str, done: int, total: int) -> None:
        now = time.monotonic()
        if self.counting is None:
            self.counting, self.last_line = (now, done), now
        began, first = self.counting
        state = say("{done:,} of {total:,}", done=done, total=total)
        if done > first:
            state += f"  {_left((now - began) * (total - done) / (done - first))}"
        self.replace(title, state, done=done, total=total)

    def count_end(self) -> None:
        self.counting = None
        self.close()

    def start(self, title: str) -> None:
        self.accuracy = ""
        self.line(title)

    def step(self, step: Step) -> None:
        state = (
            f"{say('loss {loss:.4f}', loss=step.loss)}{self.accuracy}  {_speed(step.images_per_second)}  "
            f"{_left(step.seconds_left)}"
        )
        done = (step.epoch - 1) * step.steps + step.step
        self.replace(_epoch(step), state, done=done, total=step.epochs * step.steps)

    def epoch(self, epoch: Epoch) -> None:
        if epoch.validation_accuracy is not None:
            self.accuracy = "  " + say("validation {accuracy:.2%}", accuracy=epoch.validation_accuracy)
        loss, speed = say("loss {loss:.4f}", loss=epoch.train_loss), _speed(epoch.images_per_second)
        self.line(f"{_epoch(epoch)}  {loss}{self.accuracy}  {speed}  {epoch.seconds:.1f} s")

    def end(self) -> None:
        self.close()


class Terminal(Lines):
    """Shows a bar below the lines."""

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.bar: Progress | None = None
        self.task = TaskID(0)

    def replace(self, title: str, state: str, *, done: int, total: int) -> None:
        if self.bar is None:
            room = max(4, min(24, self.console.width - 70))  # beside the state of a training
            columns = ("{task.description}", "{task.fields[state]}")
            before, after = (TextColumn(column, markup=False) for column in columns)
            self.bar = Progress(before, BarColumn(bar_width=room), after, console=self.console, transient=True)
            self.task = self.bar.add_task(title, state=state)
            self.bar.start()
        self.bar.update(self.task, description=title, completed=done, total=total or None, state=state)

    def close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
        self.bar = None


class Notebook(Lines):
    """Shows everything in one line, the last in place of the one before: cells keep all that is printed."""

    def __init__(self) -> None:
        super().__init__(Console(quiet=True))
        self.handle: Any = None
        self.state = ""

    def line(self, text: str) -> None:
        self._display(text)

    def replace(self, title: str, state: str, *, done: int, total: int) -> None:
        self.state = f"{title}  {state}"
        if time.monotonic() - self.last_line > NOTEBOOK_SECONDS:
            self._display(self.state, f'<progress value="{done}" max="{total}"></progress> ' if total else "")

    def close(self) -> None:
        if self.state:
            self._display(self.state)
        self.state = ""

    def _display(self, text: str, bar: str = "") -> None:
        from IPython.display import display

        self.last_line, self.state = time.monotonic(), self.state if bar else ""
        data = {"text/plain": text, "text/html": f'<div style="white-space:pre-wrap">{bar}{html.escape(text)}</div>'}
        if self.handle is None:
            self.handle = display(data, raw=True, display_id=True)
        else:
            self.handle.update(data, raw=True)


def _epoch(done: Step | Epoch) -> str:
    return say("epoch {epoch}/{epochs}", epoch=done.epoch, epochs=done.epochs)


def _speed(rate: float) -> str:
    return say("{rate:,.0f} images/s", rate=rate)


def _left(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return say("{time} left", time=f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}")
