"""Latency of a pruned network in a runtime: estimated from its layers, and measured where it matters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor, nn

from unbranch.convert import collapse
from unbranch.errors import UnbranchError
from unbranch.prune.activations import activations
from unbranch.prune.dependencies import Dependencies
from unbranch.prune.graph import PruningGraph
from unbranch.prune.latency_report import LatencyReport, LayerLatency, reason_for
from unbranch.prune.layer_times import LayerTimes
from unbranch.prune.removal import remove_channels
from unbranch.prune.select import Limits
from unbranch.prune.trial import depthwise_layers
from unbranch.runtimes.latency import LatencySource, runtime_latency

T = TypeVar("T")
MULTIPLE = 8  # of widths, where a runtime has no step
CHECKS = 4  # pruned networks that are measured while channels are chosen
NEAR = 0.1  # relative difference from the target at which estimates needn't be calibrated again
FLATTEST = 0.05  # smallest slope between the time of layers and of the network


class LatencyTable:
    """Milliseconds of a network for one example, as a function of the channels of each unit.

    The time of the network is a straight line in the sum of its layers' times. It goes through the network with all
    channels and through the last narrower one that was measured, so what layers cost together, and everything that
    isn't a layer, is right near that one. Below, the line goes on, or to zero where it would be negative otherwise.

    Args:
        graph: of the network.
        source: of measurements.
        multiple: of which widths are multiples; the runtime's step by default.
    """

    def __init__(self, graph: PruningGraph, source: LatencySource, multiple: int | None = None) -> None:
        self.graph, self.source = graph, source
        on_cpu = copy.deepcopy(graph.network).cpu().float()
        self.inputs = tuple(_first(value) for value in graph.inputs)
        self.plain = collapse(on_cpu, self.inputs).eval()
        self.step = agreed(source.step)
        self.multiple = multiple or (self.step if self.step > 1 else MULTIPLE)
        found = activations(self.plain, self.inputs, [layer.path for layer in graph.layers])
        self.layers = [
            LayerTimes(cost, self.plain.get_submodule(cost.path), graph.full, self.multiple, self.step,
                       found.get(cost.path, ""))
            for cost in graph.layers
        ]  # fmt: skip
        times = iter(agreed(lambda: source.layer_ms([layer for part in self.layers for layer in part.layers()])))
        for part in self.layers:
            part.fill(times)
        self.full_ms = agreed(lambda: source.network_ms([self.plain], self.inputs))[0]
        self._sum = self.layers_ms(graph.full)
        self._slope = min(1.0, self.full_ms / max(self._sum, 1e-9))
        self._measured = self._sum, self.full_ms
        self._checked: list[list[int]] = []

    def layers_ms(self, widths: Sequence[int]) -> float:
        """Return the milliseconds of all layers, each timed alone."""
        return sum(layer.at(widths) for layer in self.layers)

    def __call__(self, widths: Sequence[int]) -> float:
        """Return the estimated milliseconds of the network."""
        layers, (measured, ms) = self.layers_ms(widths), self._measured
        if layers >= measured:
            return self.full_ms - self._slope * (self._sum - layers)
        return ms - min(self._slope, ms / measured) * (measured - layers)

    def narrow(self, widths: Sequence[int]) -> nn.Module:
        """Return the collapsed network with so many channels of each unit; which ones they are doesn't matter."""
        plain = copy.deepcopy(self.plain)
        chosen = [
            (unit.layer, unit.channels[width:].tolist()) for unit, width in zip(self.graph.units, widths, strict=True)
        ]
        remove_channels(Dependencies(plain, self.inputs), self.inputs, chosen, depthwise_layers(self.graph.units))
        return plain

    def calibrate(self, widths: Sequence[int]) -> float:
        """Measure the network with these channels, let estimates go through it, and return the fraction that is left.

        Raises:
            InputError: if the narrower network doesn't run in the runtime.
        """
        before, after = agreed(lambda: self.source.network_ms([self.plain, self.narrow(widths)], self.inputs))
        layers = self.layers_ms(widths)
        if layers < self._sum:
            flattest = FLATTEST * self.full_ms / self._sum
            self._slope = max(flattest, self.full_ms * (1 - after / before) / (self._sum - layers))
            self._measured = layers, self.full_ms - self._slope * (self._sum - layers)
        return after / before

    def calibrate_for(self, target: float, limits: Limits) -> None:
        """Calibrate at a network in which all units lose the same fraction, so much that the target may be met."""
        for _ in range(2):
            widths = self._uniform(target, limits)
            if abs(self.calibrate(widths) / target - 1) < NEAR:
                return

    def _uniform(self, target: float, limits: Limits) -> list[int]:
        """Return the widest channels, the same fraction of each unit, whose estimate is within the target."""
        few, many = 0.0, 1.0
        for _ in range(10):
            share = (few + many) / 2
            within = self(_scaled(self.graph.full, share, limits)) <= target * self.full_ms
            few, many = (share, many) if within else (few, share)
        return _scaled(self.graph.full, few, limits)

    def check(self, widths: Sequence[int], target: float) -> None:
        """Calibrate at chosen widths that are estimated to meet the target; a few times, and not again at the same."""
        few = len(self._checked) < CHECKS and list(widths) not in self._checked
        if few and self(widths) <= target * self.full_ms:
            self._checked.append(list(widths))
            self.calibrate(widths)

    def report(self, narrow: nn.Module, widths: Sequence[int]) -> LatencyReport:
        """Return the measured latency before and after pruning, and where time is left.

        Call it on one process, or on all.

        Args:
            narrow: the pruned network.
            widths: of its units.
        """
        pruned = copy.deepcopy(narrow).cpu().float().eval()
        before, after = self.source.network_ms([self.plain, pruned], self.inputs)
        full, totals = self.graph.full, (before, after)
        sums = (self._sum, self.layers_ms(widths))
        scales = [min(1.0, total / max(ms, 1e-9)) for total, ms in zip(totals, sums, strict=True)]
        rows = []
        for layer in self.layers:
            ms = (scales[0] * layer.at(full), scales[1] * layer.at(widths))
            macs = (layer.cost.macs(full), layer.cost.macs(widths))
            reason = reason_for(
                macs, ms, varies=layer.varies, depthwise=layer.cost.depthwise, moved=layer.numbers_moved(widths)
            )
            rows.append(LayerLatency(layer.cost.path, macs, ms, reason))
        rest = tuple(total - scale * ms for total, scale, ms in zip(totals, scales, sums, strict=True))
        return LatencyReport(
            self.source.name, self.multiple, before, after, self(widths) * before / self.full_ms,
            tuple(sorted(rows, key=lambda row: -row.ms[1])), (rest[0], rest[1]), tuple(self.source.notes),
        )  # fmt: skip


def latency_source(runtime: str | LatencySource) -> LatencySource:
    """Return what measures a runtime, by its name; a value that measures is returned as it is.

    Raises:
        InputError: if there is no such runtime, or it doesn't run on this machine.
    """
    return runtime_latency(runtime) if isinstance(runtime, str) else runtime


def agreed(measure: Callable[[], T]) -> T:
    """Return what the first process of a group measures, on all processes; an error is raised on all."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return measure()
    found: list[Any] = [None, None]
    if torch.distributed.get_rank() == 0:
        try:
            found[0] = measure()
        except UnbranchError as error:
            found[1] = error
    torch.distributed.broadcast_object_list(found, src=0)
    if found[1] is not None:
        raise found[1]
    result: T = found[0]
    return result


def _scaled(full: Sequence[int], share: float, limits: Limits) -> list[int]:
    return [limits.kept(round(share * width), width) for width in full]


def _first(value: Any) -> Any:
    """Return the first example of a tensor on the CPU, in float32 if it is a floating-point one."""
    if not isinstance(value, Tensor):
        return value
    value = value[:1] if value.dim() > 1 else value
    return value.float().cpu() if value.is_floating_point() else value.cpu()
