"""Times of things that take turns, so that a machine whose speed drifts treats all alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

import torch

Key = TypeVar("Key")

ROUNDS = 5
# Threads of one engine spin for some milliseconds after it has run, and would slow down the next one.
SETTLE = 0.01
# The side of the square matrices of the ceiling: large enough for the processor's full speed.
SIDE = 1024


def take_turns(candidates: Mapping[Key, Callable[[], object]], seconds: float) -> dict[Key, list[float]]:
    """Seconds of each run of each candidate, in `ROUNDS` rounds that go through them forwards and backwards.

    A candidate is run for `seconds` in all, and at least once a round; its first runs in a turn are not counted,
    unless one alone takes longer than its whole turn.
    """
    times: dict[Key, list[float]] = {key: [] for key in candidates}
    order: Sequence[Key] = list(candidates)
    for _ in range(ROUNDS):
        for key in order:
            times[key] += _turn(candidates[key], seconds / ROUNDS)
        order = order[::-1]
    return times


def _turn(run: Callable[[], object], seconds: float) -> list[float]:
    first = _time(run)
    if first > max(seconds, SETTLE):
        return [first]
    settled = first
    while settled < SETTLE:
        settled += _time(run)
    times: list[float] = []
    begun = time.perf_counter()
    while not times or time.perf_counter() - begun < seconds:
        times.append(_time(run))
    return times


def _time(run: Callable[[], object]) -> float:
    begun = time.perf_counter()
    run()
    return time.perf_counter() - begun


def matrix_product(dtype: torch.dtype) -> tuple[Callable[[], object], int]:
    """What the machine's ceiling is measured by, a product of two square matrices, and its MACs."""
    generator = torch.Generator().manual_seed(0)
    one, two = (torch.randn(SIDE, SIDE, generator=generator).to(dtype) for _ in range(2))
    out = torch.empty_like(one)
    return lambda: torch.mm(one, two, out=out), SIDE**3
