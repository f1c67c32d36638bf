"""What the tests share. None of them reaches the network but test_mnist.py and what it lends its data to."""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import hypothesis
import pytest
from helpers.tiny_study import alone  # noqa: F401, a fixture

from branchwork.cli import main
from branchwork.datasets.dataset import DataSet, Split
from branchwork.datasets.load import load_data
from branchwork.training.recipes import fast
from branchwork.training.result import Result
from branchwork.training.train import train

ROOT = Path(__file__).parents[1]
os.environ["COLUMNS"] = "120"  # tables of one width on every machine
# What the tests trust is not remembered in the home of whoever runs them. Set before a test module copies it all.
STATE_HOME = tempfile.TemporaryDirectory()
os.environ["XDG_STATE_HOME"] = STATE_HOME.name
hypothesis.settings.register_profile("no deadline", deadline=None)  # these machines are noisy
hypothesis.settings.load_profile("no deadline")


def pytest_addoption(parser):
    parser.addoption("--overwrite", action="store_true", help="write the golden texts anew; look at the difference")


@pytest.fixture(autouse=True)
def short_reports(request, monkeypatch):
    """Reports draw and measure no net, which takes a second for each training: test_report.py looks at that."""
    if request.path.name != "test_report.py":
        monkeypatch.setattr("branchwork.training.net_report.MOST_LAYERS", 0)


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


WORDS = (sys.executable, "-m", "branchwork")


def in_a_process(*arguments: object, words: Sequence[str] = WORDS) -> "subprocess.CompletedProcess[str]":
    """The command in a fresh process, to its end."""
    return subprocess.run([*words, *map(str, arguments)], capture_output=True, text=True, timeout=300)
