# Everything from nothing, on Linux with Python ≥ 3.11, a C++ compiler, make and apt-get.
#
#   make setup      virtual environment with pinned packages, the native library built
#   make fixtures   real models and data for tests and demo, cached in build/fixtures
#   make test       what CI runs
#   make demo       the whole way on a real model; figures in build/demo/report.json
#   make bench      speed against the peers
#   make clean      remove all of the above

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet --quiet

# Models and data are on this disk; nothing asks a hub for them.
export HF_HUB_OFFLINE := 1

# Packages come without bytecode, most of which is never needed; what is imported writes its own.
unexport PYTHONDONTWRITEBYTECODE

# A folder's own time changes when a file comes or goes, which an editable install must learn.
INSTALLED := pyproject.toml $(shell find planner compiler kernels specs -type d -not -name __pycache__) \
	$(shell find kernels specs -type f)

.PHONY: setup fixtures lint test demo bench clean

setup: .venv/installed

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: Python 3.11 or later is needed; set PYTHON=…" >&2; exit 2; }
	$(PYTHON) -m venv .venv

# torch alone may bring further packages (its CPU build brings none of weight); the rest is the
# list and nothing else.
.venv/packages: constraints.txt | .venv/bin/python
	$(PIP) install --no-compile --constraint constraints.txt "$$(grep '^torch==' constraints.txt)"
	$(PIP) install --no-compile --no-deps --requirement constraints.txt
	touch $@

.venv/installed: .venv/packages $(INSTALLED)
	$(PIP) install --no-deps --no-build-isolation --editable .
	@# The first plan is as quick as the next, and no folder of ours changes its time later.
	$(BIN)/python -m compileall -q planner compiler
	$(BIN)/planner recommend specs/examples/minimal.json >/dev/null
	touch $@

fixtures: setup
	$(BIN)/python tests/fixtures/prepare.py

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# A process a core, one thread each; a file's tests stay together, so its fixtures are made once.
test: lint fixtures
	OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --dist loadfile

demo: fixtures
	$(BIN)/python tests/demo/demo.py

bench: fixtures
	for file in tests/bench/bench_*.py; do $(BIN)/python $$file || exit 1; done

clean:
	rm -rf .venv build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
