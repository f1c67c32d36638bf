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


def timings(net: str, found: "Bench") -> dict[str, list[float]]:
    """Median seconds by what was timed: each engine, and the best."""
    seconds: dict[str, list[float]] = {}
    for row in found.rows:
        form = "fused" if row.fused else "written"
        took = row.milliseconds / 1000
        seconds[f"{net} batch {row.batch} {form} {row.engine} {row.precision}"] = [took]
        best = f"{net} batch {row.batch} {form}"
        seconds[best] = [min([took, *seconds.get(best, [])])]
    return seconds


@app.default
def main(*, json_file: JsonFile) -> None:
    torch.manual_seed(0)
    small = branchwork.bench("inception", batch_sizes=(1, 256), engines=ENGINES)
    # Its two forms are nearly one, so that more runs are needed to tell which is faster.
    large = branchwork.bench("googlenet", batch_sizes=(1,), engines=ENGINES, seconds=4)
    write_json(json_file, timings("inception", small) | timings("GoogLeNet", large))


if __name__ == "__main__":
    app()
