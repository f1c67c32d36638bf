"""Two real processes that train together, started by torchrun, against one process. Its other half is together.py."""

import json
import os
import re
import socket
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from conftest import POSIX, ROOT
from helpers.training import SGD, SMALL, last, same, weights
from together import EXACT, TUNED

import branchwork as bw
from branchwork.datasets.batches import hold_out
from branchwork.errors import RecipeError, RunError
from branchwork.training.processes import Processes, is_lost

pytestmark = POSIX

TORCHRUN = (sys.executable, "-m", "torch.distributed.run")
ENVIRONMENT = {
    **os.environ, "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1",
    "TORCH_CPP_LOG_LEVEL": "ERROR",
}  # fmt: skip


def torchrun(*words: object, processes: int = 2) -> "subprocess.CompletedProcess[str]":
    order = (*TORCHRUN, "--standalone", "--nproc-per-node", processes, *words)
    return subprocess.run([*map(str, order)], capture_output=True, text=True, timeout=200, env=ENVIRONMENT)


def test_two_processes_train_as_one_does_and_stop_and_fail_together(small):
    done = torchrun(ROOT / "tests/together.py", "whole")
    assert done.returncode == 0, done.stderr
    first, second = (json.loads(Path(f"said-{rank}.json").read_text()) for rank in (0, 1))

    alone = bw.train(SMALL, data=small, recipe=EXACT, out="alone")
    bw.train(SMALL, data=small, recipe=TUNED, weights="together", out="alone-tuned")
    for together, single in (("together", "alone"), ("tuned", "alone-tuned")):
        ours, theirs = (weights(run, "last/state.safetensors") for run in (together, single))
        assert ours.keys() == theirs.keys()
        for key in ours:
            if not key.startswith("random"):
                torch.testing.assert_close(ours[key], theirs[key], rtol=1e-10, atol=1e-10)
    texts = [Path(run, "metrics.jsonl").read_text() for run in ("together", "alone")]
    lines = [[json.loads(line) for line in text.splitlines()] for text in texts]
    for key in ("validation_accuracy", "images"):
        assert [line[key] for line in lines[0]] == [line[key] for line in lines[1]], key
    assert [line["train_loss"] for line in lines[0]] == pytest.approx([line["train_loss"] for line in lines[1]])
    assert first["result"] == second["result"] == alone.test_accuracy
    assert Path("together/result.json").exists() and Path("together/top/epochs.json").exists()

    # Each process has statistics of its own for the batch norms, and the first one's are validated and kept.
    trained = bw.load_run("normed")
    _, validation = hold_out(small.train, 0.1, 0)
    with torch.no_grad():
        right = trained.net((validation.images / 255 - 0.1307) / 0.3081).argmax(1) == validation.labels
    assert first["normed"] == second["normed"] == pytest.approx(int(right.sum()) / 150, abs=2 / 150)

    assert first["stopped"] == ["Interrupted", "stopped, and saved. Continue with: branchwork train --resume stopped"]
    assert second["stopped"][0] == "ToldElsewhere"
    assert same("together", "stopped")
    for rank in (0, 1):
        assert first[f"failed in {rank}"] == ["RunError", "there is no room"]
        assert second[f"failed in {rank}"][0] == "ToldElsewhere"
    assert first["differ"][0] == "RunError" and "process 1 has different training images" in first["differ"][1]
    assert second["differ"][0] == "ToldElsewhere"
    # 32 images for each of two parts in each of two processes: what the smaller measured, for both.
    assert tomllib.loads(Path("auto/recipe.toml").read_text())["batch_size"] == 32 * 2 * EXACT.accumulate
    assert first["sum"] == second["sum"] == [2.0, 1.2000000000000002] and first["share"] == second["share"] == 0


