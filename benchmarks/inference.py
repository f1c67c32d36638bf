"""Time inception and GoogLeNet in their best engines, as written and fused.

    python -m benchmarks.inference --json FILE

The best engine is the fastest one in any precision, chosen separately for each batch size and for both forms of a net.
"""

from typing import TYPE_CHECKING

import torch
from cyclopts import App

import branchwork
from benchmarks.process import JsonFile
from branchwork.files import write_json

if TYPE_CHECKING:
    from branchwork.deploy.bench_result import Bench

# Without torch.compile, which takes a minute per net and was never the best: `branchwork bench` has it.
ENGINES = ("torch", "onnxruntime", "openvino")

app = App(result_action="return_value")


# A net's place in memory changes GoogLeNet's time by 3%, as much as its two forms differ: so it is loaded more often
# and timed longer, and only in the two engines that take at most half of torch's time.
LOADS, LARGE_LOADS, LARGE_SECONDS = 3, 6, 3.0
LARGE_ENGINES = ("onnxruntime", "openvino")


def timings(net: str, bench: "Bench") -> dict[str, float]:
    """Return median seconds by name: each engine, and the best."""
    seconds: dict[str, float] = {}
    for row in bench.rows:
        form = "fused" if row.fused else "written"
        took = row.milliseconds / 1000
        best = f"{net} batch {row.batch} {form}"
        seconds[f"{best} {row.engine} {row.precision}"] = took
        seconds[best] = min(took, seconds.get(best, took))
    return seconds


@app.default
def main(*, json_file: JsonFile) -> None:
    torch.manual_seed(0)
    small = branchwork.bench(
        "inception", options=branchwork.BenchOptions(batch_sizes=(1, 256), engines=ENGINES, loads=LOADS)
    )
    large = branchwork.bench(
        "googlenet",
        options=branchwork.BenchOptions(
            batch_sizes=(1,), engines=LARGE_ENGINES, loads=LARGE_LOADS, seconds=LARGE_SECONDS
        ),
    )
    seconds = timings("inception", small) | timings("GoogLeNet", large)
    write_json(json_file, {name: [took] for name, took in seconds.items()})


if __name__ == "__main__":
    app()
