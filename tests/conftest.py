"""Settings of the whole suite: one thread, hypothesis profiles, and how many of the tests run.

A sweep is one function over many networks. By default every so many of its rows run, evenly spread; ``--all`` runs all
of them. ``--fast`` runs every second function of each file and every thirteenth of its rows, and nothing that is marked
as slow. Rows that are named on the command line (by ``-k`` or by their id) always run.

Property tests draw as many examples as the hypothesis profile says: ``default``, ``fast`` (with ``--fast``) or
``thorough`` (with ``--all``). HYPOTHESIS_PROFILE chooses another.
"""

import copy
import functools
import gc
import os
from collections import Counter, defaultdict
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, settings

torch.set_num_threads(1)

_COMMON = {"deadline": None, "print_blob": True, "suppress_health_check": [HealthCheck.too_slow]}
settings.register_profile("fast", max_examples=12, derandomize=True, **_COMMON)
settings.register_profile("default", max_examples=40, derandomize=True, **_COMMON)
settings.register_profile("thorough", max_examples=1000, **_COMMON)

FAST_FUNCTIONS = 2  # of a file, every so many run with --fast
FAST_ROWS = 13  # of a function; odd, so that of rows in pairs both kinds are chosen


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--all", action="store_true", help="run every row of every sweep")
    parser.addoption("--fast", action="store_true", help="run a quick selection from all rooms")


def pytest_configure(config: pytest.Config) -> None:
    profile = "fast" if config.getoption("--fast") else "thorough" if config.getoption("--all") else "default"
    settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", profile))


def pytest_collection_finish() -> None:
    """Exempt imported modules and collected tests from garbage collection, which takes a tenth of the time."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _registry_of_onnx_is_read_once() -> Iterator[None]:
    """Keep what PyTorch's exporter to ONNX reads of a thousand functions for each file, a second each time."""
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry
    except ImportError:
        yield
        return
    read = functools.cache(ONNXRegistry.from_torchlib)

    def kept(*arguments: Any, **options: Any) -> Any:
        registry = copy.copy(read(*arguments, **options))
        registry.functions = {target: list(found) for target, found in registry.functions.items()}
        return registry

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ONNXRegistry, "from_torchlib", staticmethod(kept))
        yield


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    named = any("[" in argument for argument in config.args)
    if config.getoption("--all") or config.getoption("keyword") or named:
        return
    chosen = _fast(items) if config.getoption("--fast") else _rows(items)
    left = set(items) - set(chosen)
    config.hook.pytest_deselected(items=[item for item in items if item in left])
    items[:] = chosen


def _rows(items: list[pytest.Item], fewer: int = 1) -> list[pytest.Item]:
    """Every so many rows of each function, as its sweep says, times ``fewer``."""
    rows: Counter[str] = Counter()
    chosen = []
    for item in items:
        sweep, function = item.get_closest_marker("sweep"), _function_of(item)
        if rows[function] % (fewer * (1 if sweep is None else sweep.args[0])) == 0:
            chosen.append(item)
        rows[function] += 1
    return chosen


def _fast(items: list[pytest.Item]) -> list[pytest.Item]:
    """Some rows of some functions of each file."""
    quick = [item for item in items if item.get_closest_marker("slow") is None]
    numbers: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for item in quick:
        file = numbers[item.nodeid.split("::")[0]]
        file.setdefault(_function_of(item), len(file))
    first = {name for file in numbers.values() for name, number in file.items() if number % FAST_FUNCTIONS == 0}
    return _rows([item for item in quick if _function_of(item) in first], FAST_ROWS)


def _function_of(item: pytest.Item) -> str:
    return item.nodeid.split("[")[0]
