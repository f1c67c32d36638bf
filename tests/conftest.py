"""What the tests share. None of them reaches the network but test_mnist.py and what it lends its data to."""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import hypothesis
import pytest
import torch
from helpers import faults
from helpers.tiny_study import alone  # noqa: F401, a fixture

from branchwork.cli import main
from branchwork.datasets.dataset import DataSet, Split
from branchwork.datasets.load import load_data
from branchwork.training.options import Options
from branchwork.training.recipe import Recipe
from branchwork.training.recipes import fast
from branchwork.training.result import Result
from branchwork.training.train import train

ROOT = Path(__file__).parents[1]
POSIX = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX system: its signals, rights or shell")
GPU = (pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU of NVIDIA or AMD"))
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="needs Linux: its /proc, or a limit on memory")
os.environ["COLUMNS"] = "120"  # tables of one width on every machine
# What the tests trust is not remembered in the home of whoever runs them. Set before a test module copies it all.
STATE_HOME = tempfile.TemporaryDirectory()
os.environ["XDG_STATE_HOME"] = STATE_HOME.name
hypothesis.settings.register_profile("no deadline", deadline=None)  # these machines are noisy
hypothesis.settings.load_profile("no deadline")


def pytest_addoption(parser):
    parser.addoption("--overwrite", action="store_true", help="write the golden texts anew; look at the difference")
    parser.addoption("--all-faults", action="store_true", help="tests/faults tries every fault, and not a few of each")


def pytest_configure(config):
    faults.every = config.getoption("all_faults")


@pytest.fixture
def tries(record_property):
    """Counts how often the test tries its promise. The test fails at its end, with all that failed."""
    counted = faults.Tries()
    yield counted
    record_property("tries", (counted.count, len(counted.failures)))
    assert not counted.failures, "\n".join(counted.failures[:20])


def pytest_terminal_summary(terminalreporter):
    """Show how often each promise was tried."""
    counts: dict[str, list[int]] = {}
    for report in terminalreporter.getreports("") + terminalreporter.getreports("error"):
        if report.when == "teardown":
            for tried, failed in (value for name, value in report.user_properties if name == "tries"):
                row = counts.setdefault(report.nodeid.partition("[")[0], [0, 0])
                row[:] = row[0] + tried, row[1] + failed
    for name, (tried, failed) in sorted(counts.items()):
        terminalreporter.write_line(f"{tried:>9,} tries {failed:>5,} failures  {name}")


@pytest.fixture(autouse=True)
def short_reports(request, monkeypatch):
    """Reports draw and measure no net, which takes a second for each training: test_report.py looks at that."""
    if request.path.name != "test_report.py":
        monkeypatch.setattr("branchwork.training.net_report.MOST_LAYERS", 0)


@pytest.fixture(autouse=True)
def unsynced(monkeypatch):
    """Tests need not survive a power cut, and a busy disk may take a minute over a sync."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.fixture(autouse=True)
def own_places(tmp_path, monkeypatch):
    """Each test works in a folder of its own, with a cache of its own."""
    monkeypatch.setenv("BRANCHWORK_DATA", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def sample() -> DataSet:
    return load_data("sample")


@pytest.fixture(scope="session")
def small(sample) -> DataSet:
    """1,500 digits to train and 300 to test, under the name of the sample."""
    return DataSet(
        "sample",
        Split(sample.train.images[:1500], sample.train.labels[:1500]),
        Split(sample.test.images[:300], sample.test.labels[:300]),
        sample.classes, sample.mean, sample.std, sample.pictures, sample.origin,
    )  # fmt: skip


@pytest.fixture(scope="session")
def run(sample, tmp_path_factory) -> Result:
    """A residual net trained well enough to be asked questions."""
    folder = tmp_path_factory.mktemp("runs") / "residual"
    return train("residual", data=sample, recipe=fast("residual", 6000).but({"epochs": 4}), out=folder)


@pytest.fixture(scope="module")
def never_stopped(small, tmp_path_factory):
    """Give the run of a net on the small data that nothing stopped; each is trained once."""
    runs = {}

    def folder(net: str, recipe: Recipe) -> Path:
        if (net, recipe) not in runs:
            runs[net, recipe] = tmp_path_factory.mktemp("never-stopped") / "run"
            train(net, data=small, recipe=recipe, options=Options(report=False), out=runs[net, recipe])
        return runs[net, recipe]

    return folder


@pytest.fixture
def limit_files():
    """Set how many bytes a file may have, as if the disk were full then."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda most: resource.setrlimit(resource.RLIMIT_FSIZE, (most, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def command(capsys):
    """Run the command in this process: gives its exit code, standard output and standard error."""

    def call(*arguments: object) -> tuple[int, str, str]:
        code = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


@pytest.fixture
def refused(command):
    """Run a command that must be refused: exit code 2, nothing on stdout, one message last on stderr: gives that."""

    def call(*arguments: object) -> str:
        code, out, err = command(*arguments)
        assert code == 2, (code, out, err)
        assert out == "" and "Traceback" not in err
        _, *messages = re.split("^branchwork: ", err, flags=re.MULTILINE)
        assert len(messages) == 1, err
        return messages[0].strip()

    return call


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs Playwright: pip install playwright")
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        pytest.skip("needs Chromium")
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=chromium, args=["--no-sandbox", "--disable-gpu"])


WORDS = (sys.executable, "-m", "branchwork")


def in_a_process(*arguments: object, words: Sequence[str] = WORDS) -> "subprocess.CompletedProcess[str]":
    """The command in a fresh process, to its end."""
    return subprocess.run([*words, *map(str, arguments)], capture_output=True, text=True, timeout=300)
