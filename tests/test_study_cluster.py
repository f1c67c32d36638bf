"""Trainings of a study on a real dask cluster: a scheduler and two workers, each a process of its own."""

import os
import socket
import subprocess
import sys
import time

import pytest
from helpers.tiny_study import TINY, what_counts

import branchwork
from branchwork.observer import Observer
from branchwork.studies import study
from branchwork.studies.study import StudyOptions

distributed = pytest.importorskip("distributed")


@pytest.fixture
def cluster(tmp_path):
    """The scheduler's address, and its two workers. All of them end with the test."""
    running = []

    def start(module, *options):
        environment = os.environ | {"OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__WORKER__DAEMON": "False"}
        command = [sys.executable, "-m", f"distributed.cli.{module}", *map(str, options)]
        with open(tmp_path / f"{module}-{time.monotonic_ns()}.log", "w") as log:
            running.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=tmp_path))

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    start("dask_scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard", "--no-show")
    for _ in range(2):
        options = ("--nthreads", 1, "--no-nanny", "--no-dashboard", "--local-directory", tmp_path)
        start("dask_worker", f"tcp://127.0.0.1:{port}", *options)
    yield f"tcp://127.0.0.1:{port}", running[1:]
    for process in reversed(running):
        process.kill()
        process.wait()


def test_a_study_survives_a_killed_worker_and_gives_the_same(alone, cluster, tmp_path, monkeypatch):
    monkeypatch.setitem(study.STUDIES, "tiny", TINY)
    address, workers = cluster

    class Killer(Observer):
        counts = ()

        def count(self, title, done, total):
            self.counts = (*self.counts, done)
            if done == 2:
                workers[0].kill()

    killer = Killer()
    with distributed.Client(address, timeout=60, set_as_default=False) as client:
        options = StudyOptions(workers=client.get_executor(retries=3, pure=False))
        result = branchwork.study("tiny", out=tmp_path / "cluster", options=options, progress=killer)
    assert workers[0].wait(10) != 0 and workers[1].poll() is None
    assert (result.trained, killer.counts) == (6, (0, 1, 2, 3, 4, 5, 6))
    assert what_counts(tmp_path / "cluster") == what_counts(alone)
