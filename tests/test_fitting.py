import json
import re
import tomllib
from pathlib import Path

import pytest
import torch
from torch import nn

import branchwork as bw
from branchwork.errors import BatchTooLarge
from branchwork.training import fitting

AUTO = bw.fast("residual").but({"epochs": 1, "batch_size": "auto"})


class Greedy(nn.Sequential):
    """Asks for far more memory than there is where a batch has more than 64 images."""

    most = 64

    def __init__(self):
        super().__init__(nn.Conv2d(1, 8, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10))

    def forward(self, x):
        if self.training and len(x) > self.most:
            torch.empty(2**60, dtype=torch.uint8, device=x.device)
        return super().forward(x)


GREEDY = f"{__name__}:Greedy"


@pytest.fixture
def rates(monkeypatch):
    """Makes an image cost 1 + `overhead` / (images in the batch)."""

    def pretend(overhead: float) -> list[int]:
        seen = []
        step = fitting._rate

        def rate(loop, images, chosen):
            step(loop, images, chosen)
            seen.append(len(chosen))
            return 1 / (1 + overhead / len(chosen))

        monkeypatch.setattr(fitting, "_rate", rate)
        return seen

    return pretend


def batch_of(recipe: bw.Recipe, data, **options: object) -> int:
    bw.train(GREEDY, data=data, recipe=recipe, out="run", execute="written", **options)
    chosen = tomllib.loads(Path("run/recipe.toml").read_text())["batch_size"]
    assert json.loads(Path("run/model.json").read_text())["recipe"]["batch_size"] == chosen
    return chosen


def test_the_largest_batch_that_fits_is_taken_where_larger_ones_are_faster(small, rates):
    tried = rates(1e9)
    assert batch_of(AUTO, small) == 64
    assert tried == [2, 4, 8, 16, 32, 64]


def test_no_larger_batch_is_taken_than_pays(small, rates):
    rates(1.0)  # from 2 images on, one costs 1.5, 1.25, 1.125, 1.0625 and 1.03125
    assert batch_of(AUTO, small) == 16


def test_the_parts_are_what_is_measured(small, rates):
    rates(1e9)
    assert batch_of(AUTO.but({"accumulate": 3}), small) == 192


def test_on_a_cpu_the_next_batch_must_fit_into_the_free_memory(small, rates, monkeypatch):
    rates(1e9)
    before = 10**9
    monkeypatch.setattr(fitting, "resident_memory", lambda: before)
    monkeypatch.setattr(fitting, "available_memory", lambda: 10**9)
    growth = iter((100, 200, 290, 310, 400))
    monkeypatch.setattr(fitting, "peak_memory", lambda device: before + next(growth) * 10**6)
    # 2, 4 and 8 images grow it by up to 290 MB: the double of that is within 600 MB, that of 310 MB is not.
    assert batch_of(AUTO, small) == 16


def test_where_the_system_does_not_tell_its_memory_few_images_are_tried(small, rates, monkeypatch):
    rates(1e9)
    monkeypatch.setattr(fitting, "available_memory", lambda: None)
    monkeypatch.setattr(fitting, "UNTOLD", 16)
    assert batch_of(AUTO, small) == 16


def test_a_measured_run_is_the_run_with_that_number(small):
    size = batch_of(AUTO, small)
    assert size in (2, 4, 8, 16, 32, 64)
    bw.train(GREEDY, data=small, recipe=AUTO.but({"batch_size": size}), out="same", execute="written")
    first, second = (bw.load_run(run).net.state_dict() for run in ("run", "same"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_batch_that_does_not_fit_says_what_to_write(small, refused):
    text = refused(
        "train", f"{Path(__file__)}:Greedy", "--data", "sample", "--execute", "written", "--batch-size", 100,
        "--out", "run",
    )  # fmt: skip
    assert text.startswith("100 images at once do not fit into the memory of cpu")
    assert "--batch-size 64, or with --accumulate 2," in text and "allocate" in text
    with pytest.raises(BatchTooLarge, match=r"100 images at once .*--batch-size 192, or with --accumulate 6,"):
        bw.train(GREEDY, data=small, recipe=AUTO.but({"batch_size": 300, "accumulate": 3}), out="b", execute="written")
    bw.train(GREEDY, data=small, recipe=AUTO.but({"batch_size": 100, "accumulate": 2}), out="c", execute="written")


def test_auto_is_a_word_on_the_command_line_and_in_a_file(command):
    Path("r.toml").write_text('batch_size = "auto"\n')
    for words in (("--batch-size", "auto"), ("--config", "r.toml")):
        out = words[0][2:]
        code, _, err = command(
            "train", f"{Path(__file__)}:Greedy", "--data", "sample", "--execute", "written", "--epochs", 1, *words,
            "--out", out,
        )  # fmt: skip
        assert code == 0, err
        assert tomllib.loads(Path(out, "recipe.toml").read_text())["batch_size"] <= 64


def test_what_a_forward_keeps_is_known_before_the_system_ends_the_process(small, refused, monkeypatch):
    """The 28×28 of the image and the 8×8×8 after the ReLU, also in the order that the linear layer reads: 7 kB."""
    monkeypatch.setattr(fitting, "available_memory", lambda: 1_000_000)
    exact = AUTO.but({"precision": "fp32"})
    bw.train(GREEDY, data=small, recipe=exact.but({"batch_size": 64}), out="fits", execute="written")
    monkeypatch.setattr(Greedy, "most", 10**9)
    with pytest.raises(BatchTooLarge, match=r"^640 images at once take 0.0 GB .* --batch-size \d+, or with") as told:
        bw.train(GREEDY, data=small, recipe=exact.but({"batch_size": 640}), out="a", execute="written")
    said = int(re.search(r"--batch-size (\d+)", str(told.value))[1])
    assert 0.6 * 1_000_000 / said == pytest.approx(4 * (28 * 28 + 2 * 512), rel=0.05)
    pieces = int(re.search(r"--accumulate (\d+)", str(told.value))[1])
    again = exact.but({"batch_size": 640, "accumulate": pieces})
    bw.train(GREEDY, data=small, recipe=again, out="b", execute="written")
