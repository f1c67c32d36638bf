import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
import tomllib
from pathlib import Path

import pytest
import safetensors.torch
import torch
from conftest import POSIX, ROOT, WORDS, in_a_process
from helpers.training import NORMED, Normed, StopAt, same, weights
from torch import nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel

import branchwork as bw
from branchwork.catalogue.builders import NETS
from branchwork.datasets.augment import Augmentation, augment
from branchwork.datasets.batches import epoch_order, hold_out, normalise
from branchwork.datasets.dataset import DataSet, Split
from branchwork.errors import DataError, Interrupted, NetError, RecipeError, RunError, TrainingError
from branchwork.observer import Observer
from branchwork.training import fit, training_run
from branchwork.training.step import update_average

QUICK = bw.fast("residual").but({"epochs": 2, "batch_size": 100})
# 1,080 images to train on, in 11 steps.
FEW = ("--data", "sample", "--fraction", 0.2, "--batch-size", 100)
MOVED = {"shift": 2.0, "rotation": 10.0, "scaling": 0.1, "elastic": 1.0, "erasing": 0.5}


def test_a_run_folder_holds_all_that_the_design_promises(run):
    folder = Path(run.folder)
    assert {path.name for path in folder.iterdir()} == {
        "recipe.toml", "metrics.jsonl", "result.json", "model.safetensors", "model.json", "last", "report.html",
    }  # fmt: skip
    result = json.loads((folder / "result.json").read_text())
    needed = """net data seed parameters macs epochs train_images train_seconds images_per_second validation_accuracy
        test_accuracy test_interval peak_memory_bytes versions machine commit"""
    assert set(needed.split()) <= result.keys()
    assert (result["parameters"], result["macs"], result["train_images"]) == (41_514, 2_013_184, 5400)
    assert result["test_interval"][0] < result["test_accuracy"] < result["test_interval"][1]
    assert 0.95 < result["test_accuracy"] <= 1 and 0.95 < result["validation_accuracy"] <= 1
    assert 1e8 < result["peak_memory_bytes"] < 1.5e9
    assert result["versions"]["torch"] == torch.__version__
    assert tomllib.loads((folder / "recipe.toml").read_text())["epochs"] == 4
    epochs = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [epoch["epoch"] for epoch in epochs] == [1, 2, 3, 4]
    assert epochs[0]["train_loss"] > epochs[-1]["train_loss"]
    assert result["train_seconds"] == pytest.approx(sum(epoch["seconds"] for epoch in epochs))
    assert result["validation_accuracy"] == max(epoch["validation_accuracy"] for epoch in epochs)
    assert len(epochs[0]["loss_curve"]) <= fit.CURVE_POINTS


def test_the_loop_equals_plain_torch_written_out(small):
    # In float64: what an order of additions does to float32 differs from processor to processor.
    recipe = bw.course().but({"epochs": 2, "precision": "fp64"})
    bw.train("residual", data=small, recipe=recipe, options=bw.Options(seed=5), out="run")
    torch.manual_seed(5)
    net = NETS["residual"]().double()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.5)
    for epoch in range(2):
        for chosen in epoch_order(1500, 5, epoch).split(64):
            images = (small.train.images[chosen].double() / 255 - 0.1307) / 0.3081
            loss = F.cross_entropy(net(images), small.train.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for key, tensor in weights("run").items():
        torch.testing.assert_close(tensor, net.state_dict()[key], rtol=1e-4, atol=1e-6)


def test_adam_onecycle_smoothing_and_decay_equal_plain_torch_written_out(small):
    recipe = bw.fast("residual").but(
        {"epochs": 1, "batch_size": 100, "label_smoothing": 0.1, "weight_decay": 0.01, "warmup": 0.2}
        | {"learning_rate": 0.001, "validation": 0.0, "precision": "fp64"}
    )
    bw.train("residual", data=small, recipe=recipe, options=bw.Options(seed=5), out="run")
    torch.manual_seed(5)
    net = NETS["residual"]().double()
    kernels, biases = ([p for p in net.parameters() if (p.dim() > 1) == many] for many in (True, False))
    optimizer = torch.optim.Adam(
        [{"params": kernels, "weight_decay": 0.01}, {"params": biases}], lr=0.001, betas=(0.7, 0.9)
    )
    # 15 steps: the rate rises over the first 3, and torch counts its phases to the step before their end.
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.001, total_steps=16, pct_start=4 / 16, final_div_factor=1e9, cycle_momentum=False
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=0.1)
    for chosen in epoch_order(1500, 5, 0).split(100):
        images = normalise(small.train.images[chosen], small.mean, small.std).double()
        loss = criterion(net(images), small.train.labels[chosen])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    for key, tensor in weights("run").items():
        torch.testing.assert_close(tensor, net.state_dict()[key], rtol=1e-4, atol=1e-6)


