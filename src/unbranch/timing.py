"""Latency of two networks, timed alternately so that drift and background load cancel."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from unbranch.render import Block, Renderable, Table


@dataclass(frozen=True)
class Latency(Renderable):
    """Latency of two networks, timed alternately.

    Args:
        first_ms, second_ms: median milliseconds per call.
        ratio: median of first / second over pairs of calls: above 1 if the second network is faster.
        threads: of PyTorch, on the CPU.
        repeats: number of timed calls of each network.
        device: of the networks.
    """

    first_ms: float
    second_ms: float
    ratio: float
    threads: int
    repeats: int
    device: str

    def blocks(self) -> tuple[Block, ...]:
        name = f"latency, {self.threads} threads on {self.device}"
        row = (name, f"{self.first_ms:.2f} ms", f"{self.second_ms:.2f} ms", f"{self.ratio:.2f}×")
        return (Table(("", "first", "second", "ratio"), [row], numeric=True),)


@torch.inference_mode()
def compare_latency(
    first: nn.Module, second: nn.Module, example_input: Any, *, repeats: int = 50, warmup: int = 10
) -> Latency:
    """Time two networks in evaluation mode on the same input, one call of each in turn.

    Args:
        first, second: networks on one device; their modes are restored.
        example_input: a tensor, or a tuple of the forward's arguments.
        repeats: number of timed calls of each network.
        warmup: number of calls of each network before that.

    Example:
        >>> conv = torch.nn.Conv2d(3, 8, 3)
        >>> latency = compare_latency(conv, conv, torch.randn(1, 3, 8, 8), repeats=3, warmup=1)
        >>> latency.repeats
        3
    """
    inputs = example_input if isinstance(example_input, tuple) else (example_input,)
    device = next((p.device for p in first.parameters()), torch.device("cpu"))
    networks = (first, second)
    modes = [network.training for network in networks]
    for network in networks:
        network.eval()
    try:
        turns = [[_milliseconds(network, inputs, device) for network in networks] for _ in range(warmup + repeats)]
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)
    kept = turns[warmup:]
    return Latency(
        first_ms=statistics.median(turn[0] for turn in kept),
        second_ms=statistics.median(turn[1] for turn in kept),
        ratio=statistics.median(turn[0] / turn[1] for turn in kept),
        threads=torch.get_num_threads(),
        repeats=repeats,
        device=str(device),
    )


def _milliseconds(network: nn.Module, inputs: tuple[Any, ...], device: torch.device) -> float:
    start = time.perf_counter()
    network(*inputs)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return (time.perf_counter() - start) * 1e3
