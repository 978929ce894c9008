# demo   train a branched network on real images, collapse it, compare the two     (about two minutes)
# test   the tests; of sweeps over many networks, some rows    test-all   every row of them (hours)
# check  format, lint, types, and every test: what CI runs
# docs   the documentation as a site, in site/
# bench  the figures in README.md

PYTHON ?= python3
VENV   ?= .venv
JOBS   ?= 2

# Idle OpenMP threads that spin slow down every other process on a small machine.
export OMP_WAIT_POLICY = PASSIVE

.PHONY: demo test test-all lint check docs bench clean

demo: $(VENV)/.demo
	$(VENV)/bin/unbranch demo -o demo-out

test: $(VENV)/.dev
	$(VENV)/bin/pytest -q -n $(JOBS) --dist loadgroup

test-all: $(VENV)/.dev
	$(VENV)/bin/pytest -q -n $(JOBS) --dist loadgroup --all

lint: $(VENV)/.dev
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/mypy

check: lint test

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
