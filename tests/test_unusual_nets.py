"""Whatever a learner's own net does, she reads one message, with her line where there is one."""

import re
from pathlib import Path

import pytest
import torch
from helpers import unusual_nets
from helpers.training import SGD

import branchwork as bw
from branchwork.datasets.dataset import DataSet, Split
from branchwork.errors import BranchworkError

ONE = {"recipe": SGD.but({"epochs": 1, "batch_size": 100}), "options": bw.Options(execute="written", report=False)}
FAILURES = {
    "Assertion": (1, "AssertionError"),
    "Key": (14, "KeyError: 'conv1'"),
    "Index": (1, "IndexError: list index out of range"),
    "Division": (14, "ZeroDivisionError: division by zero"),
    "Exit": (1, "SystemExit: enough"),
}
REFUSED = {
    "ExitAtOnce": r"SystemExit: enough \(.*unusual_nets\.py, line \d+\)",
    "Half": "`fc.weight` of .* is float16: leave out .half()",
    "HalfWithin": r"must have the same dtype, but got Half and Float \(.*unusual_nets\.py, line \d+\)",
    "ExtraState": r"`_extra_state` with its weights, which a run cannot store \(dict\)",
    "Sparse": r"`edges` with its weights, which a run cannot store \(torch\.sparse_coo",
    "Lazy": r"`fc` \(LazyLinear\) is unknown until it has read an image. Write nn\.Linear with",
    "OldWeightNorm": "use weight_norm and spectral_norm of torch.nn.utils.parametrizations",
    "HoldsItself": "contains itself: `parts` is, or contains, the module that it is an attribute of",
}
NOT_INSPECTED = {"ExitAtOnce", "HalfWithin", "Lazy", "HoldsItself"}


def argument(name: str) -> str:
    return f"{unusual_nets.__file__}:{name}"


def test_every_net_is_tried():
    nets = {name for name, value in vars(unusual_nets).items() if isinstance(value, type)}
    assert nets - {"Flat", "Fails", "FailsLast", "Validation", "ManyClasses"} == FAILURES.keys() | REFUSED.keys()


@pytest.mark.parametrize("name", FAILURES)
def test_a_forward_that_fails_in_training_is_one_message_with_its_line(name, small):
    step, words = FAILURES[name]
    with pytest.raises(BranchworkError) as caught:
        bw.train(argument(name), data=small, out="run", **ONE)
    place = rf"failed in epoch 1, step {step}: {re.escape(words)} \(.*unusual_nets\.py, line \d+\)\. The last state is"
    assert re.search(place, str(caught.value)), caught.value
    assert Path("run/last/state.safetensors").exists() and not Path("run/result.json").exists()


def test_a_forward_that_fails_in_validation_is_one_message_with_its_line(small):
    with pytest.raises(BranchworkError, match=r"failed on 150 images, in eval mode: AssertionError \(.*py, line \d+"):
        bw.train(argument("Validation"), data=small, out="run", **ONE)
    assert Path("run/last/state.safetensors").exists()


@pytest.mark.parametrize("name", REFUSED)
def test_a_net_that_cannot_be_trained_is_told_before_anything_is_written(name, small):
    with pytest.raises(BranchworkError, match=REFUSED[name]):
        bw.train(argument(name), data=small, out="run", **ONE)
    assert not Path("run").exists()


@pytest.mark.parametrize("name", REFUSED)
def test_such_a_net_is_inspected_or_told(name, command):
    code, out, err = command("inspect", argument(name))
    if name in NOT_INSPECTED and name != "HalfWithin":
        assert code == 2 and re.search(REFUSED[name], err)
    else:
        assert code == 0 and "fc" in out, err


def test_a_bug_of_ours_is_not_laid_to_the_net(small, monkeypatch):
    def broken(*given, **options):
        raise AssertionError("ours")

    monkeypatch.setattr("branchwork.catalogue.resolve.own_frame", lambda reason: None)
    monkeypatch.setattr("branchwork.training.fit.train_step", broken)
    with pytest.raises(AssertionError, match="ours"):
        bw.train(argument("Flat"), data=small, out="run", **ONE)


def test_four_thousand_classes_are_trained_on_and_evaluated(small):
    labels = torch.arange(4000)
    images = small.train.images[labels % 1500]
    names = tuple(f"class {number}" for number in range(4000))
    split = Split(images, labels)
    data = DataSet("many", split, split, names, small.mean, small.std, small.pictures, "made here")
    one = ONE | {"recipe": SGD.but({"epochs": 1, "validation": 0.0, "batch_size": 1000}), "options": bw.Options()}
    result = bw.train(argument("ManyClasses"), data=data, out="run", **one)
    assert Path(result.report).stat().st_size < 1_000_000


def test_a_file_beside_the_script_that_is_missing_is_named(tmp_path):
    (tmp_path / "net.py").write_text("from .parts.layers import Layer\n\n\ndef net():\n    return Layer()\n")
    needed = re.escape(str(tmp_path / "parts/layers.py"))
    with pytest.raises(BranchworkError, match=rf"net\.py, line 1: `from .parts.layers import Layer` needs {needed}"):
        bw.build_net(f"{tmp_path}/net.py:net")
