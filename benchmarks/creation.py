"""Seconds that creating a network takes, beside timm, and on the meta device.

    python -m benchmarks.creation

For the networks that timm has: Unbranch and timm in turns, one thread, random weights; medians of nine and the median
of the ratios. Then the slowest networks of the zoo on the meta device.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import timm
import torch
from rich.table import Table

import unbranch as ub
from unbranch.display import console

SHARED = ("repvgg_a0", "repvgg_b1g4", "repghostnet_100", "mobileone_s1", "mobileone_s0")
ROUNDS, SLOWEST = 9, 5


def seconds(make: Callable[[], Any]) -> float:
    start = time.perf_counter()
    make()
    return time.perf_counter() - start


def row(name: str) -> list[str]:
    makers = (lambda: ub.create_model(name), lambda: timm.create_model(name))
    for make in makers:
        make()
    pairs = [[seconds(make) for make in makers] for _ in range(ROUNDS)]
    ours, theirs = (statistics.median(pair[i] for pair in pairs) for i in (0, 1))
    ratio = statistics.median(a / b for a, b in pairs)
    return [name, f"{ours * 1e3:.0f}", f"{theirs * 1e3:.0f}", f"{ratio:.2f}"]


def on_meta(name: str) -> float:
    def make() -> None:
        with torch.device("meta"):
            ub.create_model(name)

    return min(seconds(make) for _ in range(2))


def main() -> None:
    torch.set_num_threads(1)
    table = Table("network", "Unbranch, ms", "timm, ms", "ratio", box=None, pad_edge=False)
    for name in SHARED:
        table.add_row(*row(name))
    console().print(table)
    found = sorted(((on_meta(name), name) for name in ub.list_models()), reverse=True)
    table = Table("slowest on the meta device", "ms", box=None, pad_edge=False)
    for took, name in found[:SLOWEST]:
        table.add_row(name, f"{took * 1e3:.0f}")
    console().print(table)


if __name__ == "__main__":
    main()
