"""How long torch's threads wait for work before they sleep."""

import os
import time
from pathlib import Path

# Where Linux counts the running processes.
RUNNING = Path("/proc/stat")


def limit_spinning() -> None:
    """Set `GOMP_SPINCOUNT`, which torch reads once when it is imported, unless the user has set it."""
    if "GOMP_SPINCOUNT" not in os.environ:
        os.environ["GOMP_SPINCOUNT"] = spin_count()


def spin_count() -> str:
    """Return how often a thread of torch looks for work before it sleeps.

    Waking threads for every small operation doubles the time, but if other processes compute, spinning threads starve
    each other (docs/experiments/hardware.md).
    """
    counts = []
    try:
        for _ in range(5):
            stat = RUNNING.read_text(encoding="ascii")
            counts.append(int(stat.partition("procs_running ")[2].split()[0]))
            time.sleep(0.004)
    except (OSError, ValueError, IndexError):
        return "1000"
    return "10000" if min(counts) == 1 else "1000"  # this process is the one
