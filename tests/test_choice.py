"""What is chosen for a folder of pictures, and what is told about few pictures and a loss that leaps."""

import dataclasses
import itertools
import json
import math
import statistics
from pathlib import Path

import pytest
import torch
from helpers.folders import two_classes
from helpers.training import StopAt, same
from scipy import stats
from torch import nn

import branchwork as bw
from branchwork.datasets.batches import one_fold
from branchwork.datasets.dataset import Split
from branchwork.errors import DataError, Interrupted, RecipeError, RunError
from branchwork.observer import Observer
from branchwork.training import training_run
from branchwork.training.choice import choose

QUICK = bw.fast("residual").but({"epochs": 1, "batch_size": 100, "validation": 0.0})


class Notes(Observer):
    def __init__(self):
        self.said = []

    def note(self, message):
        self.said.append(message)


@pytest.fixture
def photos():
    """Twenty small colour pictures of two classes."""
    return bw.load_data(str(two_classes(Path("photos"))))


def test_a_net_is_chosen_for_the_size_and_number_of_pictures(photos):
    notes = Notes()
    name, recipe = choose(None, None, photos, changes={}, observer=notes)
    small = bw.fast_photos("resnet20", 16)
    assert (name, recipe) == ("resnet20", small.but({"validation": 0.0}))
    first, better = notes.said
    assert all(word in first for word in ("resnet20", "chosen for 16 pictures of 3×20×20", f"{recipe.epochs} epochs"))
    more = 4 * small.epochs
    assert better.endswith(
        f"{more} epochs: branchwork train resnet20 --data photos --recipe fast-photos --validation 0 --epochs {more}"
    )
    own = dataclasses.replace(photos, validation=photos.test)  # which the user has set aside
    assert choose(None, None, own, changes={}, observer=notes)[1].validation == 0.1
    assert notes.said[-1].endswith(f"--recipe fast-photos --epochs {more}")
    large = dataclasses.replace(photos, train=Split(torch.zeros(9, 3, 64, 96, dtype=torch.uint8), torch.zeros(9)))
    name, recipe = choose(None, None, large, changes={}, observer=notes)
    cropped = bw.fast_photos("resnet18:stem=large", 9)
    assert (name, recipe) == ("resnet18:stem=large", cropped.but({"validation": 0.0}))
    assert (small.pad, small.crop, cropped.pad, cropped.crop) == (4, 0, 0, 0.5)
    grey = dataclasses.replace(photos, train=Split(photos.train.images[:, :1], photos.train.labels))
    _, recipe = choose(None, None, grey, changes={}, observer=notes)
    whole = bw.digits("resnet20", 16)
    assert recipe == whole.but({"epochs": round(whole.epochs / 4), "validation": 0.0}) and recipe.flip == 0
    assert notes.said[-1].endswith(
        f"{whole.epochs} epochs: branchwork train resnet20 --data photos --recipe digits --validation 0"
    )


@pytest.mark.parametrize("net", ["inception", "residual", "resnet8", "preact20", "plain18", "googlenet"])
def test_nets_without_norms_learn_slowly_from_photos(net):
    has_norms = any(isinstance(module, nn.BatchNorm2d) for module in bw.NETS[net]().modules())
    assert bw.fast_photos(net).learning_rate == (0.02 if has_norms else 0.005)
    assert bw.fast_photos("resnet18.py:Net").learning_rate == 0.005


def test_nothing_is_chosen_where_a_net_or_a_data_set_is_named(photos, small):
    notes = Notes()
    assert choose("residual", None, photos, changes={}, observer=notes) == ("residual", bw.fast("residual", 16))
    assert choose(None, None, small, changes={}, observer=notes) == ("inception", bw.fast("inception", 1500))
    assert notes.said == []


def test_a_recipe_or_an_epoch_of_the_users_own_stands(photos):
    notes = Notes()
    name, recipe = choose(None, "best", photos, changes={"epochs": 2}, observer=notes)
    assert (name, recipe) == ("resnet20", bw.best("resnet20", 16).but({"epochs": 2}))
    assert len(notes.said) == 1 and "2 epochs" in notes.said[0]


def test_the_command_trains_a_folder_without_a_net(command):
    two_classes(Path("photos"))
    code, _, err = command("train", "--data", "photos", "--epochs", 1, "--batch-size", 8, "--out", "run", "--no-report")
    assert code == 0 and "chosen for 16 pictures of 3×20×20: resnet20" in err
    assert json.loads(Path("run/result.json").read_text())["net"] == "resnet20"


@pytest.mark.parametrize(
    ("net", "fitting"),
    [
        ("residual", r"residual\[norm=batch\], resnet20"),
        ("inception", "take resnet20"),
        ("plain20:norm=none", "plain20"),
    ],
)
@pytest.mark.parametrize("recipe", ["photos", "digits"])
def test_a_recipe_for_norms_is_refused_without_them_and_names_nets_that_fit(photos, net, fitting, recipe):
    with pytest.raises(
        RecipeError, match=f"{recipe} needs a net with normalisation layers .*{fitting}.*--learning-rate 0.01"
    ):
        bw.train(net, data=photos, recipe=recipe, out="run")
    assert not Path("run").exists()
    # Whoever gives a rate knows.
    assert choose(net, recipe, photos, changes={"learning_rate": 0.01}, observer=Observer())[0] == net


