"""Progress on the screen, all of it on stderr: a bar on a terminal, plain lines elsewhere."""

import time

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

from branchwork.observer import Epoch, Observer, Step

# Without a terminal, the seconds between two lines about a running epoch.
PLAIN_SECONDS = 15.0


class Screen(Observer):
    """Shows downloads, counts, and trainings."""

    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, emoji=False, soft_wrap=True)
        self.bar: Progress | None = None
        self.task = TaskID(0)
        self.last_line = 0.0
        self.accuracy = ""  # of the last epoch, as text
        self.downloading = self.counting = False

    def note(self, message: str) -> None:
        self._print(message)

    def download(self, name: str, done: int, total: int) -> None:
        if not self.downloading and not self.console.is_terminal:
            self._print(f"fetching {name}" + (f" ({total / 1e6:.1f} MB)" if total else ""))
        elif not self.downloading:
            bar = self._open(TextColumn("{task.description}"), BarColumn(), DownloadColumn())
            self.task = bar.add_task(f"fetching {name}", total=None)
        self.downloading = True
        if self.bar is not None:
            self.bar.update(self.task, completed=done, total=total or None)

    def download_end(self) -> None:
        self.downloading = False
        self._close()

    def count(self, title: str, done: int, total: int) -> None:
        if not self.counting:
            self.counting, self.last_line = True, time.monotonic()
            if self.console.is_terminal:
                bar = self._open(
                    TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
                )
                self.task = bar.add_task(title, total=total)
        if self.bar is not None:
            self.bar.update(self.task, completed=done, total=total)
        elif time.monotonic() - self.last_line > PLAIN_SECONDS:
            self.last_line = time.monotonic()
            self._print(f"{title}: {done:,} of {total:,}")

    def count_end(self) -> None:
        self.counting = False
        self._close()

    def start(self, title: str) -> None:
        self._print(title)
        self.last_line = time.monotonic()
        if not self.console.is_terminal:
            return
        self.accuracy = ""
        bar = self._open(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f}%  {task.fields[state]}"),
        )
        self.task = bar.add_task("", total=None, epoch="1", state="")

    def step(self, step: Step) -> None:
        speed = f"{step.images_per_second:,.0f} images/s  {_duration(step.seconds_left)} left"
        state = f"loss {step.loss:.4f}{self.accuracy}  {speed}"
        if self.bar is not None:
            self.bar.update(
                self.task,
                total=step.epochs * step.steps,
                completed=(step.epoch - 1) * step.steps + step.step,
                epoch=f"{step.epoch}/{step.epochs}",
                state=state,
            )
        elif time.monotonic() - self.last_line > PLAIN_SECONDS:
            self.last_line = time.monotonic()
            self._print(f"epoch {step.epoch}/{step.epochs}  step {step.step}/{step.steps}  {state}")

    def epoch(self, epoch: Epoch) -> None:
        if epoch.validation_accuracy is not None:
            self.accuracy = f"  validation {epoch.validation_accuracy:.2%}"
        self.last_line = time.monotonic()
        self._print(
            f"epoch {epoch.epoch}/{epoch.epochs}  loss {epoch.train_loss:.4f}{self.accuracy}  "
            f"{epoch.images_per_second:,.0f} images/s  {epoch.seconds:.1f} s"
        )

    def end(self) -> None:
        self._close()

    def _print(self, text: str) -> None:
        # On the bar's console, so that lines appear above the bar.
        self.console.print(text, markup=False)

    def _open(self, *columns: ProgressColumn) -> Progress:
        self._close()
        self.bar = Progress(*columns, console=self.console, transient=True)
        self.bar.start()
        return self.bar

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
        self.bar = None


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
