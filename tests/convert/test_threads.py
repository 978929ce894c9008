"""A conversion disturbs no other thread: neither a network that runs there nor a second conversion."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import Tensor, nn

import unbranch as ub
from tests.convert.kinds.table import Block
from unbranch.convert.statistics import randomise_statistics


class Stack(nn.Module):
    """Blocks and activations, enough for a conversion to take a while."""

    def __init__(self, seed: int, depth: int = 6) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(*(layer for _ in range(depth) for layer in (Block(), nn.ReLU())))
        randomise_statistics(self, seed)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def serve(network: nn.Module, x: Tensor, expected: Tensor, stop: threading.Event) -> tuple[int, list[str]]:
    """Run a network until ``stop``: how often, and what went wrong."""
    runs, faults = 0, []
    while not stop.is_set():
        runs += 1
        try:
            with torch.no_grad():
                if not torch.equal(network(x), expected):
                    faults.append("another result")
        except Exception as error:
            faults.append(f"{type(error).__name__}: {error}")
    return runs, faults


def test_network_in_another_thread_is_not_disturbed() -> None:
    served, source, x = Stack(0), Stack(1), torch.randn(1, 4, 9, 11)
    with torch.no_grad():
        expected = served(x)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        runs = pool.submit(serve, served, x, expected, stop)
        try:
            for _ in range(5):
                ub.collapse(source)
        finally:
            stop.set()
        count, faults = runs.result()
    assert count > 5
    assert faults == []


def test_source_may_run_while_it_is_converted() -> None:
    source, x = Stack(0), torch.randn(1, 4, 9, 11)
    with torch.no_grad():
        expected = source(x)
    stop = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        runs = pool.submit(serve, source, x, expected, stop)
        try:
            for _ in range(5):
                ub.collapse(source, x)
        finally:
            stop.set()
        assert runs.result()[1] == []


@pytest.mark.parametrize("example", [False, True])
def test_two_conversions_at_once_give_right_results(example: bool) -> None:
    sources, x = [Stack(seed) for seed in range(4)], torch.randn(2, 4, 9, 11)
    start = threading.Barrier(2)

    def convert(two: list[nn.Module]) -> list[nn.Module]:
        start.wait(timeout=10)
        return [ub.collapse(source, x if example else None) for source in two]

    with ThreadPoolExecutor(2) as pool:
        plains = [plain for made in pool.map(convert, (sources[:2], sources[2:])) for plain in made]
    for source, plain in zip(sources, plains, strict=True):
        assert not any(isinstance(m, nn.BatchNorm2d) for m in plain.modules())
        with torch.no_grad():
            torch.testing.assert_close(plain.double()(x.double()), source.double()(x.double()), rtol=0, atol=1e-4)


def test_other_threads_leave_nothing_behind() -> None:
    """After all of this, modules are called as ever."""
    with ThreadPoolExecutor(2) as pool:
        for _ in pool.map(lambda seed: ub.explain(Stack(seed)), [0]):
            pass
    assert nn.Module.__call__ is nn.Module._wrapped_call_impl
