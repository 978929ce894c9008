"""How long a pruned network would take, estimated from its layers timed one by one on this machine's CPU."""

from __future__ import annotations

import statistics
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unbranch.prune.structure import Structure
from unbranch.prune.units import LayerCost

SHARES = (0.125, 0.25, 0.5, 1.0)  # of a layer's channels, at which it is timed
REPEATS, WARMUP = 5, 2
Key = tuple[Any, ...]


def latency_table(structure: Structure) -> Callable[[Sequence[int]], float]:
    """Seconds of a forward pass of one example as a function of the widths of the units.

    Layers are timed at an eighth, a quarter, half and all of their channels, read and given, and interpolated in
    between; what else the network does counts with the time that it takes now.
    """
    timed: dict[Key, float] = {}
    tables = [_Table(structure, layer, timed) for layer in structure.layers]
    total = _seconds(structure.plain, tuple(_one(value) for value in structure.inputs))
    if torch.distributed.is_available() and torch.distributed.is_initialized():  # what one has timed counts for all
        agreed: list[Any] = [total, [table.seconds for table in tables]]
        torch.distributed.broadcast_object_list(agreed, src=0)
        total = agreed[0]
        for table, seconds in zip(tables, agreed[1], strict=True):
            table.seconds = seconds
    rest = max(0.0, total - sum(table.at(structure.full) for table in tables))
    return lambda widths: rest + sum(table.at(widths) for table in tables)


class _Table:
    """The time of a layer by the channels that it reads and gives."""

    def __init__(self, structure: Structure, layer: LayerCost, timed: dict[Key, float]) -> None:
        self.layer = layer
        module = structure.plain.get_submodule(layer.path)
        full = structure.full
        self.reads = _knots(layer.reads.at(full) if not layer.depthwise else layer.gives.at(full), _varies(layer))
        self.gives = _knots(layer.gives.at(full), bool(layer.gives.each))
        self.seconds = [[_timed(module, layer, reads, gives, timed) for gives in self.gives] for reads in self.reads]

    def at(self, widths: Sequence[int]) -> float:
        gives = self.layer.gives.at(widths)
        reads = gives if self.layer.depthwise else self.layer.reads.at(widths)
        i, u = _between(self.reads, reads)
        j, v = _between(self.gives, gives)
        s = self.seconds
        near = s[i][j] + u * (s[min(i + 1, len(self.reads) - 1)][j] - s[i][j])
        k = min(j + 1, len(self.gives) - 1)
        far = s[i][k] + u * (s[min(i + 1, len(self.reads) - 1)][k] - s[i][k])
        return near + v * (far - near)


def _varies(layer: LayerCost) -> bool:
    return bool(layer.reads.each) and not layer.depthwise


def _knots(full: int, varies: bool) -> list[int]:
    return sorted({max(1, round(share * full)) for share in SHARES}) if varies else [full]


def _between(knots: list[int], value: int) -> tuple[int, float]:
    """The knot at or below a value, and how far it is on the way to the next."""
    place = max(0, bisect_right(knots, value) - 1)
    if place == len(knots) - 1 or value <= knots[0]:
        return place, 0.0
    return place, (value - knots[place]) / (knots[place + 1] - knots[place])


def _timed(module: Any, layer: LayerCost, reads: int, gives: int, timed: dict[Key, float]) -> float:
    shape = layer.shape
    if isinstance(module, nn.Linear):
        key: Key = ("linear", reads, gives, shape, layer.bias)
        if key not in timed:
            x = torch.zeros(*shape[:-1], reads)
            timed[key] = _seconds(nn.Linear(reads, gives, layer.bias), (x,))
        return timed[key]
    groups = gives if layer.depthwise else layer.groups
    reads = gives if layer.depthwise else max(groups, reads // groups * groups)
    gives = max(groups, gives // groups * groups)
    kind = (type(module), module.kernel_size, module.stride, module.padding, module.dilation, module.padding_mode)
    key = (kind, reads, gives, shape, groups, layer.bias)
    if key not in timed:
        conv = type(module)(
            reads, gives, module.kernel_size, module.stride, module.padding, dilation=module.dilation, groups=groups,
            bias=layer.bias, padding_mode=module.padding_mode,
        )  # fmt: skip
        timed[key] = _seconds(conv, (torch.zeros(1, reads, *shape[2:]),))
    return timed[key]


def _one(value: Any) -> Any:
    return value[:1] if isinstance(value, Tensor) and value.dim() > 1 else value


@torch.inference_mode()
def _seconds(module: nn.Module, inputs: tuple[Any, ...]) -> float:
    """Median of some calls."""
    module.eval()
    times = []
    for _ in range(WARMUP + REPEATS):
        start = time.perf_counter()
        module(*inputs)
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARMUP:])
