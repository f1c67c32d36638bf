"""Progress: plain lines in a file, a bar on a terminal, one line in a notebook, and nothing unless it is asked for."""

import dataclasses
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from helpers.folders import two_classes
from rich.console import Console

import branchwork as bw
from branchwork import screen
from branchwork.observer import Epoch, Observer, Step

STEP = Step(epoch=2, epochs=3, step=5, steps=10, loss=0.5, images_per_second=1234, seconds_left=3725)
EPOCH = Epoch(epoch=2, epochs=3, train_loss=0.25, validation_accuracy=None, seconds=1.5, images_per_second=4000)


def test_nothing_is_shown_unless_it_is_asked_for(capsys):
    two_classes(Path("pets"))
    bw.load_data("pets")
    assert capsys.readouterr() == ("", "")
    bw.load_data("pets", progress=True)
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("pets: 20 pictures, as 3×20×20")
    own = Observer()
    assert screen.watch(own) is own


def test_plain_lines_say_loss_speed_and_time_left_now_and_then(capsys, monkeypatch):
    lines = screen.watch(True)
    assert type(lines) is screen.Lines
    lines.start("x")
    lines.step(STEP)
    monkeypatch.setattr(screen, "PLAIN_SECONDS", -1)
    lines.step(STEP)
    monkeypatch.setattr(screen, "PLAIN_SECONDS", 15)
    lines.epoch(EPOCH)
    for _ in range(2):  # a second mirror, where the first failed
        lines.download("file.gz", 10, 2_000_000)
        lines.download("file.gz", 2_000_000, 2_000_000)
        lines.download_end()
    lines.end()
    assert capsys.readouterr().err.splitlines() == [
        "x",
        "epoch 2/3  loss 0.5000  1,234 images/s  1:02:05 left",
        "epoch 2/3  loss 0.2500  4,000 images/s  1.5 s",
        "fetching file.gz  0.0 of 2.0 MB",
        "fetching file.gz  0.0 of 2.0 MB",
    ]


def test_the_time_left_counts_only_what_was_done_since(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(screen, "time", SimpleNamespace(monotonic=lambda: now[0]))
    lines = screen.watch(True)
    lines.count("trainings", 90, 100)  # 90 were there already
    now[0] += 20
    lines.count("trainings", 92, 100)
    assert capsys.readouterr().err.splitlines() == ["trainings  92 of 100  1:20 left"]


def shown(terminal):
    """The bar on a terminal of 80 columns."""
    with open(os.devnull, "w") as nowhere:
        console = Console(force_terminal=True, width=80, record=True, file=nowhere)
        console.print(terminal.bar.get_renderable())
    (line,) = console.export_text().splitlines()
    return line.rstrip()


def test_a_terminal_gets_a_bar_that_fits_80_columns():
    with open(os.devnull, "w") as nowhere:
        console = Console(force_terminal=True, width=80, record=True, file=nowhere)
        terminal = screen.Terminal(console)
        for done in (10, 100, 0, 100):  # from one mirror, and again from the next
            terminal.download("file.gz", done, 100)
            assert terminal.bar is not None and terminal.bar.tasks[0].completed == done
        terminal.download_end()
        assert terminal.bar is None
        terminal.start("a title")
        terminal.step(STEP)
        task = terminal.bar.tasks[0]
        assert (task.completed, task.total) == (15, 30) and "1:02:05 left" in task.fields["state"]
        terminal.epoch(dataclasses.replace(EPOCH, validation_accuracy=0.75))
        terminal.step(STEP)
        assert "validation 75.00%" in terminal.bar.tasks[0].fields["state"]
        training = shown(terminal)
        terminal.end()
        assert terminal.bar is None
        terminal.count("net[without=b5]", 1, 2)  # brackets are no markup
        assert shown(terminal).startswith("net[without=b5]")
        terminal.count_end()
    assert training.startswith("epoch 2/3") and training.endswith("1,234 images/s  1:02:05 left")
    assert "loss 0.2500" in console.export_text()


@pytest.fixture
def cell(monkeypatch):
    """A notebook's cell: what each display shows now, as text."""
    shown = []

    class Handle:
        def __init__(self, data):
            self.number = len(shown)
            shown.append(data)

        def update(self, data, raw):
            shown[self.number] = data

    kernel = ModuleType("IPython")
    kernel.get_ipython = lambda: SimpleNamespace(kernel=None)
    kernel.display = ModuleType("IPython.display")
    kernel.display.display = lambda data, raw, display_id: Handle(data)
    monkeypatch.setitem(sys.modules, "IPython", kernel)
    monkeypatch.setitem(sys.modules, "IPython.display", kernel.display)
    return shown


def test_a_notebook_shows_one_line_whatever_happens(cell, capsys, monkeypatch):
    monkeypatch.setattr(screen, "NOTEBOOK_SECONDS", -1)
    line = screen.watch(True)
    line.note("data: <MNIST>")
    assert [one["text/plain"] for one in cell] == ["data: <MNIST>"] and "&lt;MNIST&gt;" in cell[0]["text/html"]
    line.start("a title")
    line.step(STEP)
    assert '<progress value="15" max="30">' in cell[0]["text/html"]
    assert cell[0]["text/plain"] == "epoch 2/3  loss 0.5000  1,234 images/s  1:02:05 left"
    line.epoch(EPOCH)
    line.end()
    assert cell[0]["text/plain"] == "epoch 2/3  loss 0.2500  4,000 images/s  1.5 s"
    line.count("reading", 1, 2)
    monkeypatch.setattr(screen, "NOTEBOOK_SECONDS", 9)
    line.count("reading", 2, 2)
    assert cell[0]["text/plain"].startswith("reading  1 of 2")  # too soon after the last
    line.count_end()
    assert cell[0]["text/plain"].startswith("reading  2 of 2") and "<progress" not in cell[0]["text/html"]
    assert len(cell) == 1 and capsys.readouterr() == ("", "")


def test_ipython_on_a_terminal_is_no_notebook(cell, monkeypatch):
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: SimpleNamespace())
    assert type(screen.watch(True)) is screen.Lines
