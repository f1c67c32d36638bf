"""What Windows does otherwise than POSIX, as far as any system can show it: drives, open files, Ctrl-C, quotes."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import LINUX
from helpers.training import SGD

import branchwork as bw
from branchwork.catalogue.resolve import in_script, own_script, short_name, split_options, split_own
from branchwork.errors import NetError
from branchwork.files import temporary_folder
from branchwork.tensors import read_tensors, write_tensors

TINY = SGD.but({"epochs": 1, "batch_size": 100})
MINE = "from torch import nn\ndef net():\n    return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))\n"


@pytest.mark.parametrize("path", [r"C:\x\net.py", "C:/x/net.py", r"C:\a b\卷积 网络.py", r"\\server\share\net.py"])
def test_the_letter_of_a_drive_is_part_of_the_path(path):
    assert split_own(f"{path}:Net") == (path, "Net") and split_own(path) == (path, "")
    assert split_options(f"{path}:Net:without=b5") == (f"{path}:Net", {"without": "b5"})
    assert split_options(f"{path}:without=b5") == (path, {"without": "b5"})
    assert own_script(f"{path}:Net[without=b5]") == path
    assert in_script(f"{path}:Net", Path("other.py")) == "other.py:Net"
    stem = path.replace("\\", "/").rpartition("/")[2].removesuffix(".py")
    assert short_name(f"{path}:Net") == f"{stem}-Net" and short_name(path) == stem


@pytest.mark.parametrize("path", [r"C:\x\net", "C:/x/net"])
def test_a_path_that_is_no_script_is_not_taken_for_a_module_called_as_the_drive(path):
    with pytest.raises(NetError, match="there is no net called"):
        bw.build_net(path)


def test_a_run_that_was_trained_on_windows_is_loaded_here(small):
    Path("mine.py").write_text(MINE, encoding="utf-8")
    bw.train("mine.py:net", data=small, recipe=TINY, out="run", options=bw.Options(report=False))
    expected = bw.load_run("run").net.state_dict()
    model = json.loads(Path("run/model.json").read_text(encoding="utf-8"))
    there = rf"C:\Users\me\{Path.cwd().name}\mine.py:net"
    Path("run/model.json").write_text(json.dumps(model | {"net": there}), encoding="utf-8")
    Path("mine.py").unlink()
    loaded = bw.load_run("run", trust=True).net.state_dict()
    assert loaded.keys() == expected.keys() and all(torch.equal(loaded[key], expected[key]) for key in expected)


def test_a_lock_that_is_held_open_is_left_for_its_release(monkeypatch):
    """Windows removes no file that is open."""
    unlink = Path.unlink

    def refuse(path, missing_ok=False):
        if path.suffix == ".lock":
            raise PermissionError(13, "The process cannot access the file")
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", refuse)
    with temporary_folder() as folder:
        (folder / "file").touch()
    assert not folder.exists()


@LINUX
def test_tensors_that_were_read_do_not_hold_their_file(tmp_path):
    """Windows replaces no file that is mapped: a training could not be continued."""
    path = tmp_path / "state.safetensors"
    write_tensors(path, {"weight": torch.ones(1000)})
    tensors, _ = read_tensors(path)
    assert len(tensors["weight"]) == 1000 and str(path) not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_ctrl_c_ends_the_page(run, command, monkeypatch):
    """On Windows, Ctrl-C interrupts a sleep, but not the wait for an event."""

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["branchwork.cli.ui"], "time", SimpleNamespace(sleep=interrupted))
    code, out, err = command("ui", run.folder, "--no-browser")
    assert code == 130 and "http://127.0.0.1:" in out and err.strip().endswith("interrupted")


def test_commands_that_install_work_in_every_shell(monkeypatch, refused):
    """cmd.exe knows no single quotes: pip would be given them."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name, package=None: None)
    assert 'pip install "branchwork[log]"' in refused("train", "residual", "--data", "sample", "--log", "tensorboard")
    assert 'pip install "branchwork[explain]"' in refused("explain", "run", "7.jpg")
