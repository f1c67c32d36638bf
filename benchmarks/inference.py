"""Inception and GoogLeNet through their best engines, as written and fused.

    python -m benchmarks.inference --json FILE

The best is the fastest engine in any precision, for each batch size, and for each of the two forms of a net by itself.
"""

from typing import TYPE_CHECKING

import torch
from cyclopts import App

import branchwork
from benchmarks.process import JsonFile
from branchwork.files import write_json

if TYPE_CHECKING:
    from branchwork.deploy.figures import Bench

# Without torch.compile, which takes a minute for a net and nowhere beat the best of these: `branchwork bench` has it.
ENGINES = ("torch", "onnxruntime", "openvino")

app = App(result_action="return_value")


# Where a net happens to lie in memory makes three hundredths of GoogLeNet's time, and its two forms are as near: it is
# loaded more often and timed longer, by the two engines that take half of torch's time at most.
LOADS, LARGE_LOADS, LARGE_SECONDS = 3, 6, 3.0
LARGE_ENGINES = ("onnxruntime", "openvino")


def timings(net: str, found: "Bench") -> dict[str, float]:
    """Median seconds by what was timed: each engine, and the best."""
    seconds: dict[str, float] = {}
    for row in found.rows:
        form = "fused" if row.fused else "written"
        took = row.milliseconds / 1000
        best = f"{net} batch {row.batch} {form}"
        seconds[f"{best} {row.engine} {row.precision}"] = took
        seconds[best] = min(took, seconds.get(best, took))
    return seconds


@app.default
def main(*, json_file: JsonFile) -> None:
    torch.manual_seed(0)
    small = branchwork.bench("inception", batch_sizes=(1, 256), engines=ENGINES, loads=LOADS)
    large = branchwork.bench(
        "googlenet", batch_sizes=(1,), engines=LARGE_ENGINES, loads=LARGE_LOADS, seconds=LARGE_SECONDS
    )
    seconds = timings("inception", small) | timings("GoogLeNet", large)
    write_json(json_file, {what: [took] for what, took in seconds.items()})


if __name__ == "__main__":
    app()
