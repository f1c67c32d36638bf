"""Print the machine of the measurements as JSON, from a process of its own.

The measuring process must not load torch, because the peak memory of a child starts at that of its parent.
"""

import json
import os
import subprocess
from contextlib import suppress
from typing import Any

import torch

from branchwork.training.machine import commit, machine, versions


def gpu() -> dict[str, Any] | None:
    """Return what the GPU is and what drives it; None where torch finds none."""
    if not torch.cuda.is_available():
        return None
    about = torch.cuda.get_device_properties(0)
    asked = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = None
    with suppress(OSError, subprocess.SubprocessError):
        driver = subprocess.run(asked, capture_output=True, text=True, timeout=20).stdout.strip() or None
    return {
        "name": about.name,
        "memory_bytes": about.total_memory,
        "capability": f"{about.major}.{about.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "driver": driver,
    }


def main() -> None:
    print(
        json.dumps(
            {
                "machine": machine(),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "versions": versions(),
                "commit": commit(),
                "gpu": gpu(),
            }
        )
    )


if __name__ == "__main__":
    main()
