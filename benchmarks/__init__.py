"""Compare Branchwork with other methods, in one run on one machine: `make bench`, or `python -m benchmarks`."""
