"""A study of two tiny nets for the tests. As a script, it runs in a process that can be stopped: OUT WORKERS."""

import json
import sys
from functools import partial

import pytest

from branchwork.observer import Observer
from branchwork.studies import study as studies
from branchwork.studies.design import Answer, Arm, Plot, Setting, Study, compared
from branchwork.studies.study_plots import error_dots
from branchwork.training.recipes import fast

PAIR = ("dropout", "plain")
# Dropout draws random numbers at every step, and the smaller images are drawn by the seed.
ARMS = (Arm("dropout", "resnet8[shortcut=dropout,width=4]"), Arm("plain", "plain8[width=4]"))
RECIPE = fast().but({"epochs": 2, "batch_size": 32, "precision": "fp32", "validation": 0.0})


def answer(records):
    comparisons = records.compare([PAIR] if records.has(*PAIR) else [], "test_error")
    findings = [
        compared(records, PAIR, comparison, measure="test_error", question="Is it worse?", margin=0.01, yes="more")
        for comparison in comparisons
    ]
    rows = [arm.label for arm in records.arms]
    plot = Plot("errors", "", partial(error_dots, rows, [("test", [records.mean(r, "test_error") for r in rows])]))
    return Answer(tuple(findings), tuple(c for c in comparisons if c is not None), (plot,))


TINY = Study(
    name="tiny",
    data="sample",
    claim="It is said.",
    question="Is it so?",
    arms=lambda preset: ARMS,
    setting=lambda preset, images: Setting(RECIPE, seeds=3, images=96, side=7, execute="written", gradients=True),
    measures=("test_error", "train_error", "seconds"),
    answer=answer,
    divisible=True,
)


class Watcher(Observer):
    """Says on the standard output how many trainings are done."""

    def count(self, title, done, total):
        print(done, flush=True)


# What must not depend on where a training ran.
SAME = ("outcome", "train_error", "train_loss", "test_error", "gradients", "parameters", "macs", "train_images")


@pytest.fixture(scope="session")
def alone(tmp_path_factory):
    """The folder of the tiny study, run in this process."""
    folder = tmp_path_factory.mktemp("studies") / "alone"
    studies.STUDIES["tiny"] = TINY
    try:
        result = studies.study("tiny", out=folder, options=studies.StudyOptions(workers=1))
    finally:
        del studies.STUDIES["tiny"]
    assert (result.trainings, result.trained) == (6, 6)
    return folder


def records(folder):
    return {path.name: json.loads(path.read_text()) for path in sorted((folder / "trainings").glob("*.json"))}


def what_counts(folder):
    kept = {}
    for name, record in records(folder).items():
        losses = [(epoch["train_loss"], epoch["learning_rate"]) for epoch in record["epochs"]]
        kept[name] = ({key: record[key] for key in SAME}, losses)
    return kept


if __name__ == "__main__":
    studies.STUDIES["tiny"] = TINY
    options = studies.StudyOptions(workers=int(sys.argv[2]))
    studies.study("tiny", out=sys.argv[1], options=options, progress=Watcher())
