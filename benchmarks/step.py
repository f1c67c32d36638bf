"""Time a training step of inception, as written and collapsed, alternating in one process: batch 512, float32.

python -m benchmarks.step --json FILE
"""

from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
from cyclopts import App
from torch import Tensor

from benchmarks.process import JsonFile, timed
from branchwork.datasets.dataset import Split
from branchwork.datasets.load import load_data
from branchwork.files import write_json
from branchwork.training.options import Options
from branchwork.training.recipes import fast
from branchwork.training.run import Model
from branchwork.training.state import make_state
from branchwork.training.step import Moment, train_step

BATCH_SIZE, WARM_UP, PAIRS = 512, 5, 40

app = App(result_action="return_value")


def make_step(execute: Literal["written", "collapsed"], device: torch.device) -> Callable[[], Tensor]:
    """Return a step of inception as `train` takes it, on the same weights and images each time."""
    data = load_data("sample")
    recipe = fast("inception").but({"batch_size": BATCH_SIZE})
    model = Model.of("inception", data)
    torch.manual_seed(0)
    options = Options(execute=execute, device=str(device))
    state = make_state(model.builder()(), model, recipe=recipe, options=options, precision="fp32")
    images = Split(data.train.images[:BATCH_SIZE].to(device), data.train.labels[:BATCH_SIZE].to(device))
    chosen = torch.arange(BATCH_SIZE, device=device)
    # With a learning rate of 0, every step does the same work on the same weights.
    return partial(train_step, state, images, chosen, recipe=recipe, moment=Moment(0, 0, 0), learning_rate=0.0)


def in_turn(
    steps: dict[str, Callable[[], object]], device: torch.device, warm_up: int, count: int
) -> dict[str, list[float]]:
    """Return the seconds of each step, run `count` times alternately."""
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    for turn in range(warm_up + count):
        for name, step in steps.items():
            took = timed(device, step)
            if turn >= warm_up:
                seconds[name].append(took)
    return seconds


@app.default
def main(*, json_file: JsonFile, device: str = "cpu") -> None:
    where = torch.device(device)
    steps = {f"step {execute}": make_step(execute, where) for execute in ("written", "collapsed")}
    torch.testing.assert_close(*(step() for step in steps.values()), rtol=1e-3, atol=1e-4)
    write_json(json_file, in_turn(steps, where, WARM_UP, PAIRS))


if __name__ == "__main__":
    app()
