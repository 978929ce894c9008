"""How much faster one form of a network is than the other, measured so that the machine's moods cancel."""

from __future__ import annotations

import statistics
import time
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn


@dataclass(frozen=True)
class Latency:
    """Median milliseconds per call of two networks, timed in turns.

    ``ratio`` is the median over turns of first / second: above 1 if the second is faster.
    """

    first_ms: float
    second_ms: float
    ratio: float
    threads: int
    repeats: int
    device: str

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.inference_mode()
def compare_latency(
    first: nn.Module, second: nn.Module, example_input: Any, *, repeats: int = 50, warmup: int = 10
) -> Latency:
    """Time both networks in eval mode on the same input, one call of each in turn, after ``warmup`` turns.

    ``example_input`` is a tensor or the tuple of forward's arguments; modes are left as they were.
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