def test_augmentation_and_averaging_equal_plain_torch_written_out(small):
    recipe = bw.course().but({"epochs": 2, "batch_size": 100, "learning_rate": 0.001, "ema": 0.9, **MOVED})
    bw.train("residual", data=small, recipe=recipe, options=bw.Options(seed=5), out="run")
    torch.manual_seed(5)
    net = NETS["residual"]()
    average = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.5)
    for epoch in range(2):
        for step, chosen in enumerate(epoch_order(1500, 5, epoch).split(100)):
            images = augment(small.train.images[chosen], Augmentation(**MOVED), (5, epoch, step))
            loss = F.cross_entropy(net((images / 255 - 0.1307) / 0.3081), small.train.labels[chosen])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done = 15 * epoch + step
            decay = min(0.9, (1 + done) / (10 + done))
            for key, tensor in net.state_dict().items():
                average[key] = decay * average[key] + (1 - decay) * tensor
    state = weights("run", "last/state.safetensors")
    for key, tensor in weights("run").items():
        torch.testing.assert_close(tensor, average[key], rtol=1e-3, atol=1e-5)
        torch.testing.assert_close(state[f"net.{key}"], net.state_dict()[key], rtol=1e-3, atol=1e-5)
    assert not torch.allclose(state["net.fc.weight"], average["fc.weight"], rtol=1e-3, atol=1e-5)


def test_the_average_is_torchs_with_the_statistics_of_batch_norms():
    torch.manual_seed(0)
    net, average = Normed(), Normed()
    average.load_state_dict(net.state_dict())
    theirs = AveragedModel(net, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.7), use_buffers=True)
    theirs.update_parameters(net)  # the first is a copy
    for _ in range(5):
        with torch.no_grad():
            net(torch.randn(4, 1, 28, 28))
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter))
        update_average(average, net, 0.7)
        theirs.update_parameters(net)
    ours = average.state_dict()
    for key, tensor in theirs.module.state_dict().items():
        if tensor.is_floating_point():
            assert torch.equal(ours[key], tensor)
        else:
            assert torch.equal(ours[key], net.state_dict()[key]) and ours[key] == 5
    assert not torch.allclose(ours["1.running_mean"], net.state_dict()["1.running_mean"])


def test_the_average_is_validated_and_kept(small, monkeypatch):
    validated = []
    predict = fit.predict_logits

    def spy(net, *rest, **options):
        validated.append({key: tensor.clone() for key, tensor in net.state_dict().items()})
        return predict(net, *rest, **options)

    monkeypatch.setattr(fit, "predict_logits", spy)
    result = bw.train(NORMED, data=small, recipe=QUICK.but({"ema": 0.99}), out="run")
    assert result.best_epoch == len(validated) == 2  # the average is still far behind the weights
    state = weights("run", "last/state.safetensors")
    for key, tensor in weights("run").items():
        assert torch.equal(tensor, state[f"average.{key}"]) and torch.equal(tensor, validated[-1][key])
    assert not torch.equal(state["average.0.weight"], state["net.0.weight"])


@pytest.mark.parametrize("at", [(1, 4), (1, 14), (2, 5)])
@pytest.mark.parametrize("net", ["residual", NORMED])
def test_augmentation_and_averaging_resume_bit_for_bit(small, never_stopped, net, at):
    recipe = QUICK.but({"ema": 0.95, **MOVED})
    with pytest.raises(Interrupted):
        bw.train(net, data=small, recipe=recipe, out="stopped", progress=StopAt(*at))
    bw.resume("stopped", data=small)
    assert same(never_stopped(net, recipe), "stopped")


