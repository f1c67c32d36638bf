"""Where the trainings of a study run: in this process, in a pool of processes, or on a cluster."""

import importlib.util
import multiprocessing
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import BrokenExecutor, CancelledError, Executor, ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from typing import Any

from branchwork.errors import StudyError, first_line
from branchwork.studies.trainings import Job, Record, train_job
from branchwork.training.machine import versions

# Seconds to wait for a scheduler, and for its first worker.
PATIENCE = 10
# How often a training begins again whose worker was lost.
RETRIES = 3


def run_jobs(jobs: Iterable[Job], executor: Executor | None) -> Iterator[tuple[Job, Record]]:
    """Each job with its record, as they come; without an executor, in this process, one after the other.

    What is not done when the reader has enough, or stops at an error, is called off. Raises what the trainings raise,
    and `StudyError` where the executor lost its workers.
    """
    if executor is None:
        for job in jobs:
            yield job, train_job(job)
        return
    futures = {executor.submit(train_job, job): job for job in jobs}
    try:
        for future in as_completed(futures):
            record = future.result()
            need_versions({record["machine"]: record["versions"]})  # a cluster's worker may have come later
            yield futures[future], record
    except BrokenExecutor as reason:
        raise StudyError(
            f"a process that trained is gone: the system may have ended it for want of memory ({first_line(reason)}). "
            "Finished trainings are kept. Give the same command again, perhaps with a smaller --workers"
        ) from reason
    finally:
        for future in futures:
            future.cancel()


@contextmanager
def process_pool(workers: int) -> Iterator[Executor]:
    """Processes of their own, `workers` of them, which end with this one, however it ends."""
    before = {child.pid for child in multiprocessing.active_children()}
    # A forked process would wait for ever for the threads of torch that it lacks.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_begin_worker) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for child in multiprocessing.active_children():
                if child.pid not in before:
                    child.terminate()
            raise


def _begin_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group, and is the first process's to tell
    signal.signal(signal.SIGTERM, lambda number, frame: os._exit(1))
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None, "a worker has one"
    parent.join()
    os._exit(1)


@contextmanager
def cluster(address: str) -> Iterator[Executor]:
    """The workers of the dask scheduler at `address`, such as `tcp://host:8786`.

    A training whose worker is lost begins again on another. Raises `StudyError` where there is no scheduler or no
    worker, or where workers have other versions than this process.
    """
    if importlib.util.find_spec("distributed") is None:
        raise StudyError("--scheduler needs the extra `cluster`: pip install 'branchwork[cluster]', or leave it out")
    import distributed

    try:
        client: Any = distributed.Client(  # type: ignore[no-untyped-call]
            address, timeout=PATIENCE, set_as_default=False
        )
    except (OSError, ValueError, TypeError) as reason:
        raise StudyError(
            f"no scheduler answers at {address} within {PATIENCE} seconds ({first_line(reason)}). Start one with "
            "`dask scheduler`, which shows its address, or leave --scheduler out"
        ) from reason
    with client:
        try:
            client.wait_for_workers(1, timeout=PATIENCE)
        except (OSError, TimeoutError) as reason:
            raise StudyError(
                f"the scheduler at {address} has no workers. Start some on any machine with "
                f"`dask worker {address} --nthreads 1`"
            ) from reason
        need_versions(_versions_of(client))
        try:
            yield client.get_executor(retries=RETRIES, pure=False)
        except distributed.KilledWorker as reason:
            raise StudyError(
                f"one training has lost its worker again and again ({first_line(reason)}): the workers may have too "
                "little memory. Finished trainings are kept; the same command goes on from there"
            ) from reason
        except CancelledError as reason:
            raise StudyError(
                f"the scheduler at {address} is gone. Finished trainings are kept; the same command goes on from there"
            ) from reason


def _versions_of(client: Any) -> dict[str, dict[str, str]]:
    """Each worker's versions, by its address."""
    try:
        found: dict[str, dict[str, str]] = client.run(versions)
        return found
    except Exception as reason:  # whatever the worker's Python says where branchwork is missing
        raise StudyError(
            f"a worker cannot run Branchwork ({first_line(reason)}): install branchwork {versions()['branchwork']} "
            "where the workers run, and start them again"
        ) from reason


def need_versions(workers: dict[str, dict[str, str]]) -> None:
    """Raises `StudyError` where workers, by address or machine, have other versions of what a training depends on."""
    own = versions()
    others = {address: found for address, found in workers.items() if found != own}
    if others:
        lines = "\n".join(f"  {address}: {_words(found)}" for address, found in others.items())
        raise StudyError(
            f"workers have other versions than this process, which has {_words(own)}:\n{lines}\n"
            "Install the same ones there and start the workers again, so that all trainings can be compared"
        )


def _words(found: dict[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items())
