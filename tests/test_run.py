"""A run folder that was damaged: one message, and never a traceback."""

import json
import re
import shutil
from pathlib import Path

import pytest
from helpers.training import SGD, SMALL, Small, StopAt

import branchwork as bw
from branchwork.errors import Interrupted, RunError
from branchwork.files import FORMAT
from branchwork.tensors import read_tensors, write_tensors
from branchwork.training.result import read_result
from branchwork.training.run import SCRIPTS, Model, load_run, write_model, write_top


@pytest.fixture
def folder() -> Path:
    """A run as `train` leaves it, of a net that was not trained."""
    model = Model(SMALL, 1, (28, 28), tuple("0123456789"), (0.13,), (0.31,), "digits", "sample", bw.fast())
    write_model(Path("run"), Small().state_dict(), model)
    return Path("run")


def test_a_run_that_nothing_happened_to_is_loaded(folder):
    assert load_run(folder, trust=True).model.recipe == bw.fast()


def test_a_run_from_before_the_newest_fields_is_read_with_their_defaults(folder):
    path = folder / "model.json"
    model = json.loads(path.read_text())
    assert model.pop("format") == FORMAT
    del model["recipe"]["refine"]
    path.write_text(json.dumps(model))
    assert load_run(folder, trust=True).model.recipe == bw.fast().but({"refine": 0.0})


@pytest.fixture(scope="module")
def stopped(small, tmp_path_factory) -> Path:
    """Two seeds that were stopped in the second."""
    folder = tmp_path_factory.mktemp("seeds") / "seeds"
    with pytest.raises(Interrupted):
        bw.train_seeds(SMALL, seeds=2, data=small, recipe=SGD.but({"epochs": 1}), out=folder, progress=StopInSecond())
    return folder


NEVER = (999, 0)


class StopInSecond(StopAt):
    """Presses Ctrl-C in the second of several trainings."""

    def __init__(self):
        super().__init__(*NEVER)

    def start(self, title):
        self.at = (1, 1) if "seed 1" in title else NEVER


NEWER = r" was written by a newer Branchwork \(format 2, and this one reads up to 1\): pip install --upgrade"


@pytest.mark.parametrize(
    ("file", "read"),
    [
        ("seed-0/model.json", lambda folder: load_run(folder / "seed-0")),
        ("seed-0/result.json", lambda folder: read_result(folder / "seed-0")),
        ("seed-1/last/state.safetensors", lambda folder: bw.resume(folder / "seed-1")),
        ("seeds.json", bw.resume_seeds),
    ],
)
def test_a_run_of_a_newer_program_is_told_as_that(stopped, tmp_path, file, read):
    folder = shutil.copytree(stopped, tmp_path / "seeds")
    path = folder / file

    def newer(text: str) -> str:
        assert '"format": 1' in text
        # It has a field that this program does not know, too.
        return text.replace('"format": 1', '"format": 2').replace("batch_size", "batch_time")

    if path.suffix == ".safetensors":
        tensors, about = read_tensors(path)
        texts = {key: newer(text) for key, text in about.items() if key in ("plan", "position")}
        write_tensors(path, tensors, texts)
    else:
        path.write_text(newer(path.read_text()))
    with pytest.raises(RunError, match=re.escape(path.name) + NEWER):
        read(folder)


def without_a_recipe_field(model: dict) -> str:
    del model["recipe"]["epochs"]
    return json.dumps(model)


DAMAGES = {
    "a field of the recipe is missing": without_a_recipe_field,
    "a field of the recipe is impossible": lambda model: json.dumps(
        model | {"recipe": model["recipe"] | {"epochs": 0}}
    ),
    "a number has thirty digits": lambda model: json.dumps(model | {"in_channels": 10**30}),
    "it is nested a thousand levels deep": lambda model: "[" * 1000 + "]" * 1000,
    "it is nested a hundred thousand levels deep": lambda model: "[" * 100_000,
    "its channels do not fit its mean": lambda model: json.dumps(model | {"in_channels": 3}),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_model_is_one_message(folder, damage):
    path = folder / "model.json"
    path.write_text(damage(json.loads(path.read_text())))
    with pytest.raises(RunError, match=r"model\.json is damaged \(.*train again"):
        load_run(folder)


def test_a_folder_in_the_place_of_a_kept_script_is_one_message(folder):
    Path("mine.py").write_text("from helpers.training import Small\n")
    model = json.loads((folder / "model.json").read_text())
    (folder / "model.json").write_text(json.dumps(model | {"net": "mine.py:Small"}))
    assert load_run(folder, trust=True)
    (folder / SCRIPTS / "mine.py").mkdir(parents=True)
    with pytest.raises(RunError, match=r"script.mine\.py cannot be read"):
        load_run(folder)


def test_a_folder_in_the_place_of_an_epoch_is_one_message(folder):
    (folder / "top/epoch-2.safetensors").mkdir(parents=True)
    history = [{"epoch": number, "validation_accuracy": number / 10, "train_loss": 1.0} for number in (1, 2)]
    with pytest.raises(RunError, match=r"cannot write .*epoch-2\.safetensors"):
        write_top(folder, history, Small().state_dict(), count=1)
    better = [*history, {"epoch": 3, "validation_accuracy": 0.9, "train_loss": 1.0}]
    with pytest.raises(RunError, match=r"cannot remove .*epoch-2\.safetensors"):
        write_top(folder, better, Small().state_dict(), count=1)
