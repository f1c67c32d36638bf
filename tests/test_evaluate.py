import dataclasses
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import branchwork as bw
from branchwork.cli.evaluate import parts
from branchwork.cli.output import show
from branchwork.datasets.dataset import Split
from branchwork.errors import DataError, RecipeError, RunError, WeightsError
from branchwork.training.calibration import calibrate
from branchwork.training.evaluate import ClassFigures, Evaluation, evaluate_net
from branchwork.training.infer import evaluation_batch, pick_device, pick_precision, predict_logits


@pytest.fixture
def copy(run, tmp_path) -> Path:
    """A run folder that may be damaged."""
    return shutil.copytree(run.folder, tmp_path / "copy")


def test_evaluation_agrees_with_the_result_and_with_itself(run):
    evaluation = bw.evaluate(run.folder)
    assert evaluation.accuracy == run.test_accuracy and evaluation.interval == run.test_interval
    confusion = torch.tensor(evaluation.confusion)
    assert int(confusion.sum()) == evaluation.images == 1000
    assert int(confusion.trace()) == round(evaluation.accuracy * 1000)
    assert [c.images for c in evaluation.classes] == confusion.sum(1).tolist() == [100] * 10


def test_the_worst_are_the_most_confident_mistakes(run, sample):
    evaluation = bw.evaluate(run.folder)
    trained = bw.load_run(run.folder)
    probabilities = predict_logits(trained.net, sample.test.images, trained.model).softmax(1)
    confidence, answers = probabilities.max(1)
    wrong = answers != sample.test.labels
    assert int(wrong.sum()) == 1000 - round(1000 * evaluation.accuracy)
    assert [m.probability for m in evaluation.worst] == sorted(confidence[wrong].tolist(), reverse=True)[:24]
    for mistake in evaluation.worst:
        assert (mistake.true, mistake.predicted) == (
            str(int(sample.test.labels[mistake.index])), str(int(answers[mistake.index])),
        )  # fmt: skip


def test_calibration_is_that_of_a_plain_loop(run, sample):
    trained = bw.load_run(run.folder)
    probabilities = predict_logits(trained.net, sample.test.images, trained.model).softmax(1).double()
    confidence, answers = (found.numpy() for found in probabilities.max(1))
    right = answers == sample.test.labels.numpy()
    gaps, counts = [], []
    for number in range(15):
        inside = (confidence > number / 15) & (confidence <= (number + 1) / 15)
        counts.append(inside.sum())
        gaps.append(abs(right[inside].sum() - confidence[inside].sum()) / 1000)
    calibration = bw.evaluate(run.folder).calibration
    assert calibration.ece == pytest.approx(sum(gaps), abs=1e-6)
    parts = np.array_split(np.argsort(confidence, kind="stable"), 15)
    equal = sum(abs(right[part].sum() - confidence[part].sum()) / 1000 for part in parts)
    assert calibration.ece_equal_mass == pytest.approx(equal, abs=2e-3)  # the bins may differ by an image
    assert sum(each.images for each in calibration.bins) == 1000
    assert [each.images for each in calibration.bins] == [count for count in counts if count]
    assert all(each.low <= each.confidence <= each.high for each in calibration.bins)


def test_calibration_by_hand():
    # Half of the answers given with 0.6 are right, and all of those given with 1: (2·0.1 + 2·0) / 4.
    found = calibrate(torch.tensor([0.6, 1.0, 0.6, 1.0]), torch.tensor([True, True, False, True]))
    assert found.ece == pytest.approx(0.05)
    assert calibrate(torch.tensor([1.0]), torch.tensor([True])).ece_equal_mass == 0
    edge = calibrate(torch.tensor([1 / 15, 1 / 15 + 1e-4], dtype=torch.float64), torch.tensor([True, False]))
    assert edge.ece == pytest.approx((14 / 15 + 1 / 15 + 1e-4) / 2)  # in two bins, not one