def test_a_state_that_lost_its_average_is_refused(small):
    with pytest.raises(Interrupted):
        bw.train("residual", data=small, recipe=QUICK.but({"ema": 0.95}), out="run", progress=StopAt(1, 3))
    path = Path("run/last/state.safetensors")
    with safetensors.safe_open(path, framework="pt") as file:
        about = file.metadata()
    tensors = weights("run", "last/state.safetensors")
    path.write_bytes(
        safetensors.torch.save({k: v for k, v in tensors.items() if not k.startswith("average.fc")}, metadata=about)
    )
    with pytest.raises(RunError, match=r"is damaged .*checksum"):
        bw.resume("run", data=small)


def test_the_report_shows_the_first_batch_as_it_was_augmented(small, monkeypatch):
    shown = []
    monkeypatch.setattr("branchwork.training.training_run.write_report", lambda *_, batch, **__: shown.append(batch))
    recipe = QUICK.but({"epochs": 1, **MOVED})
    bw.train("residual", data=small, recipe=recipe, options=bw.Options(seed=3))
    train, _ = hold_out(small.train, 0.1, 3)
    first = epoch_order(len(train), 3, 0)[:100]
    assert torch.equal(shown[0].images, augment(train.images[first], Augmentation(**MOVED), (3, 0, 0))[:32])
    assert torch.equal(shown[0].labels, train.labels[first[:32]])