def test_each_training_image_is_in_one_fold_and_each_class_in_all(small):
    numbered = small.train.images.clone()
    numbered[:, 0, 0, 0], numbered[:, 0, 0, 1] = torch.arange(1500) % 256, torch.arange(1500) // 256
    data = dataclasses.replace(small, train=Split(numbered, small.train.labels))
    folds = [one_fold(data, fold, 4, seed=7) for fold in (1, 2, 3, 4)]

    def numbers(split):
        return (split.images[:, 0, 0, 0].int() + 256 * split.images[:, 0, 0, 1].int()).tolist()

    assert sorted(itertools.chain(*(numbers(fold.test) for fold in folds))) == list(range(1500))
    for fold in folds:
        assert sorted(numbers(fold.train) + numbers(fold.test)) == list(range(1500))
        counts, share = torch.bincount(fold.test.labels), torch.bincount(data.train.labels) / 4
        assert ((counts - share).abs() < 1).all()
    assert numbers(one_fold(data, 1, 4, seed=8).test) != numbers(folds[0].test)
    with pytest.raises(DataError, match=r"training images, too few for 400 folds: set --folds to \d+ or less"):
        one_fold(data, 1, 400, seed=0)


def test_folds_are_trained_each_and_summed_up(small, command):
    several = bw.train_folds("residual", folds=3, data=small, recipe=QUICK, out="folds")
    accuracies = [result.test_accuracy for result in several.results]
    assert several.mean == pytest.approx(statistics.mean(accuracies))
    half = stats.t.ppf(0.975, 2) * statistics.stdev(accuracies) / math.sqrt(3)
    low, high = several.interval  # on the log-odds it is as wide, and within 0 and 1
    assert 0 < low < several.mean < high < 1 and high - low == pytest.approx(2 * half, rel=0.3)
    alone = bw.train("residual", data=one_fold(small, 2, 3, seed=0), recipe=QUICK, out="alone")
    assert same("alone", "folds/fold-2") and alone.test_accuracy == accuracies[1]
    assert several.results[1].data == "sample, fold 2 of 3"
    assert "fold 2 of 3" in Path("folds/fold-2/report.html").read_text()
    for refused in (1, 101):
        with pytest.raises(RecipeError, match=f"folds must be from 2 to 100, got {refused}"):
            bw.train_folds("residual", folds=refused, data=small)
    with pytest.raises(RunError, match=r"folds holds several runs: name one of them, such as folds/fold-1"):
        bw.load_run("folds")


def test_folds_that_all_agree_have_an_interval_still(small, monkeypatch):
    monkeypatch.setattr(
        "branchwork.training.train._complete",
        lambda *_, **__: tuple(bw.train("residual", data=small, recipe=QUICK) for _ in range(2)),
    )
    several = bw.train_folds("residual", folds=2, data=small, recipe=QUICK, out="folds")
    low, high = several.interval
    assert low < several.mean < high and high - low < 0.06


def test_folds_that_were_stopped_go_on_as_a_whole_and_each_alone(small):
    whole = bw.train_folds("residual", folds=2, data=small, recipe=QUICK, out="whole")
    with pytest.raises(Interrupted, match=r"branchwork train --resume folds$"):
        bw.train_folds("residual", folds=2, data=small, recipe=QUICK, out="folds", progress=StopAt(1, 3))
    assert not Path("folds/fold-2").exists()
    bw.resume("folds/fold-1", data=small)
    several = bw.resume_folds("folds", data=small)
    assert several.mean == whole.mean and same("folds/fold-1", "whole/fold-1") and same("folds/fold-2", "whole/fold-2")


def test_the_command_shows_folds_and_takes_them_or_seeds(command, refused):
    two_classes(Path("photos"))
    flags = ("--epochs", 1, "--batch-size", 4, "--validation", 0, "--no-report", "--threads", 1)
    code, out, _ = command("train", "residual", "--data", "photos", "--folds", 2, "--out", "folds", *flags)
    assert code == 0 and "95% interval" in out and "accuracy on the fold" in out.replace("\n", " ")
    assert "2 folds of its training images" in out
    assert command("train", "--resume", "folds")[1] == out
    assert "name it too" in refused("train", "--data", "photos", "--stem", "small")
    assert "leave out one of them" in refused("train", "residual", "--seeds", 2, "--folds", 2)


def test_few_validation_images_are_told_once_with_what_tells_more(small):
    notes = Notes()
    held = QUICK.but({"validation": 0.1})
    bw.train("residual", data=small, recipe=held, out="run", progress=notes)
    (note,) = notes.said
    # 150 images, of which 135 are right: Wald's interval.
    assert "150 validation images" in note and "±5 points" in note and "--folds 5" in note
    for recipe in (QUICK, QUICK.but({"validation": 0.2})):  # none, and 300
        notes = Notes()
        bw.train("residual", data=small, recipe=recipe, progress=notes)
        assert notes.said == []


def test_a_loss_that_leaps_is_told_at_once_and_only_once(small, monkeypatch):
    class Watch(Notes):
        steps = 0

        def step(self, step):
            self.steps += 1
            self.losses = [*getattr(self, "losses", []), step.loss]

        def note(self, message):
            self.told_after = self.steps
            super().note(message)

    notes = Watch()
    high = bw.course().but({"epochs": 1, "learning_rate": 0.2})
    bw.train("residual", data=small, recipe=high, out="run", progress=notes)
    (note,) = notes.said
    leap = next(n for n, loss in enumerate(notes.losses, 1) if loss > 2 * math.log(10))
    assert notes.told_after == leap and f"leapt to {notes.losses[leap - 1]:.2f}" in note
    assert "far above 2.30, that of pure guessing" in note and "--learning-rate 0.02 (it is 0.2)" in note
    notes = Watch()
    bw.train("residual", data=small, recipe=bw.course().but({"epochs": 1}), progress=notes)
    assert notes.said == []
    monkeypatch.setattr(training_run, "LEAP", 0.1)  # every step leaps
    bw.train("residual", data=small, recipe=bw.course().but({"epochs": 1}), progress=notes)
    assert len(notes.said) == 1
