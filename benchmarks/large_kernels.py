"""Large depthwise kernels on the CPU: one layer, and networks that consist of them.

    python -m benchmarks.large_kernels [layers] [training] [networks]

Each row runs its variants in turns on one thread; cells are medians of the ratio of CPU times to PyTorch's default
memory format, whose milliseconds are in the first column. *Fourier* multiplies the transforms of input and kernel. The
columns of ONNX Runtime and OpenVINO stay empty where they aren't installed.
"""

from __future__ import annotations

import copy
import platform
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
from benchmarks.latency import in_onnxruntime, in_openvino, in_pytorch
from unbranch.deploy.onnx import write_onnx
from unbranch.display import console

SHAPES = ((31, 128, 56), (29, 256, 28), (27, 512, 14), (13, 1024, 7))  # kernel, channels and map of RepLKNet
BATCHES = (1, 8)
NETWORKS = ("replknet_31b", "unireplknet_t")
SECONDS, LEAST, MOST = 4.0, 3, 25  # per row; turns
Calls = dict[str, Callable[[], Any]]


def in_turns(calls: Calls) -> dict[str, tuple[float, float]]:
    """Return the median milliseconds of each call, and the median ratio to the first."""
    for call in calls.values():
        call()
    turns: list[list[float]] = []
    start = time.perf_counter()
    while len(turns) < LEAST or (len(turns) < MOST and time.perf_counter() - start < SECONDS):
        turns.append([_milliseconds(call) for call in calls.values()])
    return {
        name: (statistics.median(turn[i] for turn in turns), statistics.median(turn[i] / turn[0] for turn in turns))
        for i, name in enumerate(calls)
    }


def _milliseconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return (time.process_time() - start) * 1e3


# --- what is compared -------------------------------------------------------------------------------------


class Fourier(nn.Module):
    """A depthwise convolution with stride 1 that keeps the size, by Fourier transforms."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, x: Tensor) -> Tensor:
        reach = self.conv.kernel_size[0] // 2
        height, width = x.shape[2:]
        size = [_smooth(n + reach) for n in (height, width)]
        spectrum = torch.fft.rfft2(x, size) * torch.fft.rfft2(self.conv.weight[:, 0], size).conj()
        y = torch.fft.irfft2(spectrum, size).roll((reach, reach), (2, 3))[..., :height, :width]
        return y if self.conv.bias is None else y + self.conv.bias[:, None, None]


def _smooth(n: int) -> int:
    """The next number without prime factors over 5."""
    rest = n
    for prime in (2, 3, 5):
        while rest % prime == 0:
            rest //= prime
    return n if rest == 1 else _smooth(n + 1)


def in_pytorchs_formats(network: nn.Module, x: Tensor) -> dict[str, tuple[nn.Module, Tensor]]:
    """The network with PyTorch's own convolutions in both memory formats, and as Unbranch computes it."""
    last = torch.channels_last
    return {
        "PyTorch": (_plain(network), x),
        "channels_last": (_plain(network).to(memory_format=last), x.contiguous(memory_format=last)),
        "Unbranch": (network, x),
    }


def _plain(network: nn.Module) -> nn.Module:
    """A copy of a network whose large convolutions are PyTorch's own again."""
    return ub.accelerate_large_kernels(copy.deepcopy(network), enabled=False)


def other_runtimes(network: nn.Module, x: Tensor, folder: str) -> Calls:
    path = Path(folder, "network.onnx")
    write_onnx(network, x, path)
    found: Calls = {}
    for name, runtime in (("ONNX Runtime", in_onnxruntime), ("OpenVINO", in_openvino)):
        try:
            found[name] = runtime(path, x, threads=1)
        except ImportError:
            continue
    return found


def training_step(network: nn.Module, x: Tensor) -> Callable[[], Any]:
    network.train()
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()

    def step() -> None:
        network(x).sum().backward()
        network.zero_grad()
        x.grad = None

    return step


# --- tables -----------------------------------------------------------------------------------------------


def layers() -> None:
    table = _table("kernel, channels, map, batch", "channels_last", "Fourier", "ONNX Runtime", "OpenVINO", "Unbranch")
    for (k, channels, side), batch in [(shape, batch) for shape in SHAPES for batch in BATCHES]:
        conv = _conv(k, channels)
        x = torch.randn(batch, channels, side, side)
        calls: Calls = {name: in_pytorch(*given) for name, given in in_pytorchs_formats(conv, x).items()}
        with tempfile.TemporaryDirectory() as folder:
            calls |= {"Fourier": in_pytorch(Fourier(conv), x), **other_runtimes(conv, x, folder)}
            _add(table, f"{k}×{k}, {channels}, {side}×{side}, {batch}", in_turns(calls))
    console().print(table)


def training() -> None:
    table = _table("kernel, channels, map, batch", "channels_last", "Fourier", "Unbranch")
    for (k, channels, side), batch in [(shape, batch) for shape in SHAPES for batch in BATCHES]:
        conv = _conv(k, channels)
        given = in_pytorchs_formats(conv, torch.randn(batch, channels, side, side))
        given["Fourier"] = (Fourier(copy.deepcopy(conv)), given["PyTorch"][1])
        calls = {name: training_step(*one) for name, one in given.items()}
        _add(table, f"{k}×{k}, {channels}, {side}×{side}, {batch}", in_turns(calls))
    console().print(table)


def networks() -> None:
    table = _table("network, one image", "channels_last", "ONNX Runtime", "OpenVINO", "Unbranch")
    for name in NETWORKS:
        network, x = ub.create_model(name, num_classes=1000), torch.randn(1, 3, 224, 224)
        plain = ub.collapse(network.eval())
        calls: Calls = {way: in_pytorch(*given) for way, given in in_pytorchs_formats(plain, x).items()}
        with tempfile.TemporaryDirectory() as folder:
            _add(table, name, in_turns(calls | other_runtimes(plain, x, folder)))
        steps = {way: training_step(*given) for way, given in in_pytorchs_formats(network, x).items()}
        _add(table, f"{name}, training step", in_turns(steps))
    console().print(table)


def _conv(k: int, channels: int) -> nn.Conv2d:
    return ub.accelerate_large_kernels(nn.Conv2d(channels, channels, k, padding=k // 2, groups=channels))


def _table(first: str, *ratios: str) -> Table:
    return Table(first, "PyTorch, ms", *ratios, box=None, pad_edge=False)


def _add(table: Table, name: str, measured: dict[str, tuple[float, float]]) -> None:
    ways = [str(column.header) for column in table.columns[2:]]
    cells = [f"{measured[way][1]:.3f}" if way in measured else "" for way in ways]
    table.add_row(name, f"{measured['PyTorch'][0]:.2f}", *cells)


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.processor()}, {torch.backends.cpu.get_cpu_capability()}"


def main(names: list[str]) -> None:
    torch.set_num_threads(1)
    console().print(_processor())
    parts = {"layers": layers, "training": training, "networks": networks}
    for name in names or parts:
        parts[name]()


if __name__ == "__main__":
    main(sys.argv[1:])