def test_the_best_epoch_on_validation_is_kept(small):
    result = bw.train("residual", data=small, recipe=QUICK.but({"epochs": 5, "learning_rate": 0.05}), out="run")
    history = [json.loads(line)["validation_accuracy"] for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert history[result.best_epoch - 1] == max(history) == result.validation_accuracy
    _, validation = hold_out(small.train, 0.1, 0)
    trained = bw.load_run("run")
    with torch.no_grad():
        logits = trained.net(normalise(validation.images, small.mean, small.std))
    right = int((logits.argmax(1) == validation.labels).sum())
    # Validation ran in the precision of training, this in float32: an image may fall on the other side.
    assert right / len(validation) == pytest.approx(result.validation_accuracy, abs=2 / len(validation))


def test_without_validation_all_is_trained_on_and_the_last_epoch_kept(small):
    result = bw.train("residual", data=small, recipe=QUICK.but({"validation": 0.0}), out="run")
    assert result.validation_accuracy is None and result.best_epoch == 2 and result.train_images == 1500
    state = weights("run", "last/state.safetensors")
    assert all(torch.equal(state[f"net.{key}"], tensor) for key, tensor in weights("run").items())


def test_the_test_images_are_read_once_and_never_in_training(small, monkeypatch):
    seen = []
    evaluate = training_run.evaluate_net
    monkeypatch.setattr("branchwork.training.training_run.evaluate_net", lambda *a: (seen.append(1), evaluate(*a))[1])
    shuffled = DataSet(**{**vars(small), "test": Split(small.test.images.flip(0), small.test.labels.flip(0))})
    bw.train("residual", data=small, recipe=QUICK, out="a")
    bw.train("residual", data=shuffled, recipe=QUICK, out="b")
    assert len(seen) == 2 and same("a", "b")


def test_the_same_seed_gives_the_same_weights_in_two_fresh_processes():
    for out in ("first", "second"):
        done = in_a_process("train", "inception", *FEW, "--epochs", 1, "--seed", 3, "--out", out)
        assert done.returncode == 0, done.stderr
    assert same("first", "second")
    assert (
        Path("first/metrics.jsonl").read_text().split('"seconds"')[0]
        == (Path("second/metrics.jsonl").read_text().split('"seconds"')[0])
    )


def test_another_seed_gives_other_weights(small):
    bw.train("residual", data=small, recipe=QUICK.but({"epochs": 1}), options=bw.Options(seed=0), out="a")
    bw.train("residual", data=small, recipe=QUICK.but({"epochs": 1}), options=bw.Options(seed=1), out="b")
    assert not same("a", "b")


# Trains with states saved within the epoch at every step, and kills itself with SIGKILL in the middle of the second.
KILLED = """
import os, signal, sys
from branchwork import screen
from branchwork.cli import main
from branchwork.training import training_run
training_run.SAVE_SECONDS = 0.0
def step(self, step):
    if (step.epoch, step.step) == (2, 7):
        os.kill(os.getpid(), signal.SIGKILL)
screen.Lines.step = step
main(sys.argv[1:])
"""


@POSIX
def test_a_run_killed_within_an_epoch_and_resumed_ends_as_one_that_was_never_stopped():
    order = ("train", "residual", *FEW, "--epochs", 3, "--seed", 1)
    whole = in_a_process(*order, "--out", "whole")
    assert whole.returncode == 0, whole.stderr
    killed = in_a_process(*order, "--out", "killed", words=(sys.executable, "-c", KILLED))
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    assert not Path("killed/result.json").exists()
    resumed = in_a_process("train", "--resume", "killed")
    assert resumed.returncode == 0, resumed.stderr
    assert same("whole", "killed")
    first, second = (json.loads(Path(run, "result.json").read_text()) for run in ("whole", "killed"))
    assert first["test_accuracy"] == second["test_accuracy"]
    assert json.loads(Path("killed/metrics.jsonl").read_text().splitlines()[1])["epoch"] == 2


@pytest.mark.parametrize("at", [(1, 1), (1, 14), (2, 5)])
def test_ctrl_c_saves_says_how_to_go_on_and_nothing_is_lost(small, never_stopped, at):
    with pytest.raises(Interrupted, match="branchwork train --resume stopped"):
        bw.train("residual", data=small, recipe=QUICK, out="stopped", progress=StopAt(*at))
    assert not Path("stopped/result.json").exists()
    state = loop_position("stopped")
    assert (state["epoch"], state["step"]) == ((at[0], 0) if at[1] == 14 else (at[0] - 1, at[1]))
    bw.resume("stopped", data=small)
    assert same(never_stopped("residual", QUICK), "stopped")


def loop_position(folder: str) -> dict:
    with safetensors.safe_open(f"{folder}/last/state.safetensors", framework="pt") as file:
        return json.loads(file.metadata()["position"])


def test_ctrl_c_in_the_last_step_lets_the_run_finish(small):
    result = bw.train("residual", data=small, recipe=QUICK, out="run", progress=StopAt(2, 14))
    assert result.epochs == 2 and Path("run/result.json").exists()


def test_ctrl_c_is_as_it_was_after_a_training(small):
    before = signal.getsignal(signal.SIGINT)
    bw.train("residual", data=small, recipe=QUICK.but({"epochs": 1}))
    assert signal.getsignal(signal.SIGINT) is before


def test_a_training_runs_in_another_thread_too(small):
    done = []
    thread = threading.Thread(
        target=lambda: done.append(bw.train("residual", data=small, recipe=QUICK.but({"epochs": 1})))
    )
    thread.start()
    thread.join()
    assert done


def test_a_real_ctrl_c_on_the_command_line_exits_130():
    words = [*map(str, (*WORDS, "train", "residual", *FEW, "--epochs", 500, "--out", "run"))]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not Path("run/metrics.jsonl").exists() and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130 and out == ""
    assert re.search(r"stopped, and saved. Continue with: branchwork train --resume run$", err.strip())
    assert "Traceback" not in err
    assert loop_position("run")["epoch"] >= 1


POISON = """
import torch
from torch import nn
from branchwork.catalogue.builders import NETS

class Poison(nn.Module):
    # Gives logits that are no numbers, or gets such a weight, from the second epoch on.
    def __init__(self):
        super().__init__()
        self.net = NETS["residual"]()
        self.register_buffer("calls", torch.tensor(0), persistent=False)

    def forward(self, x):
        self.calls += self.training
        if self.calls == 20 and DIVERGED == "loss":
            return self.net(x) * float("inf")
        if self.calls == 28 and DIVERGED == "weight":
            self.net.conv1.bias.register_hook(lambda gradient: gradient * float("nan"))
        return self.net(x)
"""


@pytest.mark.parametrize("diverged", ["loss", "weight"])
def test_a_training_that_diverges_stops_and_keeps_the_last_good_state(small, diverged):
    Path("poison.py").write_text(f"DIVERGED = {diverged!r}\n{POISON}")
    with pytest.raises(TrainingError) as caught:
        bw.train("poison.py:Poison", data=small, recipe=QUICK.but({"epochs": 4}), out="run")
    text = str(caught.value)
    what = "the loss became" if diverged == "loss" else "a weight became"
    where = "epoch 2, step 6" if diverged == "loss" else "epoch 2, step 14"
    assert what in text and where in text and "--learning-rate 0.001" in text and "with the weights of epoch 1" in text
    assert all(tensor.isfinite().all() for tensor in weights("run").values())
    assert all(tensor.isfinite().all() for tensor in weights("run", "last/state.safetensors").values())


def test_a_learning_rate_far_too_high_is_one_message(refused):
    text = refused(
        "train", "residual", "--data", "sample", "--recipe", "course", "--learning-rate", "1e9", "--out", "r"
    )
    assert text.startswith("the loss became infinite") and "before any epoch, is kept in r" in text


def test_a_learners_own_script_trains_unchanged(small):
    # It calls .view, which refuses channels_last tensors.
    result = bw.train(
        f"{ROOT}/tests/helpers/lecture.py:ResidualNet", data=small, recipe=QUICK.but({"epochs": 4}), out="run"
    )
    assert result.parameters == 41_514 and result.test_accuracy > 0.6
    assert bw.load_run("run").net.fc.in_features == 512


def test_a_script_with_tied_weights_and_a_seed_of_its_own_trains_and_resumes_from_any_folder(
    small, tmp_path, monkeypatch
):
    script = tmp_path / "mine/tied.py"
    script.parent.mkdir()
    text = (ROOT / "tests/helpers/lecture.py").read_text()
    script.write_text(text + "\ntorch.manual_seed(42)\n")
    monkeypatch.chdir(script.parent)
    with pytest.raises(Interrupted):
        bw.train("tied.py:TiedNet", data=small, recipe=QUICK, out=tmp_path / "a", progress=StopAt(1, 3))
    monkeypatch.chdir(tmp_path)
    result = bw.resume("a", data=small)
    assert result.net == f"{script}:TiedNet" and result.parameters == 41_514
    other = bw.train(f"{script}:TiedNet", data=small, recipe=QUICK, options=bw.Options(seed=1))
    assert other.folder == "runs/tied-TiedNet-sample-1"
    assert not torch.equal(weights("a")["conv1.weight"], weights(other.folder)["conv1.weight"])


def test_a_training_whose_net_or_data_changed_is_not_resumed(small, tmp_path):
    script = tmp_path / "net.py"
    text = (ROOT / "tests/helpers/lecture.py").read_text()
    script.write_text(text)
    with pytest.raises(Interrupted):
        bw.train(f"{script}:ResidualNet", data=small, recipe=QUICK, out="run", progress=StopAt(1, 3))
    fewer = DataSet(**{**vars(small), "train": Split(small.train.images[:-1], small.train.labels[:-1])})
    with pytest.raises(RunError, match="the training images of sample have changed since"):
        bw.resume("run", data=fewer)
    state = Path("run/last/state.safetensors")
    whole = state.read_bytes()
    state.write_bytes(whole.replace(b"net.rblock2.conv1.bias", b"net.rblock9.conv1.bias"))
    with pytest.raises(RunError, match=r"is no longer the net that this training started with|is damaged"):
        bw.resume("run", data=small)
    state.write_bytes(whole)
    bw.resume("run", data=small)


def test_a_script_that_was_edited_or_lost_does_not_change_the_runs_that_it_made(small, tmp_path):
    script = tmp_path / "net.py"
    script.write_text((ROOT / "tests/helpers/lecture.py").read_text())
    bw.train(f"{script}:ResidualNet", data=small, recipe=QUICK, out="whole")
    with pytest.raises(Interrupted):
        bw.train(f"{script}:ResidualNet", data=small, recipe=QUICK, out="run", progress=StopAt(1, 3))
    script.write_text("broken(")
    bw.resume("run", data=small)
    script.unlink()
    assert same("whole", "run")
    assert bw.load_run("run").net.fc.in_features == 512


@pytest.mark.parametrize("damage", ["shape", "kind", "renamed", "missing"])
def test_a_damaged_optimiser_state_is_refused(small, damage):
    with pytest.raises(Interrupted):
        bw.train("residual", data=small, recipe=QUICK, out="run", progress=StopAt(1, 3))
    path = Path("run/last/state.safetensors")
    with safetensors.safe_open(path, framework="pt") as file:
        about = file.metadata()
    tensors = weights("run", "last/state.safetensors")
    name = "optimizer.0.exp_avg"
    moment = tensors.pop(name)
    tensors |= {
        "shape": {name: moment[:1]},
        "kind": {name: moment.long()},
        "renamed": {"optimizer.0.step": moment, name: tensors["optimizer.0.step"]},
        "missing": {},
    }[damage]
    path.write_bytes(safetensors.torch.save(tensors, metadata=about))
    with pytest.raises(RunError, match="damaged"):
        bw.resume("run", data=small)


@pytest.mark.parametrize("text", ["position", "plan"])
def test_a_position_or_a_plan_that_was_edited_is_refused(small, text):
    with pytest.raises(Interrupted):
        bw.train("residual", data=small, recipe=QUICK, out="run", progress=StopAt(1, 3))
    path = Path("run/last/state.safetensors")
    with safetensors.safe_open(path, framework="pt") as file:
        about = file.metadata()
    about[text] = about[text].replace(": 0", ": 1", 1)
    path.write_bytes(safetensors.torch.save(weights("run", "last/state.safetensors"), metadata=about))
    with pytest.raises(RunError, match=r"is damaged \(its checksum"):
        bw.resume("run", data=small)


def test_two_trainings_do_not_share_a_folder(small):
    class Second(Observer):
        def step(self, step):
            if step.step == 2:
                with pytest.raises(RunError, match="another process is training in run"):
                    bw.resume("run", data=small)

    bw.train("residual", data=small, recipe=QUICK.but({"epochs": 1}), out="run", progress=Second())
    assert not Path("run/.lock").exists()


NETS_THAT_CANNOT_LEARN = {
    "Detached": "no gradient flows back from its logits",
    "NoParameters": "has no parameter to train",
    "FailsLater": "failed in epoch 1, step 2: ValueError: not today",
}


@pytest.mark.parametrize("name", NETS_THAT_CANNOT_LEARN)
def test_a_net_that_cannot_be_trained_is_one_message(small, name):
    with pytest.raises((NetError, TrainingError), match=NETS_THAT_CANNOT_LEARN[name]):
        bw.train(
            f"{ROOT}/tests/helpers/lecture.py:{name}",
            data=small,
            recipe=QUICK,
            options=bw.Options(execute="written"),
        )


def test_what_does_not_fit_the_data_is_refused_before_anything_is_written(small):
    with pytest.raises(NetError, match="returns 11 numbers per image, but 10 are needed"):
        bw.train(f"{ROOT}/tests/helpers/lecture.py:TooManyClasses", data=small, out="run")
    with pytest.raises(RecipeError, match="batch_size must be at most 1350, the number of training images, got 1400"):
        bw.train("residual", data=small, recipe=QUICK.but({"batch_size": 1400}), out="run")
    tiny = DataSet(**{**vars(small), "train": Split(small.train.images[..., :12, :12], small.train.labels)})
    with pytest.raises(NetError, match="at least 16×16"):
        bw.train("inception", data=tiny, out="run")
    with pytest.raises(RecipeError, match="device 'cuda:77' is not available"):
        bw.train("residual", data=small, options=bw.Options(device="cuda:77"), out="run")
    with pytest.raises(RecipeError, match=r"seed must be at least 0 .*got -1"):
        bw.train("residual", data=small, options=bw.Options(seed=-1), out="run")
    with pytest.raises(RecipeError, match=r"seed must be .*got 9223372036854775808"):
        bw.train("residual", data=small, options=bw.Options(seed=2**63), out="run")
    for threads in (0, 200_000):
        with pytest.raises(RecipeError, match=f"threads must be .*got {threads}"):
            bw.train("residual", data=small, options=bw.Options(threads=threads), out="run")
    with pytest.raises(NetError, match="Did you mean 'residual'"):
        bw.train_seeds("resdual", data=small, out="run")
    assert os.listdir(".") == []


def test_runs_get_folders_of_their_own_and_none_is_written_over(small, run):
    one = QUICK.but({"epochs": 1})
    assert bw.train("residual", data=small, recipe=one).folder == "runs/residual-sample-1"
    assert bw.train("residual", data=small, recipe=one).folder == "runs/residual-sample-2"
    before = weights("runs/residual-sample-1")
    with pytest.raises(RunError, match="holds another run"):
        bw.train("residual", data=small, recipe=one, options=bw.Options(seed=4), out="runs/residual-sample-1")
    assert all(torch.equal(before[key], tensor) for key, tensor in weights("runs/residual-sample-1").items())


def test_what_cannot_be_resumed_is_refused(run, tmp_path, small):
    with pytest.raises(RunError, match="is finished"):
        bw.resume(run.folder)
    with pytest.raises(RunError, match="cannot be continued"):
        bw.resume(tmp_path / "nothing")
    with pytest.raises(Interrupted):
        bw.train("residual", data=small, recipe=QUICK, out="run", progress=StopAt(1, 3))
    state = Path("run/last/state.safetensors")
    state.write_bytes(state.read_bytes()[:1000])
    with pytest.raises(RunError, match="is damaged"):
        bw.resume("run")


def test_settings_of_the_process_are_left_as_they_were(small):
    threads, random = torch.get_num_threads(), torch.get_rng_state()
    bw.train("residual", data=small, recipe=QUICK.but({"epochs": 1}), options=bw.Options(threads=1))
    assert torch.get_num_threads() == threads and torch.equal(torch.get_rng_state(), random)


def test_bf16_and_fp32_are_taken_as_told(small, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})  # others imitate it
    losses = {}
    for precision in ("fp32", "bf16"):
        recipe = QUICK.but({"epochs": 1, "precision": precision})
        result = bw.train("residual", data=small, recipe=recipe, out=precision)
        assert result.precision == precision
        losses[precision] = json.loads(Path(precision, "metrics.jsonl").read_text())["train_loss"]
    assert losses["fp32"] != losses["bf16"]
    assert losses["fp32"] == pytest.approx(losses["bf16"], rel=0.1)


