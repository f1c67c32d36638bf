"""Code in run folders: no more of it is run than its user trained here, or trusts."""

import json
import shutil
import sys
from pathlib import Path
from urllib.request import urlopen

import pytest
import torch
from helpers.training import SGD, StopAt

import branchwork as bw
from branchwork.cli import main, take_trust
from branchwork.errors import BranchworkError, Interrupted, RunError
from branchwork.page import serve
from branchwork.training.trust import trusting

SCRIPT = """
import torch
from torch import nn
from parts import Head

class Net(nn.Sequential):
    def __init__(self):
        with open("ran", "a") as file:
            file.write("ran ")
        super().__init__(nn.Flatten(), Head())
"""
TINY = SGD.but({"epochs": 1, "batch_size": 500})


@pytest.fixture(scope="module")
def original(small, tmp_path_factory) -> Path:
    """A run of somebody else's script, and in its folder `stopped` one that was interrupted."""
    root = tmp_path_factory.mktemp("root")
    (root / "theirs").mkdir()
    (root / "theirs/mine.py").write_text(SCRIPT)
    (root / "theirs/parts.py").write_text("from torch import nn\nclass Head(nn.Linear):\n"
                                          "    def __init__(self):\n        super().__init__(784, 10)\n")  # fmt: skip
    with pytest.MonkeyPatch.context() as other:
        other.setenv("XDG_STATE_HOME", str(root / "state"))
        other.chdir(root)
        bw.train("theirs/mine.py:Net", data=small, recipe=TINY, out="foreign")
        with pytest.raises(Interrupted):
            bw.train("theirs/mine.py:Net", data=small, recipe=TINY, out="foreign/stopped", progress=StopAt(1, 1))
    shutil.rmtree(root / "theirs")
    return root / "foreign"


