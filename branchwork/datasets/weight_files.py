"""Where files of published weights come from: the cache, torch's own cache, or a mirror."""

import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from branchwork.datasets.download import BrokenOff, check_answer, checksum_problem, download_checked, lock_cache
from branchwork.errors import DataError, WeightsError
from branchwork.observer import Observer


def fetch_weights(
    name: str, digits: str, *, mirrors: Sequence[str], places: Sequence[Path], megabytes: int, observer: Observer
) -> tuple[Path, str]:
    """Return the path of the file `name`, whose SHA-256 begins with `digits`, and a description of where it came from.

    It is looked for in the first of the folders `places`, the cache, and then in the others; else it is downloaded into
    the cache. `megabytes` is its size, rounded up, in units of 2^20 bytes. Raises `WeightsError` that lists every place
    that was tried and why it failed, and says what to do by hand.
    """
    problem_of = partial(checksum_problem, name=name, kind="sha256", digits=digits)
    tried = {}
    for place in places:
        problem = problem_of(place / name)
        if problem is None:
            return place / name, str(place)
        tried[str(place)] = problem
    cache = places[0]
    part = cache / f".{name}.part"
    with lock_cache(cache, name, megabytes=2 * megabytes, observer=observer):
        if problem_of(cache / name) is None:  # another process has fetched it meanwhile
            return cache / name, str(cache)
        for mirror in mirrors:
            try:
                check_answer(mirror)
                download_checked(f"{mirror}{name}", part, problem_of, largest=megabytes * 2**20, observer=observer)
                os.replace(part, cache / name)
                return cache / name, f"{mirror}{name}"
            except (DataError, OSError) as reason:
                if not isinstance(reason, BrokenOff) or not part.stat().st_size:
                    part.unlink(missing_ok=True)
                tried[mirror] = str(reason) or type(reason).__name__
    raise WeightsError(
        "the weights {name} are not available. Tried:\n{tried}\n"
        "Download {url} ({megabytes} MB) by other means, and put it into {cache}, or name the file: --weights FILE.",
        name=name,
        tried="\n".join(f"  {place}: {problem}" for place, problem in tried.items()),
        url=f"{mirrors[0]}{name}",
        megabytes=megabytes,
        cache=cache,
    )