def test_the_class_among_the_most_probable_is_counted_as_scikit_learn_does(run, sample):
    from sklearn.metrics import top_k_accuracy_score

    trained = bw.load_run(run.folder)
    logits = predict_logits(trained.net, sample.test.images, trained.model)
    for top in (1, 2, 3):
        theirs = top_k_accuracy_score(sample.test.labels.numpy(), logits.numpy(), k=top)
        assert bw.evaluate(run.folder, top=top).top_accuracy == pytest.approx(theirs)
    plain = bw.evaluate(run.folder)
    assert plain.top is None and plain.top_accuracy is None
    assert bw.evaluate(run.folder, top=10).top_accuracy == 1
    for top in (0, 11):
        with pytest.raises(RecipeError, match=f"top must be from 1 to 10, the number of classes, got {top}"):
            bw.evaluate(run.folder, top=top)


def test_with_more_than_ten_classes_the_five_most_probable_count_too(run, sample):
    trained = bw.load_run(run.folder)
    twelve = (*sample.classes, "ten", "eleven")
    model = dataclasses.replace(trained.model, classes=twelve)
    wider = nn.Sequential(trained.net, nn.ConstantPad1d((0, 2), -20.0)).eval()
    evaluation = evaluate_net(wider, model, dataclasses.replace(sample, classes=twelve))
    assert evaluation.top == 5 and evaluation.accuracy < evaluation.top_accuracy <= 1


def test_logits_do_not_depend_on_the_batch_and_the_mode_is_left(run, sample):
    trained = bw.load_run(run.folder)
    images = sample.test.images[: evaluation_batch(trained.model, torch.device("cpu")) + 1]
    many = predict_logits(trained.net.train(), images, trained.model)
    assert trained.net.training
    few = torch.cat([predict_logits(trained.net, image[None], trained.model) for image in images[-3:]])
    torch.testing.assert_close(many[-3:], few, rtol=1e-4, atol=1e-4)


def test_what_is_evaluated_at_once_has_so_many_pixels_and_not_images(run):
    model, asked = bw.load_run(run.folder).model, []

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(1, 10, 3)

        def forward(self, images):
            asked.append((len(images), images.is_contiguous(memory_format=torch.channels_last)))
            return self.conv(images).amax((2, 3))

    for side, most in ((28, 256), (224, 4), (1000, 1)):
        asked.clear()
        sized = dataclasses.replace(model, image_size=(side, side))
        logits = predict_logits(Net(), torch.zeros(most + 1, 1, side, side, dtype=torch.uint8), sized)
        assert len(logits) == most + 1 and asked[-2:] == [(most, True), (1, True)]


def test_classes_are_matched_by_name_and_not_by_order(run, sample):
    trained = bw.load_run(run.folder)
    turned = dataclasses.replace(
        sample,
        classes=tuple(reversed(sample.classes)),
        test=Split(sample.test.images, 9 - sample.test.labels),
    )
    straight, reversed_ = (evaluate_net(trained.net, trained.model, data) for data in (sample, turned))
    assert straight.accuracy == reversed_.accuracy and straight.confusion == reversed_.confusion


def test_class_names_that_do_not_match_are_refused_by_name(run, sample, monkeypatch):
    other = dataclasses.replace(sample, name="letters", classes=(*"012345678", "x"))
    monkeypatch.setattr("branchwork.training.evaluate.load_data", lambda *a, **k: other)
    with pytest.raises(DataError) as caught:
        bw.evaluate(run.folder, data="letters")
    assert "only in the net: 9\n" in str(caught.value) and "only in letters: x\n" in str(caught.value)
    larger = torch.zeros(2, 1, 32, 32, dtype=torch.uint8)
    other = dataclasses.replace(sample, train=Split(larger, torch.zeros(2)), test=Split(larger, torch.zeros(2)))
    monkeypatch.setattr("branchwork.training.evaluate.load_data", lambda *a, **k: other)
    with pytest.raises(DataError, match="are 1×32×32, but residual takes 1×28×28"):
        bw.evaluate(run.folder)


def test_the_worst_mistakes_are_drawn(run):
    bw.evaluate(run.folder, draw=Path("worst.png"))
    with Image.open("worst.png") as picture:
        assert min(picture.size) > 400


def test_a_run_is_loaded_as_it_was_trained(run):
    trained = bw.load_run(run.folder)
    assert not trained.net.training
    assert trained.model.classes == tuple("0123456789") and trained.model.image_size == (28, 28)
    assert (trained.model.mean, trained.model.std) == ((0.1307,), (0.3081,))
    assert trained.model.recipe.epochs == 4


