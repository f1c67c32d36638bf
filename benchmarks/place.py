"""Where the measurements are made, as JSON, in a process of its own.

The process that measures loads no torch: a child's peak memory begins with that of the process that started it.
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
