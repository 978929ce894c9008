# demo       train a branched network on real images, collapse it, compare the two     (about two minutes)
# test       the tests; of sweeps over many networks, some rows                        (about 11 minutes on two cores)
# test-fast  for the working loop: half of the functions, few rows, nothing slow       (about 100 seconds)
# test-all   every row of every sweep                                                  (hours)
# lint       format, lint, types
# check      lint and test: what CI runs
# versions   which Python and PyTorch the tests run with; `nox` runs them with others: see noxfile.py
# docs       the documentation as a site, in site/
# bench      the figures in docs/benchmarks.md

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2

# Idle OpenMP threads that spin slow down every other process on a small machine.
export OMP_WAIT_POLICY = PASSIVE

.PHONY: demo test test-fast test-all lint check versions docs bench clean

demo: $(VENV)/.demo
	$(VENV)/bin/unbranch demo -o demo-out

test: $(VENV)/.dev
	$(VENV)/bin/pytest -q -n $(JOBS) --dist loadgroup

test-fast: $(VENV)/.dev
	$(VENV)/bin/pytest -q -n $(JOBS) --dist loadgroup --fast

test-all: $(VENV)/.dev
	$(VENV)/bin/pytest -q -n $(JOBS) --dist loadgroup --all

lint: $(VENV)/.dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

check: lint test

versions: $(VENV)/.dev
	@$(VENV)/bin/python -m tests.versions

docs: $(VENV)/.docs
	NO_MKDOCS_2_WARNING=1 $(VENV)/bin/mkdocs build --quiet

bench: $(VENV)/.dev
	@for name in layers conversion latency creation training_cost; do echo "== $$name"; $(VENV)/bin/python -m benchmarks.$$name || exit 1; done

clean:
	rm -rf $(VENV) demo-out site .mypy_cache .pytest_cache .ruff_cache

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.demo: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[demo]'
	@touch $@

$(VENV)/.dev: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@ $(VENV)/.demo

$(VENV)/.docs: pyproject.toml | $(VENV)/bin/python
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check -e '.[docs]'
	@touch $@
