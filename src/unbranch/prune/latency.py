"""Latency of a pruned network, estimated from its layers timed one by one on this machine's CPU."""

from __future__ import annotations

import statistics
import time
from bisect import bisect_right
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from unbranch.convert import collapse
from unbranch.prune.graph import PruningGraph
from unbranch.prune.units import LayerCost

SHARES = (0.125, 0.25, 0.5, 1.0)  # of a layer's channels, at which it is timed
REPEATS, WARMUP = 5, 2
Key = tuple[Any, ...]


def latency_table(graph: PruningGraph) -> Callable[[Sequence[int]], float]:
    """Return the seconds of a forward pass of one example as a function of the channels of each unit.

    Layers are timed at an eighth, a quarter, half and all of their input and output channels, with interpolation in
    between; everything else counts with the time that it takes now.
    """
    plain = collapse(graph.network, graph.inputs).eval()
    timed: dict[Key, float] = {}
    tables = [_LayerTimes(graph, plain, layer, timed) for layer in graph.layers]
    total = _seconds(plain, tuple(_first(value) for value in graph.inputs))
    if torch.distributed.is_available() and torch.distributed.is_initialized():  # one table for all
        agreed: list[Any] = [total, [table.seconds for table in tables]]
        torch.distributed.broadcast_object_list(agreed, src=0)
        total = agreed[0]
        for table, seconds in zip(tables, agreed[1], strict=True):
            table.seconds = seconds
    rest = max(0.0, total - sum(table.at(graph.full) for table in tables))
    return lambda widths: rest + sum(table.at(widths) for table in tables)


class _LayerTimes:
    """The time of a layer by its input and output channels."""

    def __init__(self, graph: PruningGraph, plain: nn.Module, layer: LayerCost, timed: dict[Key, float]) -> None:
        self.layer = layer
        module, full = plain.get_submodule(layer.path), graph.full
        self.inputs = _knots(layer.outputs.at(full) if layer.depthwise else layer.inputs.at(full), _varies(layer))
        self.outputs = _knots(layer.outputs.at(full), bool(layer.outputs.each))
        self.seconds = [[_timed(module, layer, i, o, timed) for o in self.outputs] for i in self.inputs]

    def at(self, widths: Sequence[int]) -> float:
        """Return the seconds, by the channels of each unit."""
        outputs = self.layer.outputs.at(widths)
        inputs = outputs if self.layer.depthwise else self.layer.inputs.at(widths)
        i, u = _between(self.inputs, inputs)
        j, v = _between(self.outputs, outputs)
        s = self.seconds
        near = s[i][j] + u * (s[min(i + 1, len(self.inputs) - 1)][j] - s[i][j])
        k = min(j + 1, len(self.outputs) - 1)
        far = s[i][k] + u * (s[min(i + 1, len(self.inputs) - 1)][k] - s[i][k])
        return near + v * (far - near)


def _varies(layer: LayerCost) -> bool:
    return bool(layer.inputs.each) and not layer.depthwise


def _knots(full: int, varies: bool) -> list[int]:
    return sorted({max(1, round(share * full)) for share in SHARES}) if varies else [full]


def _between(knots: list[int], value: int) -> tuple[int, float]:
    """Return the index of the knot at or below a value, and the fraction of the way to the next."""
    place = max(0, bisect_right(knots, value) - 1)
    if place == len(knots) - 1 or value <= knots[0]:
        return place, 0.0
    return place, (value - knots[place]) / (knots[place + 1] - knots[place])


def _timed(module: Any, layer: LayerCost, inputs: int, outputs: int, timed: dict[Key, float]) -> float:
    shape = layer.shape
    if isinstance(module, nn.Linear):
        key: Key = ("linear", inputs, outputs, shape, layer.bias)
        if key not in timed:
            x = torch.zeros(*shape[:-1], inputs)
            timed[key] = _seconds(nn.Linear(inputs, outputs, layer.bias), (x,))
        return timed[key]
    groups = outputs if layer.depthwise else layer.groups
    inputs = outputs if layer.depthwise else max(groups, inputs // groups * groups)
    outputs = max(groups, outputs // groups * groups)
    kind = (type(module), module.kernel_size, module.stride, module.padding, module.dilation, module.padding_mode)
    key = (kind, inputs, outputs, shape, groups, layer.bias)
    if key not in timed:
        conv = type(module)(
            inputs, outputs, module.kernel_size, module.stride, module.padding, dilation=module.dilation, groups=groups,
            bias=layer.bias, padding_mode=module.padding_mode,
        )  # fmt: skip
        timed[key] = _seconds(conv, (torch.zeros(1, inputs, *shape[2:]),))
    return timed[key]


def _first(value: Any) -> Any:
    return value[:1] if isinstance(value, Tensor) and value.dim() > 1 else value


@torch.inference_mode()
def _seconds(module: nn.Module, inputs: tuple[Any, ...]) -> float:
    """Return the median time of several calls."""
    module.eval()
    times = []
    for _ in range(WARMUP + REPEATS):
        start = time.perf_counter()
        module(*inputs)
        times.append(time.perf_counter() - start)
    return statistics.median(times[WARMUP:])