@pytest.mark.parametrize(
    ("file", "content", "error", "words"),
    [
        ("model.safetensors", None, WeightsError, "there are no weights at"),
        ("model.safetensors", b"", WeightsError, "is damaged"),
        ("model.safetensors", "half", WeightsError, "is damaged"),
        ("model.json", None, RunError, "holds no trained net"),
        ("model.json", b"", RunError, "is damaged"),
        ("model.json", b"[1]", RunError, "is damaged"),
        ("model.json", b'{"net": "residual"}', RunError, "is damaged"),
        ("model.json", "half", RunError, "is damaged"),
    ],
)
def test_missing_and_damaged_files_of_a_run_are_named(copy, file, content, error, words):
    path = copy / file
    if content is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if content == "half" else content)
    with pytest.raises(error) as caught:
        bw.load_run(copy)
    assert words in str(caught.value) and str(copy) in str(caught.value)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("net", 5), ("in_channels", 0), ("in_channels", "1"), ("image_size", 28), ("image_size", [28]), ("classes", []),
        ("classes", ["a", "a"]), ("classes", "0123456789"), ("mean", [0.1, 0.2]), ("std", [0.0]), ("std", [None]),
        ("mean", [float("nan")]), ("pictures", "faces"), ("data", None), ("extra", 1),
    ],
)  # fmt: skip
def test_a_model_whose_fields_cannot_be_is_refused(copy, field, value):
    model = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(model | {field: value}))
    with pytest.raises(RunError, match="is damaged"):
        bw.load_run(copy)


def test_weights_that_are_no_numbers_are_no_answer(copy):
    import safetensors.torch

    weights = safetensors.torch.load_file(copy / "model.safetensors")
    weights["fc.bias"][:] = float("nan")
    safetensors.torch.save_file(weights, copy / "model.safetensors")
    with pytest.raises(WeightsError, match="infinite or NaN logits"):
        bw.evaluate(copy)


def test_weights_of_another_net_in_a_run_are_refused(copy):
    model = json.loads((copy / "model.json").read_text())
    (copy / "model.json").write_text(json.dumps(model | {"net": "inception"}))
    with pytest.raises(WeightsError, match="do not belong to this net"):
        bw.load_run(copy)


def test_device_and_precision(monkeypatch):
    cpu = torch.device("cpu")
    assert pick_device("cpu") == cpu
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert pick_device("auto") == cpu
    assert pick_precision("fp32", cpu) == "fp32"
    for has, picked in (({}, "fp32"), ({"avx512_bf16": True}, "bf16"), ({"amx_bf16": True}, "bf16")):
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda has=has: has)
        assert pick_precision("auto", cpu) == picked
        if has:
            assert pick_precision("bf16", cpu) == "bf16"
            continue
        with pytest.raises(RecipeError, match="precision is bf16, but this cpu has no bf16 instructions"):
            pick_precision("bf16", cpu)
    assert pick_precision("auto", torch.device("mps")) == "fp32"


GARMENTS = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


@pytest.mark.parametrize("columns", [None, 40, 80, 200])
def test_confusions_are_told_by_name(columns, monkeypatch, capsys):
    if columns:
        monkeypatch.setenv("COLUMNS", str(columns))
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        monkeypatch.setenv("NO_COLOR", "1")
    confusion = [[90 if true == answer else 0 for answer in range(10)] for true in range(10)]
    confusion[6] = [4, 0, 2, 0, 3, 0, 90, 0, 0, 1]
    figures = tuple(ClassFigures(name, 90, 0.9, 0.8, 0.85) for name in GARMENTS)
    sure, rows = calibrate(torch.tensor([1.0]), torch.tensor([True])), tuple(map(tuple, confusion))
    found = Evaluation("net", "garments", 910, 0.99, (0.98, 1.0), figures, rows, (), sure, None, None)
    show(*parts(found, Path("worst.png")))
    out = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    told = " ".join(out.split())
    for answer in ("T-shirt/top (4)", "Coat (3)", "Pullover (2)"):
        assert answer in told
    assert "Ankle boot (1)" not in told and "10 misclassified" in told
    assert max(map(len, out.splitlines())) <= (columns or 200)
    heads = [line.split() for line in out.splitlines() if line.startswith(" true class")]
    if columns in (None, 200):
        assert heads == [["true", "class", *" ".join(GARMENTS).split()]]
    else:
        assert not heads and "wider than this terminal" in told