def test_the_observer_sees_every_step_and_epoch(small):
    class Watch(Observer):
        def __init__(self):
            self.steps, self.epochs, self.others = [], [], []

        def start(self, title):
            self.others.append(title)

        def end(self):
            self.others.append("end")

        def step(self, step):
            self.steps.append(step)

        def epoch(self, epoch):
            self.epochs.append(epoch)

    watch = Watch()
    bw.train("residual", data=small, recipe=QUICK, progress=watch)
    assert [(s.epoch, s.step) for s in watch.steps] == [(e, s) for e in (1, 2) for s in range(1, 15)]
    assert watch.steps[-1].seconds_left == 0 and watch.steps[0].seconds_left > 0
    assert [e.epoch for e in watch.epochs] == [1, 2]
    assert watch.others == ["residual on sample, seed 0", "end"]


def test_seeds_are_trained_each_and_summed_up(small):
    one = QUICK.but({"epochs": 1})
    several = bw.train_seeds("residual", seeds=3, options=bw.Options(seed=4), data=small, recipe=one, out="seeds")
    accuracies = torch.tensor([result.test_accuracy for result in several.results], dtype=torch.float64)
    assert several.seeds == (4, 5, 6) and several.mean == pytest.approx(float(accuracies.mean()))
    assert several.deviation == pytest.approx(float(accuracies.std()))
    bw.train("residual", data=small, recipe=one, options=bw.Options(seed=5), out="alone")
    assert same("alone", "seeds/seed-5")
    with pytest.raises(RecipeError, match=r"seeds must be from 2 .* got 1"):
        bw.train_seeds("residual", seeds=1, data=small)


