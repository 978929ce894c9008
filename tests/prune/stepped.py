"""A runtime that computes channels in steps, with a formula in place of times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from unbranch.prune import Layer


@dataclass
class Stepped:
    """Layers take as long as with both numbers of channels rounded up to the step.

    Args:
        size: of the step.
        factor, rest: the network takes factor · (sum of its layers) + rest.
        power: of that sum.
    """

    size: int = 16
    factor: float = 1.0
    rest: float = 0.0
    power: float = 1.0
    name: str = "stepped"
    notes: tuple[str, ...] = ()
    asked: list[Layer] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)

    def step(self) -> int:
        return self.size

    def layer_ms(self, layers: Sequence[Layer]) -> list[float]:
        self.asked += layers
        return [self._ms(one.inputs, one.outputs, one.groups, one.kernel or (), one.size) for one in layers]

    def network_ms(self, networks: Sequence[nn.Module], inputs: tuple[Any, ...]) -> list[float]:
        times = [self.factor * self._sum(network, inputs) ** self.power + self.rest for network in networks]
        self.measured += times
        return times

    @torch.no_grad()
    def _sum(self, network: nn.Module, inputs: tuple[Any, ...]) -> float:
        found: list[float] = []

        def hook(module: Any, given: tuple[Tensor], _: Tensor) -> None:
            if isinstance(module, nn.Linear):
                found.append(self._ms(module.in_features, module.out_features, 1, (), given[0].shape[1:-1]))
            else:
                size = given[0].shape[2:]
                found.append(self._ms(module.in_channels, module.out_channels, module.groups, module.kernel_size, size))

        layers = [module for module in network.modules() if isinstance(module, _ConvNd | nn.Linear)]
        handles = [layer.register_forward_hook(hook) for layer in layers]
        network.eval()(*inputs)
        for handle in handles:
            handle.remove()
        return sum(found)

    def _ms(self, inputs: int, outputs: int, groups: int, kernel: Sequence[int], size: Sequence[int]) -> float:
        blocks = math.ceil(inputs / groups / self.size) * math.ceil(outputs / self.size)
        return 1e-4 * blocks * math.prod(kernel) * math.prod(size) + 1e-3
