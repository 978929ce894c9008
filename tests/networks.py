"""Helpers that the tests of several rooms share: random statistics, layer counts, comparison of two networks."""

from __future__ import annotations

import torch
from torch import nn

import unbranch as ub

KINDS = {
    "convolution": nn.modules.conv._ConvNd,
    "linear": nn.Linear,
    "batch norm": nn.modules.batchnorm._BatchNorm,
}


def randomised(network: nn.Module, seed: int = 0) -> nn.Module:
    """Fill every norm's statistics and affine parameters at random, some scales negative, and evaluate."""
    generator = torch.Generator().manual_seed(seed)

    def rand(like: torch.Tensor) -> torch.Tensor:
        return torch.rand(like.shape, generator=generator, dtype=torch.float64).to(like)

    def randn(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)

    with torch.no_grad():
        for module in network.modules():
            if getattr(module, "running_mean", None) is not None:
                module.running_mean.copy_(0.3 * randn(module.running_mean))
                module.running_var.copy_(0.5 + 1.5 * rand(module.running_var))
                if module.weight is not None:
                    sign = torch.where(rand(module.weight) < 0.15, -1.0, 1.0)
                    module.weight.copy_((0.4 + 0.8 * rand(module.weight)) * sign)
                    module.bias.copy_(0.2 * randn(module.bias))
    return network.eval()


def linear_layers(network: nn.Module) -> dict[str, int]:
    """How many convolution, linear and batch norm layers a network has."""
    return {name: sum(isinstance(module, kind) for module in network.modules()) for name, kind in KINDS.items()}


def assert_same_function(a: nn.Module, b: nn.Module, example: object, tolerance: float = 1e-10) -> None:
    """In float64, relative to the largest output."""
    check = ub.verify(a, b, example)
    assert check.max_rel <= tolerance, str(check)
