"""A run folder that was damaged: one message, and never a traceback."""

import json
from pathlib import Path

import pytest
from helpers.training import SMALL, Small

import branchwork as bw
from branchwork.errors import RunError
from branchwork.training.run import SCRIPTS, Model, load_run, write_model, write_top


@pytest.fixture
def folder() -> Path:
    """A run as `train` leaves it, of a net that was not trained."""
    model = Model(SMALL, 1, (28, 28), tuple("0123456789"), (0.13,), (0.31,), "digits", "sample", bw.fast())
    write_model(Path("run"), Small().state_dict(), model)
    return Path("run")


def test_a_run_that_nothing_happened_to_is_loaded(folder):
    assert load_run(folder).model.recipe == bw.fast()


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
    assert load_run(folder)
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
