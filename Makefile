# make demo   set up, train both of the lecture's networks, show the results
# make test   set up, run every check; make test-slow also runs every command of the READMEs and of docs/, and the notebooks
# make test-faults  set up, try every fault of tests/faults, of which make test tries a few: an hour or more
# make docs   set up, build the documentation site into build/site, in both languages
# make bench  set up, compare with the lecture's script and a public recipe: 8 to 25 minutes;
#             BENCH=--full trains everything to its end, BENCH=--help shows more
# make messages  after a change of words: bring the catalogue of translations up to date
# All can be run again at any time; what is set up already is kept.

PYTHON ?= python3
VENV ?= .venv
DATA ?= auto
BENCH ?=

.PHONY: demo test test-slow test-faults check check-page docs check-links bench messages

demo: $(VENV)/.ready
	@$(VENV)/bin/branchwork demo --data $(DATA)

test: check
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest -m 'not slow' -n auto --maxprocesses 8 --dist loadfile

# Every command of the READMEs and of docs/, and the notebooks; takes minutes.
test-slow: $(VENV)/.ready-dev
	$(VENV)/bin/pytest -m slow

# Ends with how often each promise was tried, and how often it failed.
test-faults: $(VENV)/.ready-dev
	OMP_NUM_THREADS=1 $(VENV)/bin/pytest tests/faults --all-faults --timeout 1800 -n auto --maxprocesses 8

# The documentation site, with warnings as errors; every link within it is followed.
docs: $(VENV)/.ready-dev
	$(VENV)/bin/python scripts/build_docs.py

# The links of the site to other sites, by the network.
check-links: $(VENV)/.ready-dev
	$(VENV)/bin/python scripts/build_docs.py --external --out build/links

# Needs the dev extras, which include the inference engines.
bench: $(VENV)/.ready-dev
	@$(VENV)/bin/python -m benchmarks $(BENCH)

# Collect what the code says into the catalogues of translations, and compile them.
messages: $(VENV)/.ready-dev
	$(VENV)/bin/python scripts/messages.py

# The static checks.
check: $(VENV)/.ready-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo

# The types of the page's JavaScript, by TypeScript, which npx fetches.
check-page:
	npx --yes --package typescript@5 tsc --noEmit --allowJs --checkJs --strict --noUnusedLocals --target es2022 --module es2022 \
		--moduleResolution bundler --lib es2022,dom,dom.iterable branchwork/page/assets/app.js

$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and f"Branchwork needs Python 3.11 or newer, but $(PYTHON) is {sys.version.split()[0]}. Name another: make PYTHON=python3.12")'
	@echo "Setting up $(VENV), once. PyTorch is the largest download."
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --disable-pip-version-check -c constraints.txt -e .
	@touch $@

$(VENV)/.ready-dev: $(VENV)/.ready
	$(VENV)/bin/pip install --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $@
