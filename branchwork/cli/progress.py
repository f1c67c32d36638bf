"""A training on the screen: a progress bar on a terminal, plain lines elsewhere. All of it goes to stderr."""

import time

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn

from branchwork.observer import Epoch, Observer, Step

# Without a terminal, the seconds after which a running epoch says again how it stands.
PLAIN_SECONDS = 15.0


class Screen(Observer):
    def __init__(self) -> None:
        self.console = Console(stderr=True, highlight=False, soft_wrap=True)
        self.bar: Progress | None = None
        self.task: TaskID | None = None
        self.said = 0.0
        self.downloading: str | None = None

    def note(self, message: str) -> None:
        self._print(message)

    def download(self, name: str, done: int, total: int) -> None:
        finished = total > 0 and done >= total
        if self.console.is_terminal:
            if self.downloading != name:
                self._close()
                self.bar = Progress(
                    TextColumn("{task.description}"),
                    BarColumn(),
                    DownloadColumn(),
                    console=self.console,
                    transient=True,
                )
                self.bar.start()
                self.task = self.bar.add_task(f"fetching {name}", total=total or None)
            assert self.bar is not None and self.task is not None
            self.bar.update(self.task, completed=done, total=total or None)
            if finished:
                self._close()
        elif self.downloading != name:
            size = f" ({total / 1e6:.1f} MB)" if total else ""
            self._print(f"fetching {name}{size}")
        self.downloading = name

    def start(self, title: str) -> None:
        self._print(title)
        self.said = time.monotonic()
        if not self.console.is_terminal:
            return
        self.bar = Progress(
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[state]}"),
            console=self.console,
            transient=True,
        )
        self.bar.start()
        self.task = self.bar.add_task("", total=None, epoch="1", state="")

    def step(self, step: Step) -> None:
        state = f"loss {step.loss:.4f}  {step.images_per_second:,.0f} images/s  {_duration(step.seconds_left)} left"
        if self.bar is not None and self.task is not None:
            self.bar.update(
                self.task,
                total=step.epochs * step.steps,
                completed=(step.epoch - 1) * step.steps + step.step,
                epoch=f"{step.epoch}/{step.epochs}",
                state=state,
            )
        elif time.monotonic() - self.said > PLAIN_SECONDS:
            self.said = time.monotonic()
            self._print(f"epoch {step.epoch}/{step.epochs}  step {step.step}/{step.steps}  {state}")

    def epoch(self, epoch: Epoch) -> None:
        accuracy = "" if epoch.validation_accuracy is None else f"  validation {epoch.validation_accuracy:.2%}"
        self.said = time.monotonic()
        self._print(
            f"epoch {epoch.epoch}/{epoch.epochs}  loss {epoch.train_loss:.4f}{accuracy}  "
            f"{epoch.images_per_second:,.0f} images/s  {epoch.seconds:.1f} s"
        )

    def end(self) -> None:
        self._close()

    def _print(self, text: str) -> None:
        # Through the bar's console, so that lines appear above the bar.
        self.console.print(text, markup=False)

    def _close(self) -> None:
        if self.bar is not None:
            self.bar.stop()
        self.bar = self.task = None


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
