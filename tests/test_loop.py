"""What a recipe can ask of the loop: parts of a batch, clipping, an early end, several checkpoints."""

import json
from contextlib import nullcontext
from dataclasses import replace
from itertools import count
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
from helpers.training import EXACT, SGD, SMALL, Small, StopAt, last, same, weights
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

import branchwork as bw
from branchwork.datasets.augment import mixup_weights
from branchwork.datasets.batches import epoch_order
from branchwork.datasets.dataset import Split
from branchwork.errors import Interrupted, TrainingError
from branchwork.observer import Observer
from branchwork.training import fit, optimizers
from branchwork.training import plan as plans
from branchwork.training.recipes import fast
from branchwork.training.run import Model
from branchwork.training.state import make_state, split_batch
from branchwork.training.step import Moment, train_step


@given(st.integers(1, 300), st.integers(1, 40))
def test_parts_are_a_batch_in_pieces_of_pairs_and_nearly_equal(images, pieces):
    slices = split_batch(images, pieces)
    assert [i for part in slices for i in range(part.start, part.stop)] == list(range(images))
    assert all(part.start % 2 == 0 and part.stop - part.start > (images > 1) for part in slices)
    lengths = [part.stop - part.start for part in slices]
    assert max(lengths) - min(lengths) <= 3 and len(slices) == min(pieces, max(1, images // 2))


def test_losses_are_read_about_as_often_whatever_a_step_takes():
    unread = 1
    for _ in range(9):
        unread = fit.next_unread(unread, 0.01)
    assert unread == fit.MOST_UNREAD
    for expected in (25, 12, 6, 3, 1, 1):
        unread = fit.next_unread(unread, 2.0)
        assert unread == expected


@pytest.mark.parametrize("pieces", [1, 3, 32])
def test_a_batch_in_parts_gives_the_weights_of_plain_torch_on_whole_batches_in_float64(small, pieces):
    bw.train(
        SMALL,
        data=small,
        recipe=EXACT.but({"validation": 0.0, "accumulate": pieces}),
        options=bw.Options(seed=5),
        out="run",
    )
    torch.manual_seed(5)
    net = Small().double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    for epoch in range(2):
        for chosen in epoch_order(1500, 5, epoch).split(64):  # the last has 28
            images = (small.train.images[chosen].double() / 255 - 0.1307) / 0.3081
            optimizer.zero_grad()
            F.cross_entropy(net(images), small.train.labels[chosen]).backward()
            optimizer.step()
    for key, tensor in last("run").items():
        # What is left is that the images are normalised in float32.
        torch.testing.assert_close(tensor, net.state_dict()[key], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("net", [SMALL, "inception"])
def test_parts_and_the_whole_give_the_same_weights_in_float64(small, net):
    recipe = EXACT.but(
        {"epochs": 1, "label_smoothing": 0.1, "learning_rate": 0.01, "shift": 2.0, "erasing": 0.5, "mixup": 0.4}
    )
    for pieces in (1, 5):
        result = bw.train(net, data=small, recipe=recipe.but({"accumulate": pieces}), out=f"run-{pieces}")
        assert result.precision == "fp64"
    for key, tensor in last("run-1").items():
        assert tensor.dtype == torch.float64
        torch.testing.assert_close(last("run-5")[key], tensor, rtol=1e-10, atol=1e-10)
    assert bw.load_run("run-1").net.state_dict()[key].dtype == torch.float32


def one_step(small, folder: str, **changes: object) -> dict[str, torch.Tensor]:
    """What one step on all images changes."""
    recipe = EXACT.but({"epochs": 1, "batch_size": 1500, "validation": 0.0, "learning_rate": 0.5} | changes)
    bw.train(SMALL, data=small, recipe=recipe, out=folder)
    torch.manual_seed(0)
    before = Small().double().state_dict()
    return {key: tensor - before[key] for key, tensor in last(folder).items()}


def test_clipping_shortens_the_gradient_of_all_weights_together_and_never_lengthens_it(small):
    free, clipped, wide = (one_step(small, f"run-{clip}", clip=clip) for clip in (0.0, 0.01, 1000.0))
    norm = float(torch.cat([step.flatten() for step in free.values()]).norm())
    assert norm > 0.5 * 0.01
    for key in free:
        torch.testing.assert_close(clipped[key], free[key] * (0.5 * 0.01 / norm), rtol=1e-4, atol=1e-12)
        torch.testing.assert_close(wide[key], free[key], rtol=1e-12, atol=1e-12)


def test_weight_decay_shrinks_kernels_and_matrices_and_leaves_biases(small):
    free, decayed = one_step(small, "free"), one_step(small, "decayed", weight_decay=0.1)
    torch.manual_seed(0)
    for key, tensor in Small().double().state_dict().items():
        expected = -0.5 * 0.1 * tensor if tensor.dim() >= 2 else torch.zeros_like(tensor)
        torch.testing.assert_close(decayed[key] - free[key], expected, rtol=1e-9, atol=1e-12)


STANDING = SGD.but({"epochs": 9, "learning_rate": 1e-12, "patience": 2, "validation": 0.2})


def test_a_training_that_gets_no_better_ends_by_its_patience_and_says_so(small):
    notes = []
    observer = Observer()
    observer.note = notes.append
    result = bw.train(SMALL, data=small, recipe=STANDING, out="run", progress=observer)
    assert result.epochs == 3 and len(Path("run/metrics.jsonl").read_text().splitlines()) == 3
    assert notes == ["ended after epoch 3 of 9: no better validation accuracy in 2 epochs"]
    assert result.images_per_second == pytest.approx(
        3 * 1200 / sum(json.loads(line)["step_seconds"] for line in Path("run/metrics.jsonl").read_text().splitlines())
    )


def test_mixup_trains_on_the_mean_of_two_losses(small):
    recipe = {"mixup": 0.5, "label_smoothing": 0.1}
    step = one_step(small, "run", **recipe)
    torch.manual_seed(0)
    net = Small().double()
    order = epoch_order(1500, 0, 0)
    shares = mixup_weights(1500, 0.5, (0, 0, 0))
    first, second = small.train.pick(order), small.train.pick(order.view(-1, 2).flip(1).flatten())
    images = shares.view(-1, 1, 1, 1) * first.images + (1 - shares.view(-1, 1, 1, 1)) * second.images
    logits = net((images.round().double() / 255 - 0.1307) / 0.3081)
    own, others = (
        F.cross_entropy(logits, part.labels, reduction="none", label_smoothing=0.1) for part in (first, second)
    )
    (shares * own + (1 - shares) * others).mean().backward()
    for key, parameter in net.named_parameters():
        torch.testing.assert_close(step[key], -0.5 * parameter.grad, rtol=1e-4, atol=1e-8)


EVERYTHING = SGD.but(
    {
        "mixup": 0.2,
        "flip": 0.5,
        "crop": 0.3,
        "colour": 0.2,
        "epochs": 4,
        "accumulate": 3,
        "clip": 1.0,
        "patience": 3,
        "top": 2,
        "weight_decay": 0.001,
    }
)


@pytest.mark.parametrize("at", [(1, 5), (2, 22), (3, 1)])
def test_parts_clipping_patience_and_checkpoints_resume_bit_for_bit(small, never_stopped, at):
    whole = never_stopped(SMALL, EVERYTHING)
    with pytest.raises(Interrupted):
        bw.train(SMALL, data=small, recipe=EVERYTHING, out="stopped", progress=StopAt(*at))
    bw.resume("stopped", data=small)
    assert same(whole, "stopped")
    first, second = ({p.name: p.read_bytes() for p in Path(run, "top").iterdir()} for run in (whole, "stopped"))
    assert first == second and len(first) == 3


def test_the_best_epochs_are_kept_with_their_figures(small, monkeypatch):
    # They go up and down, with two that are equally good.
    accuracies = iter((0.5, 0.9, 0.7, 0.9, 0.6, 0.8, 0.4, 0.7))
    monkeypatch.setattr("branchwork.training.fit._validate", lambda *_: next(accuracies))
    seen = {}

    class Watch(Observer):
        def epoch(self, epoch):
            seen[epoch.epoch] = (epoch.validation_accuracy, epoch.epoch, last("run"))

    result = bw.train(SMALL, data=small, recipe=SGD.but({"epochs": 8, "top": 3}), out="run", progress=Watch())
    ranked = sorted(seen.values(), key=lambda epoch: epoch[:2], reverse=True)[:3]
    assert [number for _, number, _ in ranked] == [4, 2, 6]
    listed = json.loads(Path("run/top/epochs.json").read_text())
    assert [(line["validation_accuracy"], line["epoch"]) for line in listed] == [entry[:2] for entry in ranked]
    assert result.best_epoch == listed[0]["epoch"]
    assert {path.name for path in Path("run/top").iterdir()} == {"epochs.json", *(line["file"] for line in listed)}
    for line, (_, _, kept) in zip(listed, ranked, strict=True):
        stored = safetensors.torch.load_file(f"run/top/{line['file']}")
        assert all(torch.equal(stored[key], tensor) for key, tensor in kept.items())
    bw.load_weights(Small(), f"run/top/{listed[0]['file']}")


@pytest.fixture
def clock(monkeypatch) -> None:
    """A clock that goes on by a hundredth of a second each time that somebody looks."""
    ticks = count()
    for module in ("fit", "training_run"):
        monkeypatch.setattr(
            f"branchwork.training.{module}.time", SimpleNamespace(perf_counter=lambda: next(ticks) / 100)
        )


@pytest.fixture
def rates(monkeypatch) -> list[float]:
    """The learning rates that are set, in order."""
    seen = []
    original = bw.Recipe.learning_rate_at
    monkeypatch.setattr(
        bw.Recipe, "learning_rate_at", lambda self, progress: (seen.append(original(self, progress)), seen[-1])[1]
    )
    return seen


TIMED = bw.fast().but({"epochs": 1000, "batch_size": 64, "minutes": 0.6 / 60, "warmup": 0.0})


def test_when_the_time_is_over_the_learning_rate_has_come_down_and_the_epoch_is_closed(small, clock, rates):
    result = bw.train(SMALL, data=small, recipe=TIMED, out="run")
    epochs = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert result.epochs == len(epochs) < 10
    assert 0.6 <= result.train_seconds < 0.65 + 0.02 * len(epochs)
    assert rates == sorted(rates, reverse=True) and rates[0] == pytest.approx(TIMED.learning_rate, rel=0.01)
    assert rates[-1] < 0.01 * TIMED.learning_rate  # the last step is begun when less than a thirtieth is left
    assert all(epoch["images"] == 1350 for epoch in epochs[:-1]) and 0 < epochs[-1]["images"] <= 1350
    assert len(rates) == sum(-(-epoch["images"] // 64) for epoch in epochs)


def test_a_training_keeps_the_time_that_it_has_used_when_it_is_resumed(small, clock, rates):
    with pytest.raises(Interrupted):
        bw.train(SMALL, data=small, recipe=TIMED, out="run", progress=StopAt(2, 3))
    used = len(rates)
    result = bw.resume("run", data=small)
    assert 0.6 <= result.train_seconds < 0.75
    assert rates == sorted(rates, reverse=True) and len(rates) > used


def test_a_time_that_is_over_at_once_still_gives_a_step_and_a_result(small):
    result = bw.train(SMALL, data=small, recipe=TIMED.but({"minutes": 1e-9}), out="run")
    (epoch,) = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert result.epochs == 1 and epoch["images"] == 64


def test_the_last_part_of_a_run_is_trained_on_images_and_targets_as_they_are(small):
    changes = {"refine": 0.5, "mixup": 0.5, "shift": 3.0, "elastic": 1.0, "epochs": 2, "learning_rate": 0.05}
    whole = EXACT.but({"batch_size": 1500, "validation": 0.0} | changes)
    bw.train(SMALL, data=small, recipe=whole, out="both")
    # Without a second half, the first epoch alone; its weights are what the second begins with.
    bw.train(SMALL, data=small, recipe=whole.but({"refine": 0.0, "epochs": 1}), out="first")
    torch.manual_seed(0)
    net = Small().double()
    before = net.state_dict()
    first = {key: tensor - before[key] for key, tensor in last("first").items()}
    net.load_state_dict(last("first"))
    images = (small.train.images.double() / 255 - 0.1307) / 0.3081
    F.cross_entropy(net(images), small.train.labels).backward()
    for key, parameter in net.named_parameters():
        step = 0.9 * first[key] - 0.05 * parameter.grad  # momentum goes on
        torch.testing.assert_close(last("both")[key] - last("first")[key], step, rtol=1e-4, atol=1e-8)


class Pooled(nn.Sequential):
    """With a batch norm of one pixel, which has no variance of one image."""

    def __init__(self):
        super().__init__(nn.Conv2d(1, 8, 5, stride=3), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(8), nn.Flatten())
        self.append(nn.Linear(8, 10))


@pytest.mark.parametrize("changes", [{"batch_size": 1499}, {"batch_size": 1499, "accumulate": 700}])
def test_no_image_is_left_alone_with_a_batch_norm(small, changes):
    bw.train(f"{__name__}:Pooled", data=small, recipe=SGD.but({"epochs": 1, "validation": 0.0, **changes}), out="run")
    (line,) = Path("run/metrics.jsonl").read_text().splitlines()
    assert json.loads(line)["images"] == 1500
    assert all(bool(weight.isfinite().all()) for weight in weights("run").values())


class Overflowing(Small):
    def forward(self, x):
        self.seen = nn.Buffer(torch.tensor([torch.inf]))
        return super().forward(x)


def test_statistics_that_are_not_finite_are_not_kept(small):
    with pytest.raises(TrainingError, match="a weight became infinite or NaN in epoch 1"):
        bw.train(f"{__name__}:Overflowing", data=small, recipe=SGD, out="run")


AUGMENTED = {"shift": 2, "rotation": 5.0, "erasing": 0.5, "flip": 0.5, "colour": 0.3, "crop": 0.2, "mixup": 0.2}


@pytest.mark.parametrize(
    ("net", "changes"),
    [
        ("inception", {}),
        ("residual", {"optimizer": "muon", "schedule": "linear"}),
        ("residual", {**AUGMENTED, "accumulate": 2, "clip": 1.0, "label_smoothing": 0.1}),
        ("googlenet", {"auxiliary": 0.3}),
        ("resnet20[shortcut=gated]", {"optimizer": "sgd"}),
    ],
)
def test_a_step_on_another_device_takes_nothing_from_the_cpu(net, changes, sample, monkeypatch):
    """As a GPU does, of which there is none here, the device `meta` refuses what lies elsewhere."""
    # What torch has for no `meta`: autocast, and optimisers in one kernel.
    monkeypatch.setattr(torch, "autocast", lambda *kind, **settings: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: False)
    for name in ("_Adam", "_SGD"):
        made = getattr(optimizers, name)
        monkeypatch.setattr(optimizers, name, lambda *given, made=made, fused, **settings: made(*given, **settings))
    recipe = fast(net, len(sample.train)).but({"batch_size": 16, "precision": "fp32", **changes})
    plan = plans.make_plan(net, sample, recipe=recipe, options=bw.Options(device="cpu"))
    model, options = Model.of(plan.net, sample, recipe), replace(plan.options, device="meta")
    state = make_state(model.builder()(), model, recipe=recipe, options=options, precision=plan.precision)
    images = Split(sample.train.images[:100].to("meta"), sample.train.labels[:100].to("meta"))
    chosen = torch.arange(16, device="meta")
    loss = train_step(state, images, chosen, recipe=recipe, moment=Moment(0, 0, 0), learning_rate=0.01)
    assert loss.is_meta and all(weight.is_meta for weight in state.net.parameters())
    assert (state.execution.name == "collapsed") == (net in ("inception", "residual"))
