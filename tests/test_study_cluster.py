"""Trainings on a real dask cluster: a scheduler and two workers, each a process of its own."""

import logging
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from helpers.tiny_study import TINY, what_counts

import branchwork
from branchwork.errors import StudyError
from branchwork.observer import Observer
from branchwork.studies import executors, study
from branchwork.training.machine import versions

pytest.importorskip("distributed")


def free_port():
    with socket.socket() as own:
        own.bind(("127.0.0.1", 0))
        return own.getsockname()[1]


def start(tmp_path, module, *options):
    environment = os.environ | {"OMP_NUM_THREADS": "1", "DASK_DISTRIBUTED__WORKER__DAEMON": "False"}
    command = [sys.executable, "-m", f"distributed.cli.{module}", *map(str, options)]
    with open(tmp_path / f"{module}-{time.monotonic_ns()}.log", "w") as log:
        return subprocess.Popen(command, stdout=log, stderr=log, env=environment, cwd=tmp_path)


@pytest.fixture
def cluster(tmp_path):
    """The scheduler's address, and what starts a worker. All of them end with the test."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    running = [start(tmp_path, "dask_scheduler", "--host", "127.0.0.1", "--port", port, "--no-dashboard", "--no-show")]

    def worker():
        options = ("--nthreads", 1, "--no-nanny", "--no-dashboard", "--local-directory", tmp_path)
        running.append(start(tmp_path, "dask_worker", address, *options))
        return running[-1]

    yield address, worker
    for process in reversed(running):
        process.kill()
        process.wait()


def test_a_study_survives_a_killed_worker_and_gives_the_same(alone, cluster, tmp_path, monkeypatch):
    monkeypatch.setitem(study.STUDIES, "tiny", TINY)
    monkeypatch.setattr(executors, "PATIENCE", 60)  # processes begin slowly on a busy machine
    address, worker = cluster
    workers = [worker(), worker()]

    class Killer(Observer):
        counts = ()

        def count(self, title, done, total):
            self.counts = (*self.counts, done)
            if done == 2:
                workers[0].send_signal(signal.SIGKILL)

    killer = Killer()
    result = branchwork.study("tiny", out=tmp_path / "cluster", scheduler=address, observer=killer)
    assert workers[0].wait(10) == -signal.SIGKILL and workers[1].poll() is None
    assert (result.trained, killer.counts) == (6, (0, 1, 2, 3, 4, 5, 6))
    assert what_counts(tmp_path / "cluster") == what_counts(alone)


def test_a_scheduler_without_workers_is_told(cluster, monkeypatch, tmp_path):
    address, _ = cluster
    with socket.socket() as probe:
        deadline = time.monotonic() + 60
        while probe.connect_ex(("127.0.0.1", int(address.rpartition(":")[2]))):
            assert time.monotonic() < deadline
            time.sleep(0.2)
    monkeypatch.setattr(executors, "PATIENCE", 5)
    with pytest.raises(StudyError, match=r"has no workers. Start some .*dask worker tcp://127"):
        branchwork.study("depth", data="sample", out=tmp_path / "study", scheduler=address)


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:1", "nonsense://x", "tcp://no.such.host.invalid:8786"])
def test_a_scheduler_that_cannot_be_reached(address, monkeypatch, tmp_path, caplog):
    monkeypatch.setattr(executors, "PATIENCE", 2)
    caplog.set_level(logging.CRITICAL, logger="distributed")
    with pytest.raises(StudyError, match=r"no scheduler answers at .* within 2 seconds .*dask scheduler"):
        branchwork.study("depth", data="sample", out=tmp_path / "study", scheduler=address)


def test_workers_with_other_versions_are_refused():
    own = versions()
    executors.need_versions({"tcp://a:1": own})
    with pytest.raises(StudyError) as raised:
        executors.need_versions({"tcp://a:1": own, "tcp://b:2": own | {"torch": "2.9.0"}})
    assert (
        "tcp://b:2: " in str(raised.value) and "torch 2.9.0" in str(raised.value) and "tcp://a" not in str(raised.value)
    )


def test_a_worker_with_other_versions_that_comes_later_is_refused(monkeypatch, tmp_path):
    monkeypatch.setitem(study.STUDIES, "tiny", TINY)
    monkeypatch.setattr("branchwork.studies.trainings.versions", lambda: versions() | {"torch": "2.9.0"})
    message = r"workers have other versions than this process(.|\n)*torch 2\.9\.0"
    with ThreadPoolExecutor(1) as pool, pytest.raises(StudyError, match=message):
        branchwork.study("tiny", out=tmp_path / "study", executor=pool)
    assert not list((tmp_path / "study").rglob("*-seed-*.json"))


def test_without_the_extra_it_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setattr(executors.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(StudyError, match=r"pip install 'branchwork\[cluster\]'"):
        branchwork.study("depth", data="sample", out=tmp_path / "study", scheduler="tcp://127.0.0.1:1")
