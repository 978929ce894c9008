"""What collapsing saves in a forward pass: one image, float32, milliseconds and the ratio within one run.

    python -m benchmarks.latency [NETWORK ...]

Training form and collapsed form in turns, in PyTorch, ONNX Runtime and OpenVINO (whose column stays empty where it
isn't installed), two threads each. PyTorch's are in the faster memory format, marked by * where it is channels_last.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.table import Table
from torch import Tensor, nn

import unbranch as ub
from benchmarks.peers import network_named
from unbranch.deploy import Latency, compare_latency
from unbranch.deploy.onnx import write_onnx
from unbranch.display import console
from unbranch.models import example_input

NETWORKS = ("repvgg_a0", "mobileone_s1", "fastvit_t8", "repvit_m1_0", "repghostnet_100")
TURNS, WARMUP, THREADS = 30, 5, 2


def in_turns(first: Callable[[], Any], second: Callable[[], Any]) -> tuple[float, float, float]:
    """Median milliseconds of both, and the median of first / second."""
    turns = []
    for _ in range(WARMUP + TURNS):
        times = []
        for call in (first, second):
            start = time.perf_counter()
            call()
            times.append((time.perf_counter() - start) * 1e3)
        turns.append(times)
    kept = turns[WARMUP:]
    columns = [statistics.median(t[j] for t in kept) for j in (0, 1)]
    return columns[0], columns[1], statistics.median(a / b for a, b in kept)


def in_pytorch(network: nn.Module, x: Tensor) -> Callable[[], Any]:
    def call() -> Any:
        with torch.inference_mode():
            return network(x)

    return call


def in_onnxruntime(path: Path, x: Tensor, threads: int = THREADS) -> Callable[[], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    given = {session.get_inputs()[0].name: x.numpy()}
    return lambda: session.run(None, given)


def in_openvino(path: Path, x: Tensor, threads: int = THREADS) -> Callable[[], Any]:
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32"}
    compiled = openvino.Core().compile_model(path, "CPU", options)
    return lambda: compiled(x.numpy())


def row(name: str) -> list[str]:
    network = network_named(name)
    plain, x = ub.collapse(network), example_input(network)
    cells = [_in_pytorch(compare_latency(network, plain, x, repeats=TURNS, warmup=WARMUP))]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"{form}.onnx") for form in ("training", "collapsed")]
        for form, path in zip((network, plain), paths, strict=True):
            write_onnx(form, x, path)
        for runtime in (in_onnxruntime, in_openvino):
            try:
                calls = [runtime(path, x) for path in paths]
            except ImportError:
                cells.append("")
                continue
            cells.append(_cell(in_turns(*calls)))
    return [name, *cells]


def _in_pytorch(latency: Latency) -> str:
    first, second = (
        "" if form == "contiguous_format" else "*" for form in (latency.first_format, latency.second_format)
    )
    return f"{latency.first_ms:.1f}{first} → {latency.second_ms:.1f}{second} ({latency.ratio:.2f}×)"


def _cell(measured: tuple[float, float, float]) -> str:
    return f"{measured[0]:.1f} → {measured[1]:.1f} ({measured[2]:.2f}×)"


def main(names: list[str]) -> None:
    torch.set_num_threads(THREADS)
    table = Table("network", "PyTorch", "ONNX Runtime", "OpenVINO", box=None, pad_edge=False)
    for name in names:
        table.add_row(*row(name))
    console().print(table)


if __name__ == "__main__":
    main(sys.argv[1:] or list(NETWORKS))
