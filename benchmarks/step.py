"""Time a training step of inception, as written and collapsed, alternating in one process: batch 512, float32.

python -m benchmarks.step --json FILE
"""

from collections.abc import Callable

import torch
from cyclopts import App
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Adam

from benchmarks.process import JsonFile, timed
from branchwork.datasets.batches import normalise
from branchwork.datasets.load import load_data
from branchwork.files import write_json
from branchwork.fusing.fuse import collapse
from branchwork.nets.catalogue import NETS

BATCH_SIZE, WARM_UP, PAIRS = 512, 5, 40

app = App(result_action="return_value")


def make_step(net: nn.Module, optimizer: Adam, images: Tensor, labels: Tensor) -> Callable[[], None]:
    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(net(images), labels).backward()
        optimizer.step()

    return step


def in_turn(
    steps: dict[str, Callable[[], None]], device: torch.device, warm_up: int, count: int
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
    data_set, where = load_data("sample"), torch.device(device)
    torch.manual_seed(0)
    # channels_last, as in `train`.
    net = NETS["inception"]().to(where, memory_format=torch.channels_last)
    collapsed = collapse(net, (1, 28, 28), batch=BATCH_SIZE)
    assert collapsed is not None, "inception has affine segments"
    nets = {"step written": net, "step collapsed": collapsed}
    images = normalise(data_set.train.images[:BATCH_SIZE], data_set.mean, data_set.std)
    images, labels = (
        images.to(where, memory_format=torch.channels_last),
        data_set.train.labels[:BATCH_SIZE].to(where),
    )
    torch.testing.assert_close(*(n(images) for n in nets.values()), rtol=1e-3, atol=1e-4)
    # With a learning rate of 0, every step does the same work on the same weights.
    optimizer = Adam(net.parameters(), lr=0.0, fused=True)
    steps = {name: make_step(n, optimizer, images, labels) for name, n in nets.items()}
    write_json(json_file, in_turn(steps, where, WARM_UP, PAIRS))


if __name__ == "__main__":
    app()