class StopInSecond(StopAt):
    """Presses Ctrl-C in the second training that is begun."""

    def start(self, title):
        self.begun = getattr(self, "begun", 0) + 1

    def step(self, step):
        if self.begun == 2:
            super().step(step)


@pytest.mark.parametrize("step", [3, 14])
def test_seeds_that_were_stopped_go_on_without_training_again(small, step):
    one = QUICK.but({"epochs": 1})
    with pytest.raises(Interrupted, match=r"branchwork train --resume seeds$"):
        bw.train_seeds("residual", seeds=3, data=small, recipe=one, out="seeds", progress=StopInSecond(1, step))
    assert not Path("seeds/seed-2").exists()
    first = Path("seeds/seed-0/result.json").stat().st_mtime_ns
    several = bw.resume_seeds("seeds", data=small)
    assert Path("seeds/seed-0/result.json").stat().st_mtime_ns == first
    assert several.seeds == (0, 1, 2) and json.loads(Path("seeds/result.json").read_text())["mean"] == several.mean
    bw.train("residual", data=small, recipe=one, options=bw.Options(seed=1), out="alone")
    assert same("alone", "seeds/seed-1")
    Path("seeds/seeds.json").write_text("{")
    with pytest.raises(RunError, match="is damaged"):
        bw.resume_seeds("seeds")


