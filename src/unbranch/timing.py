"""Latency of two networks, timed alternately so that drift and background load cancel."""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from unbranch.render import Block, Renderable, Table

CONTIGUOUS = "contiguous_format"
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}
"""Memory formats in which channels are last, by the number of a tensor's axes."""


@dataclass(frozen=True)
class Latency(Renderable):
    """Latency of two networks, each in its faster memory format, timed alternately.

    Args:
        first_ms, second_ms: median milliseconds per call.
        ratio: median of first / second over pairs of calls: above 1 if the second network is faster.
        threads: of PyTorch, on the CPU.
        repeats: number of timed calls of each network in each format.
        device: of the networks.
        first_format, second_format: the memory formats, by PyTorch's names: ``"contiguous_format"``,
            ``"channels_last"`` or ``"channels_last_3d"``.
    """

    first_ms: float
    second_ms: float
    ratio: float
    threads: int
    repeats: int
    device: str
    first_format: str = CONTIGUOUS
    second_format: str = CONTIGUOUS

    def blocks(self) -> tuple[Block, ...]:
        row = (f"latency, {self.threads} threads on {self.device}", *self.cells(), f"{self.ratio:.2f}×")
        return (Table(("", "first", "second", "ratio"), [row], numeric=True),)

    def cells(self) -> tuple[str, str]:
        """Return both latencies in words, with the memory format unless it is the default one."""
        measured = (self.first_ms, self.first_format), (self.second_ms, self.second_format)
        first, second = (f"{ms:.2f} ms{'' if form == CONTIGUOUS else f', {form}'}" for ms, form in measured)
        return first, second


@dataclass(frozen=True)
class _Candidate:
    """A network and its inputs in one memory format."""

    network: nn.Module
    inputs: tuple[Any, ...]
    form: str

    def milliseconds(self, device: torch.device) -> float:
        start = time.perf_counter()
        self.network(*self.inputs)
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return (time.perf_counter() - start) * 1e3


def compare_latency(
    first: nn.Module, second: nn.Module, example_input: Any, *, repeats: int = 50, warmup: int = 10
) -> Latency:
    """Time two networks in evaluation mode on the same input, one call of each in turn.

    Networks with kernels and images as inputs are timed in both memory formats, the one they have and the other; the
    faster one counts. The other is timed on a copy, and skipped if the copy doesn't run.

    Args:
        first, second: networks on one device; their modes are restored.
        example_input: a tensor, or a tuple of the forward's arguments.
        repeats: number of timed calls of each network in each format.
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
        of_first, of_second = ([*_candidates(network, inputs)] for network in networks)
        candidates = [*of_first, *of_second]
        with torch.inference_mode():
            turns = [[one.milliseconds(device) for one in candidates] for _ in range(warmup + repeats)]
    finally:
        for network, mode in zip(networks, modes, strict=True):
            network.train(mode)
    times = list(zip(*turns[warmup:], strict=True))
    medians = [statistics.median(one) for one in times]
    i = min(range(len(of_first)), key=medians.__getitem__)
    j = min(range(len(of_first), len(candidates)), key=medians.__getitem__)
    return Latency(
        first_ms=medians[i],
        second_ms=medians[j],
        ratio=statistics.median(a / b for a, b in zip(times[i], times[j], strict=True)),
        threads=torch.get_num_threads(),
        repeats=repeats,
        device=str(device),
        first_format=candidates[i].form,
        second_format=candidates[j].form,
    )


def _candidates(network: nn.Module, inputs: tuple[Any, ...]) -> Iterator[_Candidate]:
    """Yield a network as it is, and a copy in the other memory format if it has kernels and the inputs are images."""
    kernels = [t for t in chain(network.parameters(), network.buffers()) if t.dim() in CHANNELS_LAST]
    images = [t for t in inputs if isinstance(t, Tensor) and t.dim() in CHANNELS_LAST]
    if not kernels or not images:
        yield _Candidate(network, inputs, CONTIGUOUS)
        return
    default = dict.fromkeys(CHANNELS_LAST, torch.contiguous_format)
    last = str(CHANNELS_LAST[images[0].dim()]).removeprefix("torch.")
    forms = [(CONTIGUOUS, default), (last, CHANNELS_LAST)]
    (own, formats), (other, other_formats) = forms[::-1] if any(map(_is_channels_last, kernels)) else forms
    yield _Candidate(network, tuple(_tensor_in_format(t, formats) for t in inputs), own)
    try:
        copied = _in_format(copy.deepcopy(network), other_formats)
        candidate = _Candidate(copied, tuple(_tensor_in_format(t, other_formats) for t in inputs), other)
        with torch.inference_mode():
            copied(*candidate.inputs)
    except Exception:  # views that need the network's own format, or a network that can't be copied
        return
    yield candidate


def _is_channels_last(x: Tensor) -> bool:
    dense = x.is_contiguous(memory_format=CHANNELS_LAST[x.dim()])
    return dense and x.stride(1) == 1 and x.shape[2:].numel() > 1  # otherwise it may be either


def _in_format(network: nn.Module, formats: dict[int, torch.memory_format]) -> nn.Module:
    """Convert kernels in place; ``nn.Module.to`` can't convert those of 2 and of 3 dimensions in one network."""
    for tensor in (*network.parameters(), *network.buffers()):
        tensor.data = _tensor_in_format(tensor.data, formats)
    return network


def _tensor_in_format(x: Any, formats: dict[int, torch.memory_format]) -> Any:
    image = isinstance(x, Tensor) and x.dim() in formats
    return x.to(x.device, memory_format=formats[x.dim()]) if image else x
