"""Settings of the whole suite: one thread, hypothesis profiles, and how many of the tests run.

A sweep is one function over many networks. By default every so many of its rows run, evenly spread; ``--all`` runs all
of them. ``--fast`` runs nothing that is marked as slow, and of every function the first of each dozen rows, so that
each room is represented. Rows that are named on the command line (by ``-k`` or by their id) always run.

Property tests draw as many examples as the hypothesis profile says: ``default``, ``fast`` (with ``--fast``) or
``thorough`` (with ``--all``). HYPOTHESIS_PROFILE chooses another.
"""

import os
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

_COMMON = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fast", max_examples=12, derandomize=True, **_COMMON)
settings.register_profile("default", max_examples=60, derandomize=True, **_COMMON)
settings.register_profile("thorough", max_examples=1000, **_COMMON)

FAST_EVERY = 13  # odd, so that of rows in pairs both kinds are chosen


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run every row of every sweep")
    parser.addoption("--fast", action="store_true", help="run a quick selection from all rooms")


def pytest_configure(config: pytest.Config) -> None:
    profile = "fast" if config.getoption("--fast") else "thorough" if config.getoption("--all") else "default"
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", profile))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    named = any("[" in argument for argument in config.args)
    if config.getoption("--all") or config.getoption("keyword") or named:
        return
    fast = bool(config.getoption("--fast"))
    rows: Counter[str] = Counter()
    chosen, deselected = [], []
    for item in items:
        function = item.nodeid.split("[")[0]
        (chosen if _runs(item, rows[function], fast) else deselected).append(item)
        rows[function] += 1
    items[:] = chosen
    if deselected:
        config.hook.pytest_deselected(items=deselected)


def _runs(item: pytest.Item, row: int, fast: bool) -> bool:
    """Whether a function's row of this number runs."""
    sweep = item.get_closest_marker("sweep")
    every = 1 if sweep is None else sweep.args[0]
    if fast:
        return item.get_closest_marker("slow") is None and row % (every * FAST_EVERY) == 0
    return row % every == 0
