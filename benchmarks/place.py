"""Print the machine of the measurements as JSON, from a process of its own.

The measuring process must not load torch, because the peak memory of a child starts at that of its parent.
"""

import json
import os

import torch

from branchwork.training.machine import commit, machine, versions


def main() -> None:
    print(
        json.dumps(
            {
                "machine": machine(),
                "cores": os.cpu_count(),
                "threads": torch.get_num_threads(),
                "versions": versions(),
                "commit": commit(),
            }
        )
    )


if __name__ == "__main__":
    main()
