import importlib.util
import json
from pathlib import Path

import pytest
from helpers.training import SGD, SMALL, StopAt

import branchwork as bw
from branchwork.errors import Interrupted, RecipeError


def test_a_missing_tensorboard_says_how_to_get_it(small, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RecipeError, match=r'pip install "branchwork\[log\]"'):
        bw.train(SMALL, data=small, recipe=SGD, options=bw.Options(log="tensorboard"), out="run")
    with pytest.raises(RecipeError, match="log must be tensorboard or left out, got 'wandb'"):
        bw.train(SMALL, data=small, recipe=SGD, options=bw.Options(log="wandb"), out="run")
    assert not Path("run").exists()


@pytest.mark.filterwarnings("ignore")  # TensorBoard's own
def test_tensorboard_reads_the_figures_of_a_run_that_was_stopped_and_resumed(small):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with pytest.raises(Interrupted):
        bw.train(SMALL, data=small, recipe=SGD, options=bw.Options(log="tensorboard"), out="run", progress=StopAt(2, 5))
    bw.resume("run", data=small)
    events = accumulator.EventAccumulator("run/tensorboard").Reload()
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    steps = -(-1350 // 64)
    assert [event.step for event in events.Scalars("loss/train")] == list(range(1, 2 * steps + 1))
    for name, key in (("loss/epoch", "train_loss"), ("validation accuracy", "validation_accuracy")):
        found = events.Scalars(name)
        assert [event.step for event in found] == [steps, 2 * steps]
        assert [event.value for event in found] == pytest.approx([line[key] for line in lines])
