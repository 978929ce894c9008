"""Time single layers inside a worker process."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from unbranch.runtimes.layers import Layer
from unbranch.runtimes.targets.base import Runner, Target

PASSES = 2  # over all layers, so that a moment of load doesn't hit one layer alone
WARMUP, LEAST_CALLS, MOST_CALLS, TURN_MS = 2, 4, 30, 15.0


def time_layers(
    target: Target, layers: Sequence[Layer], *, threads: int, setting: str
) -> list[float | Exception]:  # fmt: skip
    """Return the milliseconds of a call of each layer, or why it fails.

    Every layer has a turn in each pass, loaded again, so that thread pools of several don't exist at the same time;
    the fastest call counts.
    """
    best: list[float | Exception] = [float("inf")] * len(layers)
    with tempfile.TemporaryDirectory(dir=Path.cwd()) as folder:
        places = [Path(folder, str(number)) for number in range(len(layers))]
        for number in range(PASSES):
            for i in range(len(layers)) if number % 2 == 0 else reversed(range(len(layers))):
                so_far = best[i]
                if isinstance(so_far, float):
                    found = _turn(target, layers[i], places[i], threads, setting)
                    best[i] = min(so_far, found) if isinstance(found, float) else found
    return best


def _turn(target: Target, layer: Layer, directory: Path, threads: int, setting: str) -> float | Exception:
    call = [layer.example().numpy()]
    directory.mkdir(exist_ok=True)
    try:
        return _fastest_ms(target.load_layer(layer, directory, threads=threads, setting=setting), call)
    except Exception as error:  # a converter or a runtime raises anything
        return error


def _fastest_ms(runner: Runner, call: list[Any]) -> float:
    times: list[float] = []
    while len(times) < WARMUP + LEAST_CALLS or (sum(times) < TURN_MS and len(times) < WARMUP + MOST_CALLS):
        start = time.perf_counter()
        runner.run(call)
        times.append((time.perf_counter() - start) * 1e3)
    return min(times[WARMUP:])  # what else the machine does only adds to a call