def test_two_machines_with_disks_of_their_own_train_as_one_does(tmp_path):
    """Two of torchrun's agents that meet over the network, in folders of which neither sees the other's."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        meeting = f"localhost:{free.getsockname()[1]}"
    agent = ("--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d", "--rdzv-endpoint", meeting)
    order = ["-m", "branchwork", "train", "mine.py:Small", "--data", "sample", "--fraction", "0.1", "--epochs", "1"]
    order += ["--precision", "fp64", "--no-report"]
    machines = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "mine.py").write_text("from helpers.training import Small\n")
        machines.append(
            subprocess.Popen(
                [*TORCHRUN, *agent, *order, "--out", "run"],
                cwd=folder,
                env=ENVIRONMENT,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
    try:
        told = [machine.communicate(timeout=200)[1] for machine in machines]
    finally:
        for machine in machines:
            machine.kill()
    assert [machine.returncode for machine in machines] == [0, 0], told
    # Which of them has rank 0 is for torchrun to say: it writes, and the other nothing.
    (written,) = (tmp_path / name / "run" for name in ("first", "second") if (tmp_path / name / "run").exists())
    alone = (sys.executable, *order, "--out", "alone")
    subprocess.run(alone, cwd=written.parent, env=ENVIRONMENT, check=True, capture_output=True, timeout=200)
    ours, theirs = (weights(written.parent / run, "last/state.safetensors") for run in ("run", "alone"))
    for key in ours:
        if not key.startswith("random"):
            torch.testing.assert_close(ours[key], theirs[key], rtol=1e-10, atol=1e-10)


def test_a_lost_process_ends_the_run_and_one_goes_on_to_the_same_weights(small):
    done = torchrun(ROOT / "tests/together.py", "kill")
    assert done.returncode != 0 and not Path("together/result.json").exists()
    assert re.search(
        r"^branchwork: TrainingError: one of the 2 processes that train together was lost \(.*\)\. Continue, with any "
        r"number of processes: branchwork train --resume together$",
        done.stderr,
        re.MULTILINE,
    ), done.stderr
    bw.resume("together", data=small)
    bw.train(SMALL, data=small, recipe=EXACT, out="alone")
    for key, tensor in last("alone").items():
        torch.testing.assert_close(last("together")[key], tensor, rtol=1e-10, atol=1e-10)


def test_the_command_writes_and_prints_once():
    Path("nets.py").write_text("from helpers.training import Small\n")
    order = ("-m", "branchwork", "train", "nets.py:Small", "--data", "sample", "--epochs", 1, "--batch-size", 500)
    done = torchrun(*order)
    assert done.returncode == 0, done.stderr
    epochs = [line for line in done.stderr.splitlines() if "epoch 1/1" in line and not line.endswith("left")]
    assert done.stdout.count("report: ") == 1 and len(epochs) == 1
    assert [path.name for path in Path("runs").iterdir()] == ["nets-Small-sample-1"]
    done = torchrun(*order, "--momentum", 2)
    assert (
        done.returncode != 0 and done.stderr.count("branchwork: momentum must be at least 0 and below 1, got 2.0") == 1
    )


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_each_thing_is_one_processs_own(count):
    things = list(range(7))
    shares = [Processes(rank, count).own(things) for rank in range(count)]
    assert [thing for share in shares for thing in share] == things
    assert max(map(len, shares)) - min(map(len, shares)) <= 1
    assert [list(Processes(rank, 3).own([1, 2])) for rank in range(3)] == [[], [1], [2]]


def test_what_takes_one_process_and_what_takes_gpus_is_refused(small, monkeypatch):
    with pytest.raises(RecipeError, match="batch_norm = shared needs GPUs, but the device is cpu"):
        bw.train(SMALL, data=small, recipe=SGD.but({"batch_norm": "shared"}), options=bw.Options(device="cpu"))
    monkeypatch.setenv("WORLD_SIZE", "2")
    for verb in (lambda: bw.train_seeds(SMALL, data=small), lambda: bw.demo("sample")):
        with pytest.raises(RunError, match="torchrun has started 2 processes"):
            verb()


def test_a_lost_process_is_told_from_other_faults():
    assert is_lost(RuntimeError("[.../gloo/transport/tcp/pair.cc:534] Connection closed by peer [127.0.0.1]:1"))
    assert is_lost(torch.distributed.DistBackendError("NCCL error"))
    assert not is_lost(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
