"""Files that may not be read or written: they are called forbidden, not damaged, and what can be shown is."""

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from helpers.folders import SHORT, train, two_classes
from safetensors.torch import save_file

import branchwork as bw
from branchwork.errors import BranchworkError
from branchwork.training.checkpoint import load_state
from branchwork.training.recipes import fast

pytestmark = pytest.mark.skipif(os.name != "posix", reason="Windows has other permissions")


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> Path:
    """A pack, a run on it, and weights."""
    root = tmp_path_factory.mktemp("originals")
    two_classes(root / "pets")
    bw.pack(root / "pets", out=root / "pets.pack")
    bw.inspect("residual")  # imports what a user without rights may not read here
    train(data=str(root / "pets.pack"), recipe=fast("residual", 16).but(SHORT), out=root / "run")
    weights = bw.NETS["residual"]().state_dict()
    save_file(weights, root / "w.safetensors")
    torch.save(weights, root / "w.pth")
    return root


@pytest.fixture
def place(originals, monkeypatch) -> Iterator[Path]:
    """A copy in a folder that everybody may enter: those of pytest are root's alone."""
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        shutil.copytree(originals, folder, dirs_exist_ok=True)
        Path(folder).chmod(0o755)
        monkeypatch.chdir(folder)
        yield Path(folder)


@contextmanager
def without_rights() -> Iterator[None]:
    """What root may do is what others may."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


@pytest.mark.parametrize(
    ("file", "use"),
    [
        ("run/model.json", lambda: bw.load_run("run")),
        ("run/model.safetensors", lambda: bw.load_run("run")),
        ("run/last/state.safetensors", lambda: load_state(Path("run"))),
        ("w.safetensors", lambda: bw.load_weights(bw.NETS["residual"](), "w.safetensors")),
        ("w.pth", lambda: bw.load_weights(bw.NETS["residual"](), "w.pth")),
        ("pets.pack", lambda: bw.load_data("pets.pack")),
    ],
)
def test_a_forbidden_file_is_called_so(place, file, use):
    use()
    Path(file).chmod(0)
    with without_rights(), pytest.raises(BranchworkError) as caught:
        use()
    assert f"{file} cannot be read (Permission denied): you have no permission" in str(caught.value)
    assert "damaged" not in str(caught.value) and "again" not in str(caught.value)


@pytest.mark.parametrize("mode", [0o000, 0o444])  # 0o444 lists the names, and lets nobody enter
@pytest.mark.parametrize(
    ("folder", "asked", "use"),
    [
        ("run", "run", lambda: bw.load_run("run")),
        ("pets", "pets", lambda: bw.load_data("pets")),
        ("pets", "pets/none.pack", lambda: bw.load_data("pets/none.pack")),
        ("run", "run/last", lambda: bw.load_run("run/last")),
        ("code", "code/net.py", lambda: bw.inspect("code/net.py:Net")),
    ],
)
def test_a_forbidden_folder_is_not_called_missing(place, folder, asked, use, mode):
    Path(folder).mkdir(exist_ok=True)
    Path(folder).chmod(mode)
    with without_rights(), pytest.raises(BranchworkError) as caught:
        use()
    assert f"{asked} cannot be read (Permission denied): you have no permission" in str(caught.value)


@pytest.mark.parametrize(
    ("words", "drawing", "measured"),
    [
        (("evaluate", "run", "--data", "pets.pack"), "mistakes.png", "of 4 test images"),
        (
            ("bench", "run", "--engines", "torch", "--precisions", "fp32", "--batch-sizes", 1, "--seconds", 0.01),
            "bench.svg",
            "torch",
        ),
    ],
)
def test_a_run_that_may_only_be_read_is_measured_and_not_drawn_in(place, command, words, drawing, measured):
    command(*words)
    Path("run", drawing).unlink()
    Path("run").chmod(0o555)
    with without_rights():
        code, out, err = command(*words)
    assert code == 0 and measured in out, err
    assert f"{drawing} is not drawn: cannot write run/{drawing}: Permission denied" in out
    assert not Path("run", drawing).exists()


@pytest.mark.parametrize(
    ("words", "worker"),
    [
        (("bench", "run", "--draw", "run/a.svg"), "deploy.bench.ship"),
        (("bench", "run", "--json", "run/a.json"), "deploy.bench.ship"),
        (("explain", "run", "--draw", "run/a.svg"), "explaining.worth.load_for"),
        (("explain", "run", "pet.png", "--draw", "run/a.svg"), "explaining.attribution.read_image"),
    ],
)
def test_what_cannot_be_written_is_said_before_the_work(place, refused, words, worker, monkeypatch):
    def work(*arguments, **options):
        raise AssertionError("the work began")

    monkeypatch.setattr(f"branchwork.{worker}", work)
    Path("run").chmod(0o555)
    with without_rights():
        assert f"cannot write {words[-1]}: Permission denied" in refused(*words)
