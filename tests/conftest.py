"""Settings of the whole suite: one thread, hypothesis profiles (choose one with HYPOTHESIS_PROFILE), and sweeps.

A sweep runs one function over many networks. By default some of its rows run, evenly spread; ``--all``, ``-k`` and a
row's own name run the others, too.
"""

import os
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

_COMMON = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("default", max_examples=60, derandomize=True, **_COMMON)
settings.register_profile("thorough", max_examples=2000, **_COMMON)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run every row of every sweep")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    named = any("[" in argument for argument in config.args)
    if config.getoption("--all") or config.getoption("keyword") or named:
        return
    rows: Counter[str] = Counter()
    chosen, left = [], []
    for item in items:
        marker = item.get_closest_marker("sweep")
        function = item.nodeid.split("[")[0]
        runs = marker is None or rows[function] % marker.args[0] == 0
        rows[function] += 1
        (chosen if runs else left).append(item)
    items[:] = chosen
    if left:
        config.hook.pytest_deselected(items=left)
