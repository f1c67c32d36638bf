import dataclasses
import json
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import branchwork as bw
from branchwork.deploy import bench as module
from branchwork.deploy.bench import matrix_product, take_turns
from branchwork.deploy.engines import Engine, find_engine
from branchwork.errors import EngineError, NetError
from branchwork.language import milliseconds

QUICK = bw.BenchOptions(engines=("torch",), precisions=("fp32",), batch_sizes=(1, 3), seconds=0.02)


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(784, 10)

    def forward(self, x):
        return self.fc(x.flatten(1))


def test_every_engine_and_precision_is_timed_as_written_and_fused():
    result = bw.bench(Small(), draw=Path("b.png"), options=bw.BenchOptions(batch_sizes=(2,), seconds=0.01, threads=1))
    usable = [(engine.name, kind) for engine in result.engines for kind in engine.precisions if kind != "int8"]
    assert {name for name, _ in usable} == {"torch", "torch.compile", "onnxruntime", "openvino"}
    found = {(row.engine, row.precision, row.fused, row.batch) for row in result.rows}
    assert found == {(*one, fused, 2) for one in usable for fused in (False, True)}
    check_rows(result)
    with Image.open("b.png") as picture:
        assert picture.width > 500 and np.unique(np.asarray(picture.convert("L"))).size > 50


def test_every_batch_size_is_timed():
    kind = {"engines": ("openvino",), "precisions": ("fp32",), "seconds": 0.01, "threads": 1}
    result = bw.bench(Small(), options=bw.BenchOptions(batch_sizes=(2, 4), **kind))
    assert {(row.fused, row.batch) for row in result.rows} == {
        (fused, size) for fused in (False, True) for size in (2, 4)
    }
    check_rows(result)


def check_rows(result):
    for row in result.rows:
        low, high = row.quartiles
        assert 0 < low <= row.milliseconds <= high and row.runs >= module.ROUNDS
        assert row.images_per_second == pytest.approx(1000 * row.batch / row.milliseconds)
        assert row.macs_per_second == pytest.approx(7840 * row.images_per_second)
        assert row.share == pytest.approx(row.macs_per_second / result.ceilings[row.precision])
        assert row.difference < (1e-4 if row.precision == "fp32" else 0.1)
    assert result.macs == 7840 and result.threads == 1 and result.input_shape == (1, 28, 28)
    assert result.latency.milliseconds == min(row.milliseconds for row in result.rows if row.batch == 2)
    assert result.throughput.images_per_second == max(row.images_per_second for row in result.rows)


def test_times_are_those_of_the_runs_and_turns_are_taken_fairly(monkeypatch):
    order = []

    def sleeping(name, seconds):
        def run():
            order.append(name)
            time.sleep(seconds)

        return run

    monkeypatch.setattr(module, "SETTLE", 0.0)
    times = take_turns({"short": sleeping("short", 0.002), "long": sleeping("long", 0.02)}, 0.05)
    assert 0.002 <= min(times["short"]) < 0.02 <= min(times["long"])
    # A candidate that takes longer than its turn is run once a turn and every run counts.
    assert len(times["long"]) == order.count("long") == module.ROUNDS
    turns = [name for index, name in enumerate(order) if index == 0 or order[index - 1] != name]
    assert turns == ["short", "long", "short", "long", "short", "long"], "forwards, backwards, forwards …"


def test_the_ceiling_counts_the_macs_of_its_product():
    product, macs = matrix_product(torch.float32)
    assert macs == module.SIDE**3
    out = product()
    assert out.shape == (module.SIDE, module.SIDE) and out.dtype == torch.float32


def test_the_command_shows_a_table_and_writes_a_picture_and_json(command, monkeypatch):
    missing = Engine("openvino", None, ("fp32",), 'openvino is not installed: pip install "branchwork[deploy]"')
    monkeypatch.setattr(module, "find_engines", lambda: (find_engine("torch"), missing))
    arguments = ("--batch-sizes", 1, 4, "--precisions", "fp32", "--seconds", 0.02, "--threads", 1, "--json", "b.json")
    code, out, err = command("bench", "residual", "--draw", "b.svg", *arguments)
    assert code == 0, err
    figures = json.loads(Path("b.json").read_text())
    assert len(figures["rows"]) == 4 and figures["macs"] == 2_013_184
    assert (
        figures["engines"][1]["problem"] == missing.problem and f"{missing.name} is not timed: {missing.problem}" in out
    )
    rows = [line.split() for line in out.splitlines() if line.startswith(" torch ")]
    assert [row[1:3] for row in rows] == [["fp32", "as"], ["fp32", "fused"]] * 2
    assert rows[0][5] == milliseconds(figures["rows"][0]["milliseconds"])
    assert "for latency, 1 at a time: torch fp32" in out and "for throughput: torch fp32" in out
    assert "drawn: b.svg" in out and "milliseconds per batch" in Path("b.svg").read_text()
    code, out, _ = command("bench", "residual", "--engines", "torch", *arguments[:-1], "-")
    assert code == 0 and json.loads(out)["net"] == "residual"


def test_a_run_is_timed_at_its_own_size_and_a_net_at_any(run, command):
    code, _, _ = command("bench", run.folder, "--engines", "torch", "--batch-sizes", 1, "--seconds", 0.02)
    assert code == 0 and Path(run.folder, "bench.svg").exists()
    Path(run.folder, "bench.svg").unlink()
    with pytest.raises(NetError, match=r"was trained on images of 1×28×28 and accepts no others"):
        bw.bench(run.folder, input_shape=(3, 28, 28), options=QUICK)
    wide = bw.bench("residual", input_shape=(3, 32, 36), options=QUICK)
    assert wide.input_shape == (3, 32, 36) and wide.macs > 2_013_184
    net = nn.Sequential(nn.Flatten(), nn.Linear(75, 7))
    assert bw.bench(net, input_shape=(3, 5, 5), options=QUICK).macs == 75 * 7


