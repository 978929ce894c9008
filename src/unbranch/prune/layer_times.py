"""The time of a layer as a function of its channels: measured at some widths, interpolated between them."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn
from torch.nn.modules.conv import _ConvTransposeNd

from unbranch.prune.units import LayerCost
from unbranch.runtimes.layers import Layer

SHARES = (0.125, 0.25, 0.5, 0.75, 1.0)  # of a layer's channels, at which it is timed


@dataclass
class Grid:
    """Milliseconds at some numbers of input and output channels.

    >>> Grid([8, 16], [4], [[1.0], [3.0]]).at(12, 4)
    2.0
    """

    inputs: list[int]
    outputs: list[int]
    ms: list[list[float]] = field(default_factory=list)

    def at(self, inputs: int, outputs: int) -> float:
        """Return the milliseconds, interpolated in both directions; those of the nearest knot outside of the grid."""
        i, u = _between(self.inputs, inputs)
        j, v = _between(self.outputs, outputs)
        rows = self.ms[i], self.ms[min(i + 1, len(self.inputs) - 1)]
        first, second = (row[j] + v * (row[min(j + 1, len(self.outputs) - 1)] - row[j]) for row in rows)
        return first + u * (second - first)


def _between(knots: list[int], value: int) -> tuple[int, float]:
    """Return the index of the knot at or below a value, and the fraction of the way to the next."""
    place = max(0, bisect_right(knots, value) - 1)
    if place == len(knots) - 1 or value <= knots[0]:
        return place, 0.0
    return place, (value - knots[place]) / (knots[place + 1] - knots[place])


def _one_less(knots: list[int]) -> list[int]:
    """Return the knots moved off the step, and the last one, all channels, as well; a single knot as it is."""
    return sorted({max(1, knot - 1) for knot in knots} | {knots[-1]}) if len(knots) > 1 else knots


class LayerTimes:
    """The time of one layer by the channels of each unit.

    Widths that are multiples of the runtime's step have a grid of their own. Others have a second one, which is
    measured only if the widths of pruning aren't all such multiples.

    Args:
        cost: of the layer.
        module: the layer in the network with all channels.
        full: channels of each unit before pruning.
        multiple: of which widths are multiples.
        step: of the runtime.
        activation: name of the activation behind it, or empty.
    """

    def __init__(
        self, cost: LayerCost, module: nn.Module, full: Sequence[int], multiple: int, step: int, activation: str = ""
    ) -> None:
        self.cost, self.module, self.activation, self.step = cost, module, activation, step
        self.full = self._channels(full)
        even = multiple if multiple % step == 0 else step
        inputs, outputs = self._knots(even)
        self.grids = [Grid(inputs, outputs)]
        if multiple % step:
            self.grids.append(Grid(_one_less(inputs), _one_less(outputs)))
        self._known: dict[tuple[int, int], float] = {}

    @property
    def varies(self) -> bool:
        """Whether pruning changes its channels."""
        return bool(self.cost.inputs.each or self.cost.outputs.each)

    def layers(self) -> Iterator[Layer]:
        """Yield what must be timed, in the order in which ``fill`` takes the times."""
        for grid in self.grids:
            yield from (self._layer(i, o) for i in grid.inputs for o in grid.outputs)

    def fill(self, times: Iterator[float]) -> None:
        """Store the milliseconds of ``layers()``."""
        for grid in self.grids:
            grid.ms = [[next(times) for _ in grid.outputs] for _ in grid.inputs]
        self._known = {}

    def at(self, widths: Sequence[int]) -> float:
        """Return the milliseconds, by the channels of each unit."""
        channels = self._channels(widths)
        if channels not in self._known:
            odd = any(now % self.step and now != before for now, before in zip(channels, self.full, strict=True))
            self._known[channels] = self.grids[-1 if odd else 0].at(*channels)
        return self._known[channels]

    def _channels(self, widths: Sequence[int]) -> tuple[int, int]:
        outputs = self.cost.outputs.at(widths)
        return (outputs if self.cost.depthwise else self.cost.inputs.at(widths)), outputs

    def _knots(self, multiple: int) -> tuple[list[int], list[int]]:
        varies = (bool(self.cost.inputs.each) and not self.cost.depthwise, bool(self.cost.outputs.each))
        inputs, outputs = (
            sorted({full, *(min(full, multiple * max(1, round(s * full / multiple))) for s in SHARES)})
            if changes
            else [full]
            for full, changes in zip(self.full, varies, strict=True)
        )
        return inputs, outputs

    def _layer(self, inputs: int, outputs: int) -> Layer:
        module: Any = self.module
        cost, bias = self.cost, self.cost.bias
        if isinstance(module, nn.Linear):
            return Layer(inputs, outputs, cost.shape[1:-1], bias=bias, activation=self.activation)
        groups = outputs if cost.depthwise else cost.groups
        inputs, outputs = (max(groups, channels // groups * groups) for channels in (inputs, outputs))
        if cost.depthwise:
            inputs = outputs
        size = cost.shape[-len(module.kernel_size) :]
        return Layer(
            inputs, outputs, size, tuple(module.kernel_size), tuple(module.stride), _padding(module),
            tuple(module.dilation), groups, bias, isinstance(module, _ConvTransposeNd), self.activation,
        )  # fmt: skip

    def numbers_moved(self, widths: Sequence[int]) -> int:
        """Return how many numbers the layer reads and writes: input, kernel and output."""
        inputs, outputs = self._channels(widths)
        pixels = math.prod(self.cost.shape[1:-1] if isinstance(self.module, nn.Linear) else self.cost.shape[2:])
        return inputs * pixels + self.cost.weights(widths) + outputs * self.cost.points


def _padding(module: Any) -> tuple[int, ...]:
    """Return the padding along each axis; ``"same"`` is made symmetric, which takes as long."""
    if module.padding == "valid":
        return (0,) * len(module.kernel_size)
    if module.padding == "same":
        return tuple(d * (k - 1) // 2 for d, k in zip(module.dilation, module.kernel_size, strict=True))
    return tuple(module.padding)
