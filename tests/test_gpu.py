"""What only a GPU can show: steps that are recorded as CUDA graphs, and the same weights from the same seed.

`python -m pytest -m gpu` runs them; without a GPU they are skipped.
"""

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import GPU
from helpers.training import NORMED, SGD, Small, StopAt, last, same, weights

import branchwork as bw
from branchwork.datasets.dataset import MappedImages, Split
from branchwork.errors import Interrupted
from branchwork.observer import Observer
from branchwork.training.captured import _refuse_waits
from branchwork.training.step import Moment, batch_of

pytestmark = [*GPU]
CUDA = {"device": "cuda", "report": False}


class Notes(Observer):
    def __init__(self):
        self.said: list[str] = []

    def note(self, message):
        self.said.append(message)


def train(net, data, recipe, out, progress=False, **options):
    return bw.train(net, data=data, recipe=recipe, options=bw.Options(**CUDA | options), out=out, progress=progress)


NETS = [
    ("residual", {}),
    ("inception", {"optimizer": "muon", "schedule": "linear"}),
    ("resnet20", {"optimizer": "sgd", "learning_rate": 0.05, "shift": 2.0, "mixup": 0.2, "clip": 1.0, "ema": 0.99}),
    ("googlenet", {"auxiliary": 0.3, "accumulate": 2, "rotation": 10.0, "refine": 0.5}),
    ("preact20", {"optimizer": "sgd", "learning_rate": 0.05}),
]


@pytest.mark.parametrize(("net", "changes"), NETS)
def test_steps_are_recorded_and_the_same_seed_gives_the_same_weights(small, net, changes):
    recipe, notes = bw.fast(net).but({"epochs": 2, "batch_size": 100, **changes}), Notes()
    first = train(net, small, recipe, "first", notes)
    train(net, small, recipe, "second")
    assert not [note for note in notes.said if "CUDA graph" in note]
    assert 0 < first.capture_seconds < first.train_seconds
    assert same("first", "second")


@pytest.mark.parametrize(("net", "changes"), NETS[:3])
def test_recorded_steps_are_near_to_steps_as_usual(small, net, changes):
    recipe = bw.fast(net).but({"epochs": 1, "batch_size": 100, "precision": "fp32", "validation": 0.0, **changes})
    train(net, small, recipe, "recorded")
    assert train(net, small, recipe, "usual", capture=False).capture_seconds == 0
    for key, tensor in last("usual").items():
        difference = (last("recorded")[key].double() - tensor.double()).norm()
        assert difference <= 0.05 * tensor.double().norm() + 1e-3, key


def test_recorded_steps_in_float64_are_steps_as_usual(small):
    recipe = SGD.but({"precision": "fp64", "learning_rate": 2**-5, "momentum": 0.9, "shift": 2.0})
    train(NORMED, small, recipe, "recorded")
    train(NORMED, small, recipe, "usual", capture=False)
    for key, tensor in last("usual").items():
        torch.testing.assert_close(last("recorded")[key], tensor, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("at", [(1, 5), (2, 1)])
@pytest.mark.parametrize(("net", "changes"), NETS[:3])
def test_recorded_trainings_resume_bit_for_bit(small, net, changes, at):
    recipe = bw.fast(net).but({"epochs": 2, "batch_size": 100, **changes})
    train(net, small, recipe, "whole")
    with pytest.raises(Interrupted):
        train(net, small, recipe, "parts", StopAt(*at))
    bw.resume("parts", data=small)
    assert same("whole", "parts")


class Waits(Small):
    def forward(self, x):
        x = super().forward(x)
        return x / 2 if x.detach().abs().max() > 1 else x


class Draws(Small):
    def forward(self, x):
        return super().forward(x) * (0.5 + torch.rand(1).item())


class Drops(Small):
    """Fails only while it is recorded, and then draws random numbers on the GPU."""

    def forward(self, x):
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()
        return torch.nn.functional.dropout(super().forward(x), 0.2, self.training)


@pytest.mark.parametrize("kind", [Waits, Draws, Drops])
def test_a_net_that_cannot_be_recorded_is_trained_as_usual_and_told_why(small, kind):
    notes = Notes()
    result = train(f"{__name__}:{kind.__name__}", small, SGD, "run", notes)
    assert [note for note in notes.said if "not recorded as a CUDA graph" in note]
    assert result.test_accuracy > 0.5


def test_after_a_recording_that_failed_the_next_training_is_recorded(small):
    train(f"{__name__}:Drops", small, SGD.but({"epochs": 1}), "failed")
    notes = Notes()
    assert train(NORMED, small, SGD.but({"epochs": 1}), "next", notes).capture_seconds > 0
    assert not [note for note in notes.said if "CUDA graph" in note]
    torch.cuda.empty_cache()  # which torch refuses while it takes a recording to be under way


ALL = {"shift": 2, "rotation": 5.0, "erasing": 0.5, "flip": 0.5, "colour": 0.3, "crop": 0.2, "elastic": 1.0, "pad": 2}


@pytest.mark.parametrize("mapped", [False, True])
@pytest.mark.parametrize("mixup", [0.0, 0.2])
def test_a_batch_is_made_without_waiting_for_the_gpu(small, mapped, mixup):
    device, images = torch.device("cuda", 0), small.train.images
    images = MappedImages(images.numpy(), torch.arange(len(images)), 0) if mapped else images
    data = Split(images.to(device), small.train.labels.to(device))
    state = SimpleNamespace(model=SimpleNamespace(classes=small.classes))
    chosen, recipe = torch.arange(64).to(data.index_device), bw.fast("residual").but({**ALL, "mixup": mixup})
    for step in range(2):
        with _refuse_waits(device) if step else nullcontext():  # the first batch makes what all others share
            batch = batch_of(state, data, chosen, recipe=recipe, moment=Moment(0, 0, step))
            pictures, targets = batch(slice(None))
    assert pictures.device == targets.device == device


def test_images_from_a_pack_are_trained_as_those_in_memory(small, tmp_path):
    from PIL import Image

    for number in range(300):
        folder = tmp_path / "pictures" / str(int(small.train.labels[number]))
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(small.train.images[number, 0].numpy()).save(folder / f"{number}.png")
    bw.pack(tmp_path / "pictures", out=tmp_path / "pictures.pack")
    recipe = bw.fast("residual").but({"epochs": 2, "batch_size": 50, "shift": 2.0})
    for data, out in ((tmp_path / "pictures", "memory"), (tmp_path / "pictures.pack", "pack")):
        train("residual", str(data), recipe, out)
    first, second = (weights(Path(out)) for out in ("memory", "pack"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_evaluate_and_explain_find_on_the_gpu_what_they_find_on_the_cpu(small, monkeypatch):
    run = train("inception", small, bw.fast("inception").but({"epochs": 1}), "run").folder
    here = bw.evaluate(run, data="sample"), bw.explain(run, data="sample", images=500)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    there = bw.evaluate(run, data="sample"), bw.explain(run, data="sample", images=500)
    assert [each.accuracy for each in here] == pytest.approx([each.accuracy for each in there], abs=0.004)
    for gpu, cpu in zip(here[1].branches, there[1].branches, strict=True):
        assert gpu.lost_by_mean == pytest.approx(cpu.lost_by_mean, abs=0.01)
        assert gpu.activation_rms == pytest.approx(cpu.activation_rms, rel=0.01)
        assert gpu.milliseconds > 0