@pytest.fixture
def foreign(original, tmp_path, monkeypatch) -> Path:
    """A copy of that run, for a user who trusts nothing yet."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr("branchwork.training.trust._REMEMBERED", set())
    return Path(shutil.copytree(original, "foreign"))


def ran() -> bool:
    """Whether the script was run."""
    found = Path("ran").exists()
    Path("ran").unlink(missing_ok=True)
    return found


def test_code_asks_once_and_says_what_it_would_run(foreign, command, refused):
    words = ("evaluate", "foreign", "--data", "sample")
    text = refused(*words)
    assert "foreign was not trained here" in text and "add --trust to the command" in text
    assert "foreign/script/theirs/mine.py" in text and "foreign/script/theirs/parts.py" in text
    for verb, *more in (("predict", "7.png"), ("inspect",), ("explain",), ("bench",)):
        assert "foreign was not trained here" in refused(verb, "foreign", *more)
    assert not ran()
    assert command("inspect", "foreign", "--trust")[0] == 0 and ran()
    assert command(*words)[0] == 0 and ran()  # it is remembered
    shutil.move("foreign", "elsewhere")
    assert bw.load_run("elsewhere") and ran()
    script = Path("elsewhere/script/theirs/parts.py")
    script.write_text(script.read_text() + "x = 1\n")  # it is other code now
    with pytest.raises(RunError, match="was not trained here"):
        bw.load_run("elsewhere")
    assert not ran()
    assert bw.load_run("elsewhere", trust=True) and bw.load_run("elsewhere") and ran()


def test_a_training_that_is_continued_asks_too(foreign, small):
    with pytest.raises(RunError, match=r"stopped was not trained here, and its net is code"):
        bw.resume("foreign/stopped", data=small)
    net = json.loads(Path("foreign/model.json").read_text())["net"]
    plan = {"net": net, "data": "sample", "checksum": 1, "recipe": vars(TINY), "precision": "fp32"}
    plans = [plan | {"options": vars(bw.Options(seed=seed))} for seed in (0, 1)]
    Path("seeds").mkdir()
    shutil.copytree("foreign/script", "seeds/script")
    Path("seeds/seeds.json").write_text(json.dumps(plans))
    with pytest.raises(RunError, match="seeds was not trained here"):
        bw.resume_seeds("seeds", data=small)
    assert not ran()
    with trusting(True):
        assert bw.resume("foreign/stopped", data=small).epochs == 1 and ran()


def test_a_page_of_foreign_code_is_not_built(foreign):
    with pytest.raises(BranchworkError, match="was not trained here"):
        serve.ui(foreign)
    assert not ran()


def test_the_server_of_pages_trusts_what_its_command_trusts(foreign, monkeypatch):
    monkeypatch.setattr(serve, "build_page", lambda run, **_: ("title", str(bw.load_run(run).folder)))
    shutil.copytree("foreign", "runs/foreign")
    with trusting(True):
        server = serve.ui("runs")
    with server, urlopen(server.address + "foreign") as answer:
        assert answer.read() == b"runs/foreign" and ran()


def test_a_model_that_names_a_module_asks(run, tmp_path, monkeypatch):
    """Also one that is installed: `os:system` is a callable, too."""
    copy = shutil.copytree(run.folder, tmp_path / "copy")
    model = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(model | {"net": "this:s"}))  # a module that prints as it is imported
    with pytest.raises(RunError, match=r"its net is code, which would be run: this:s\. Code can do anything"):
        bw.load_run(copy)
    assert "this" not in sys.modules
    Path("evil.py").write_text("from pathlib import Path\ndef net():\n    Path('ran').touch()\n")
    (copy / "model.json").write_text(json.dumps(model | {"net": "evil:net"}))
    with pytest.raises(RunError, match=r"which would be run: evil:net, .*evil\.py"):
        bw.load_run(copy)
    assert not ran()


def test_whatever_lies_beside_the_script_is_part_of_what_is_trusted(foreign):
    bw.load_run("foreign", trust=True)
    for name in ("torchvision.cpython-311-x86_64-linux-gnu.so", "__pycache__/parts.cpython-311.pyc", "parts.pyc"):
        path = Path("foreign/script/theirs", name)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(b"code")
        with pytest.raises(RunError, match="was not trained here"):
            bw.load_run("foreign")
        path.unlink()
    Path("foreign/script/theirs/link").symlink_to("..", target_is_directory=True)
    with pytest.raises(RunError, match="link cannot be read"):
        bw.load_run("foreign")


def test_what_this_user_trained_is_trusted_later_too_and_leaves_no_bytecode(small, monkeypatch):
    Path("mine.py").write_text(SCRIPT)
    Path("parts.py").write_text("from torch import nn\ndef Head():\n    return nn.Linear(784, 10)\n")
    bw.train("mine.py:Net", data=small, recipe=TINY, out="run", run_script=True)
    Path("mine.py").unlink()
    monkeypatch.setattr("branchwork.training.trust._REMEMBERED", set())  # as in another process
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    for _ in range(2):
        assert bw.load_run("run")
    assert sorted(path.name for path in Path("run/script").rglob("*") if path.is_file()) == ["mine.py", "parts.py"]


def test_nets_of_the_catalogue_need_no_trust(run, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "nothing"))
    assert bw.load_run(run.folder) and not Path("nothing").exists()


def test_a_home_that_cannot_be_written_does_not_stand_in_the_way(small, tmp_path, monkeypatch):
    Path("file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    Path("mine.py").write_text("from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), "
                               "nn.Linear(784, 10))\n")  # fmt: skip
    bw.train("mine.py:net", data=small, recipe=TINY, out="run")
    assert isinstance(bw.load_run("run").net[1], torch.nn.Linear)


def test_the_flag_is_taken_before_pictures(capsys):
    assert take_trust(["predict", "--trust", "run", "--", "--trust"]) == (["predict", "run", "--", "--trust"], True)
    assert take_trust(["predict", "run", "--", "--trust"]) == (["predict", "run", "--", "--trust"], False)
    assert main(["predict", "--help"]) == 0 and "--trust" in capsys.readouterr().out
