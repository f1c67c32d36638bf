"""Run by torchrun in test_distributed.py: several trainings by two processes, whose results go into files."""

import json
import signal
import sys
import time
from pathlib import Path

import torch
from helpers.training import NORMED, SGD, SMALL

import branchwork as bw
from branchwork.datasets.dataset import DataSet, Split
from branchwork.datasets.load import load_data
from branchwork.errors import BranchworkError, RunError
from branchwork.training import fit, plan, training_run
from branchwork.training.processes import joined

# 1,350 images in batches of 337: the last has two, so that a process has none.
EXACT = SGD.but(
    {"batch_size": 337, "precision": "fp64", "accumulate": 2, "mixup": 0.2, "shift": 2.0, "elastic": 1.0, "flip": 0.5}
    | {"ema": 0.9, "clip": 1.0, "top": 1, "learning_rate": 0.02}
)
# The gradients that the processes exchange change with what learns.
TUNED = EXACT.but({"head_epochs": 1, "lowest_rate": 0.1, "ema": 0.0})
PLAIN = SGD.but({"epochs": 1, "batch_size": 90})
# The epoch and step at which a process is interrupted or killed.
FAILURE = (1, 3)


def fail() -> None:
    raise RunError("there is no room")


def main(what: str) -> None:
    full = load_data("sample")
    data = DataSet(
        **{**vars(full), "train": Split(full.train.images[:1500], full.train.labels[:1500])}
        | {"test": Split(full.test.images[:300], full.test.labels[:300])}
    )
    with joined() as processes:
        said = {}
        if what == "kill":
            training_run.SAVE_SECONDS = 0.0
            step = fit.train_step

            def dying(*given, moment, **options):
                if not processes.first and moment[1:] == FAILURE:
                    signal.raise_signal(signal.SIGKILL)
                return step(*given, moment=moment, **options)

            fit.train_step = dying
        said["result"] = bw.train(SMALL, data=data, recipe=EXACT, out="together").test_accuracy
        bw.train(SMALL, data=data, recipe=TUNED, weights="together", out="tuned")
        said["normed"] = bw.train(NORMED, data=data, recipe=PLAIN, out="normed").validation_accuracy

        # Ctrl-C in the second process alone.
        own = fit.train_step

        def pressed(*given, moment, **options):
            if not processes.first and moment[1:] == FAILURE:
                signal.raise_signal(signal.SIGINT)
            return own(*given, moment=moment, **options)

        fit.train_step = pressed
        try:
            bw.train(SMALL, data=data, recipe=EXACT, out="stopped")
        except BranchworkError as reason:
            said["stopped"] = [type(reason).__name__, str(reason)]
        fit.train_step = own
        bw.resume("stopped", data=data)
        for where in range(2):
            try:
                processes.together(fail if processes.rank == where else lambda: None)
            except BranchworkError as reason:
                said[f"failed in {where}"] = [type(reason).__name__, str(reason)]
        # Each has other images, and what the second measures is another batch.
        own_data = data if processes.first else DataSet(**{**vars(data), "train": data.train.pick(torch.arange(1499))})
        for name, given, measured in (("differ", own_data, 64), ("auto", data, 64 >> processes.rank)):
            plan.fitting_batch = lambda *_, measured=measured: measured
            recipe = EXACT.but({"batch_size": "auto"}) if name == "auto" else EXACT
            try:
                bw.train(SMALL, data=given, recipe=recipe.but({"epochs": 1}), out=name)
            except BranchworkError as reason:
                said[name] = [type(reason).__name__, str(reason)]
        said["sum"] = processes.sum([1.0, 0.1 + processes.rank])
        said["share"] = processes.share(processes.rank)
    Path(f"said-{processes.rank}.json").write_text(json.dumps(said))


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except BranchworkError as reason:
        time.sleep(2)  # on a busy machine; meanwhile torchrun ends the processes that are left
        sys.exit(f"branchwork: {type(reason).__name__}: {reason}")
