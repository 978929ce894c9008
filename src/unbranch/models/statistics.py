"""Batch-norm statistics of a network that was never trained."""

from __future__ import annotations

import torch
from torch import Tensor, nn


@torch.no_grad()
def randomise_statistics(network: nn.Module, seed: int = 0) -> None:
    """Give every batch norm statistics, scales (some negative) and shifts as if it had been trained.

    A fresh norm is the identity up to a constant: two networks that merge it wrongly would still agree.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(like: Tensor, low: float, high: float) -> Tensor:
        return (torch.rand(like.shape, generator=generator) * (high - low) + low).to(like)

    for module in network.modules():
        mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
        if not isinstance(mean, Tensor) or not isinstance(variance, Tensor):
            continue
        mean.copy_(uniform(mean, -0.5, 0.5))
        variance.copy_(uniform(variance, 0.5, 2.0))
        weight, bias = getattr(module, "weight", None), getattr(module, "bias", None)
        if isinstance(weight, Tensor):
            sign = torch.where(uniform(weight, 0, 1) < 0.15, -1.0, 1.0).to(weight)
            weight.copy_(sign * uniform(weight, 0.4, 1.2))
        if isinstance(bias, Tensor):
            bias.copy_(uniform(bias, -0.3, 0.3))