def test_a_disk_that_fills_up_in_the_middle_keeps_the_last_state_and_says_how_to_go_on(small, never_stopped):

    def full(descriptor):
        raise OSError(28, "No space left on device")

    with pytest.MonkeyPatch.context() as patch:

        class FillUp(Observer):
            def epoch(self, epoch):
                patch.setattr(os, "fsync", full)

        patch.setattr(training_run, "SAVE_SECONDS", 0.0)
        with pytest.raises(RunError, match=r"No space left on device.*continue with: branchwork train --resume run"):
            bw.train("residual", data=small, recipe=QUICK, out="run", progress=FillUp())
    assert list(Path("run").rglob("*.part")) == []
    bw.resume("run", data=small)
    assert same(never_stopped("residual", QUICK), "run")


def test_parts_that_a_killed_process_left_are_removed(small):
    with pytest.raises(Interrupted):
        bw.train("residual", data=small, recipe=QUICK, out="run", progress=StopAt(1, 3))
    Path("run/last/.state.safetensors.a1b2c3_8.part").write_text("half")
    Path("run/.mine.part").write_text("not ours")
    bw.resume("run", data=small)
    assert [path.name for path in Path("run").rglob("*.part")] == [".mine.part"]


class Upset(Observer):
    """Does something to the run after its first epoch."""

    def __init__(self, act):
        self.act = act

    def epoch(self, epoch):
        if epoch.epoch == 1:
            self.act()


