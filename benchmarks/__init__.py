"""What Branchwork is measured against, all in one run on one machine: `make bench`, or `python -m benchmarks`."""