def test_an_engine_that_gives_other_logits_is_not_timed(monkeypatch):
    def wrong(subject, shipping):
        twin = dataclasses.replace(subject, net=nn.Sequential(subject.net, nn.Threshold(0.0, 1.0)))
        return ship(twin, shipping)

    ship = module.ship
    monkeypatch.setattr(module, "ship", wrong)
    with pytest.raises(
        EngineError, match=r"torch fp32, as written: its logits differ from those of the net as written"
    ):
        bw.bench(Small(), options=QUICK)


def test_loads_are_of_one_file_and_share_the_seconds(monkeypatch):
    written, loaded, times = [], [], {}

    def take(turns, seconds):
        times.update(dict.fromkeys(turns, seconds))
        # The second of three loads lies badly.
        return {key: [0.003] * 9 if key[-1] == 1 else [0.002 + 0.0001 * number for number in range(9)] for key in turns}

    write, load = module.write, module.load
    monkeypatch.setattr(
        module, "write", lambda path, subject, **kind: written.append(path) or write(path, subject, **kind)
    )
    monkeypatch.setattr(module, "load", lambda name, what, kind: loaded.append(what) or load(name, what, kind))
    monkeypatch.setattr(module, "take_turns", take)
    result = bw.bench(
        Small(), options=bw.BenchOptions(engines=["onnxruntime"], batch_sizes=(1, 3), seconds=0.3, loads=3)
    )
    # As written one file serves both batch sizes, and a fused one each.
    assert len(written) == 3 and len(loaded) == 9 and [loaded.count(path) for path in written] == [3, 3, 3]
    assert [*times.values()] == pytest.approx([0.1] * len(times))
    assert result.loads == 3 and {row.runs for row in result.rows} == {27}
    assert [row.milliseconds for row in result.rows] == pytest.approx([2.6] * 4)
    with pytest.raises(EngineError, match="loads and threads must be at least 1"):
        bw.bench(Small(), options=dataclasses.replace(QUICK, loads=0))


def test_a_net_is_fused_for_each_batch_size(monkeypatch):
    made = []

    def noted(subject, shipping):
        made.append((shipping.precision, shipping.fuse, shipping.batch_size))
        return ship(subject, shipping)

    ship = module.ship
    monkeypatch.setattr(module, "ship", noted)
    bw.bench(
        Small(), options=bw.BenchOptions(engines=["torch"], precisions=["fp32"], batch_sizes=(1, 64), seconds=0.01)
    )
    assert made == [("fp32", False, 1), ("fp32", True, 1), ("fp32", True, 64)]


def test_an_engine_that_fails_is_named(monkeypatch):
    def failing(name, what, precision):
        def run(images):
            raise RuntimeError("out of memory\nin a kernel")

        return run

    monkeypatch.setattr(module, "load", failing)
    with pytest.raises(EngineError, match=r"torch fp32, as written fails with 1 images \(out of memory\)"):
        bw.bench(Small(), options=QUICK)


def test_threads_are_as_before_afterwards():
    before = torch.get_num_threads()
    assert bw.bench(Small(), options=dataclasses.replace(QUICK, threads=3)).threads == 3
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--engines", "tensorrt"], "there is no engine called 'tensorrt'"),
        (["--batch-sizes", "0"], "batch sizes, loads and threads must be at least 1, and seconds above 0"),
        (["--seconds", "0"], "batch sizes, loads and threads must be at least 1, and seconds above 0"),
        (["--threads", "0"], "batch sizes, loads and threads must be at least 1, and seconds above 0"),
        (["--threads", "200000"], "threads must be from 1 to"),
        (["--precisions", "fp16"], "fp32"),
        (["--engines", "onnxruntime", "--precisions", "bf16"], "onnxruntime cannot compute in bf16 here"),
        (["--draw", "a.txt"], "Use .svg, .png, .jpg or .pdf"),
        (["--input", "28"], "--input must be channels, height and width"),
    ],
)
def test_bad_input_is_one_message(arguments, words, refused):
    assert words in refused("bench", "residual", *arguments)


def test_an_engine_that_is_asked_for_and_missing_is_an_error_and_otherwise_a_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(EngineError, match="onnxscript is not installed"):
        bw.bench(Small(), options=bw.BenchOptions(engines=("onnxruntime",)))
    monkeypatch.setattr(module, "find_engines", lambda: (find_engine("torch"), find_engine("onnxruntime")))
    result = bw.bench(Small(), options=bw.BenchOptions(batch_sizes=(1,), precisions=("fp32",), seconds=0.01))
    assert {row.engine for row in result.rows} == {"torch"}
    assert "onnxscript is not installed" in result.engines[1].problem


def test_bf16_on_a_machine_without_it_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict)
    with pytest.raises(EngineError, match="this processor has no bf16 arithmetic"):
        bw.bench(Small(), options=bw.BenchOptions(precisions=("bf16",)))


def test_milliseconds_have_three_digits():
    assert [milliseconds(value) for value in (0.09512, 7.2, 53.84, 132.4, 1320.4)] == [
        "0.0951", "7.20", "53.8", "132", "1,320",
    ]  # fmt: skip
