# make demo   set up, train both of the lecture's networks, show what came of it
# make test   set up, run every check; make test-slow runs every command of the READMEs and pages as well
# make bench  set up, measure side by side with the lecture's script and a public recipe: eight to twenty-five minutes;
#             BENCH=--full trains everything to its end, BENCH=--help tells the rest
# All may be run again at any time; what is set up already is left alone.

PYTHON ?= python3
VENV ?= .venv
DATA ?= auto
BENCH ?=

.PHONY: demo test test-slow check bench

demo: $(VENV)/.ready
	@$(VENV)/bin/branchwork demo --data $(DATA)

test: check
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -m 'not slow' -n auto --maxprocesses 8 --dist loadfile

# Every command of the READMEs and of docs/own-images.md: minutes that the tests above have no time for.
test-slow: $(VENV)/.ready-dev
	$(VENV)/bin/pytest -m slow

# With the checks' extras, which have the inference engines.
bench: $(VENV)/.ready-dev
	@$(VENV)/bin/python -m benchmarks $(BENCH)

# The checks that need no test run.
check: $(VENV)/.ready-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Branchwork needs Python 3.11 or newer, and $(PYTHON) is {sys.version.split()[0]}. Name another: make PYTHON=python3.12")'
	@echo "Setting up $(VENV), once. PyTorch is the largest part of it."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(VENV)/bin/pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
