"""Random parameters and statistics for untrained networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy


@torch.no_grad()
def randomise_statistics(network: nn.Module, seed: int = 0) -> None:
    """Set statistics, scales (some negative) and shifts of every batch norm to random values, in place.

    A newly created norm is nearly the identity, so a wrong merge of it wouldn't be noticed in a comparison.
    """
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
            continue
        mean.copy_(_uniform(mean, -0.5, 0.5, generator))
        variance.copy_(_uniform(variance, 0.5, 2.0, generator))
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(weight, Tensor):
            sign = torch.where(_uniform(weight, 0, 1, generator) < 0.15, -1.0, 1.0).to(weight)
            weight.copy_(sign * _uniform(weight, 0.4, 1.2, generator))
        if isinstance(bias, Tensor):
            bias.copy_(_uniform(bias, -0.3, 0.3, generator))


@torch.no_grad()
def randomise_values(network: nn.Module, seed: int = 0) -> None:
    """Set every parameter and floating-point buffer to random values, positive except in batch norms, in place."""
    generator = torch.Generator().manual_seed(seed)
    for tensor in (*network.parameters(), *network.buffers()):
        if not is_lazy(tensor) and tensor.is_floating_point():
            tensor.copy_(_uniform(tensor, 0.5, 1.5, generator))
    randomise_statistics(network, seed)


def _uniform(like: Tensor, low: float, high: float, generator: torch.Generator) -> Tensor:
    return (torch.rand(like.shape, generator=generator) * (high - low) + low).to(like)