def test_a_folder_that_turns_read_only_in_mid_run_is_told(small, monkeypatch):
    def turn():
        def refuse(*given, **options):
            raise OSError(30, "Read-only file system")

        for name in ("open", "unlink", "replace"):
            patch.setattr(os, name, refuse)

    told = pytest.raises(RunError, match=r"Read-only file system.*--resume run$")
    with monkeypatch.context() as patch, told:
        bw.train("residual", data=small, recipe=QUICK, out="run", progress=Upset(turn))


def test_a_folder_that_is_deleted_in_mid_run_is_told_and_not_made_again(small):
    with pytest.raises(RunError, match="run was deleted while the training was running"):
        bw.train("residual", data=small, recipe=QUICK, out="run", progress=Upset(lambda: shutil.rmtree("run")))
    assert not Path("run").exists()


@pytest.mark.parametrize("name", [name for name in ("SIGTERM", "SIGHUP", "SIGBREAK") if hasattr(signal, name)])
def test_a_scheduler_and_the_end_of_the_terminal_stop_as_ctrl_c_does(small, name):
    number = getattr(signal, name)
    with pytest.raises(Interrupted, match="branchwork train --resume run"):
        bw.train("residual", data=small, recipe=QUICK, out="run", progress=Upset(lambda: signal.raise_signal(number)))
    assert loop_position("run")["epoch"] == 1 and signal.getsignal(number) == signal.SIG_DFL


@pytest.mark.parametrize("name", [name for name in ("SIGINT", "SIGHUP", "SIGBREAK") if hasattr(signal, name)])
def test_a_signal_that_this_process_ignores_stops_nothing(small, name):
    number = getattr(signal, name)
    before = signal.signal(number, signal.SIG_IGN)
    try:
        press = Upset(lambda: signal.raise_signal(number))
        assert bw.train("residual", data=small, recipe=QUICK, out="run", progress=press).epochs == 2
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_demo_trains_both_and_does_not_train_them_again(sample, monkeypatch):
    monkeypatch.setattr("branchwork.training.plan.fast", lambda net, images: QUICK.but({"epochs": 1}))
    with pytest.raises(Interrupted, match="Run the same command again"):
        bw.demo("sample", out="demo", progress=StopInSecond(1, 3))
    first = bw.demo("sample", out="demo")
    assert [result.net for result in first] == ["inception", "residual"]
    assert bw.demo("sample", out="demo") == first


@pytest.mark.skipif(sys.platform != "linux", reason="other file systems know no such names")
def test_a_name_that_is_no_text_is_refused_before_anything_is_trained(small):
    name = os.fsdecode(b"l\xe9t")
    with pytest.raises(RunError, match=r"l\\xe9t has a name that is not valid UTF-8: rename it"):
        bw.train("residual", data=small, recipe=bw.course(), out=name)
    with pytest.raises(DataError, match=r"l\\xe9t has a name"):
        bw.train("residual", data=dataclasses.replace(small, path=os.path.abspath(name)), recipe=bw.course())
    assert not Path(name).exists() and not Path("runs").exists()
