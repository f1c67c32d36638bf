import json
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

import branchwork as bw
from branchwork.errors import BatchTooLarge
from branchwork.training import batch_size, plan

CPU = torch.device("cpu")
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


def costs(overhead: float, fits: int = 64) -> Callable[[int], float]:
    """Rates of steps in which an image costs 1 + `overhead` / (images in the step), up to `fits` images."""

    def rate(size: int) -> float:
        if size > fits:
            raise BatchTooLarge("too many")
        return 1 / (1 + overhead / size)

    return rate


def batch_of(recipe: bw.Recipe, data) -> int:
    bw.train(GREEDY, data=data, recipe=recipe, out="run", options=bw.Options(execute="written"))
    chosen = tomllib.loads(Path("run/recipe.toml").read_text())["batch_size"]
    assert json.loads(Path("run/model.json").read_text())["recipe"]["batch_size"] == chosen
    return chosen


def test_the_largest_batch_that_fits_is_taken_where_larger_ones_are_faster():
    tried = []
    rate = costs(1e9)
    assert batch_size.fitting_batch(lambda size: (tried.append(size), rate(size))[1], 1350, CPU) == 64
    assert tried == [2, 4, 8, 16, 32, 64, 128]


def test_no_larger_batch_is_taken_than_pays():
    # From 2 images on, one costs 1.5, 1.25, 1.125, 1.0625 and 1.03125.
    assert batch_size.fitting_batch(costs(1.0), 1350, CPU) == 16


def test_no_batch_is_larger_than_the_most_that_is_wanted():
    assert batch_size.fitting_batch(costs(1e9), 32, CPU) == 32


def test_where_not_even_two_images_fit_it_says_so():
    with pytest.raises(BatchTooLarge):
        batch_size.fitting_batch(costs(1.0, fits=1), 1350, CPU)


def test_on_a_cpu_the_next_batch_must_fit_into_the_free_memory(monkeypatch):
    before = 10**9
    monkeypatch.setattr(batch_size, "resident_memory", lambda: before)
    monkeypatch.setattr(batch_size, "available_memory", lambda: 10**9)
    growth = iter((100, 200, 290, 310, 400))
    monkeypatch.setattr(batch_size, "peak_memory", lambda device: before + next(growth) * 10**6)
    # 2, 4 and 8 images grow it by up to 290 MB: the double of that is within 600 MB, that of 310 MB is not.
    assert batch_size.fitting_batch(costs(1e9), 1350, CPU) == 16


def test_where_the_system_does_not_tell_its_memory_few_images_are_tried(monkeypatch):
    monkeypatch.setattr(batch_size, "available_memory", lambda: None)
    monkeypatch.setattr(batch_size, "UNTOLD", 16)
    assert batch_size.fitting_batch(costs(1e9), 1350, CPU) == 16


def test_the_parts_are_what_is_measured(small, monkeypatch):
    monkeypatch.setattr(plan, "images_per_second", lambda size, **others: costs(1e9)(size))
    assert batch_of(AUTO.but({"accumulate": 3}), small) == 192


def test_a_measured_run_is_the_run_with_that_number(small):
    size = batch_of(AUTO, small)
    assert size in (2, 4, 8, 16, 32, 64)
    bw.train(
        GREEDY, data=small, recipe=AUTO.but({"batch_size": size}), out="same", options=bw.Options(execute="written")
    )
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
        bw.train(
            GREEDY,
            data=small,
            recipe=AUTO.but({"batch_size": 300, "accumulate": 3}),
            out="b",
            options=bw.Options(execute="written"),
        )
    bw.train(
        GREEDY,
        data=small,
        recipe=AUTO.but({"batch_size": 100, "accumulate": 2}),
        out="c",
        options=bw.Options(execute="written"),
    )


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
