"""Kernels and constants that a forward computes from parameters, or makes anew."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import unbranch as ub
from tests.blocks.test_contract import assert_equal
from unbranch.convert.statistics import randomise_statistics


class Online(nn.Module):
    """A convolution with the sum of two kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = nn.Conv2d(4, 6, 3, bias=False), nn.Conv2d(4, 6, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.large.weight + F.pad(self.small.weight, (1, 1, 1, 1)), padding=1)


class Reading(nn.Module):
    """A convolution whose kernel depends on the input and on parameters of layers that it never calls."""

    def __init__(self, bias_too: bool) -> None:
        super().__init__()
        self.held = nn.Sequential(nn.Conv2d(4, 6, 3, bias=False), nn.BatchNorm2d(6))
        self.bias_too = bias_too

    def forward(self, x: Tensor) -> Tensor:
        scale = self.held[1].weight.view(-1, 1, 1, 1) * x.mean()
        bias = self.held[1].bias if self.bias_too else None
        return torch.relu(F.conv2d(x, self.held[0].weight * scale, bias))


class Anew(nn.Module):
    """A branch beside a tensor that the forward makes, which the merge has to leave in place."""

    def __init__(self, make: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.point, self.make = nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 6, 1), make

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.conv(x) + self.point(x))
        return torch.maximum(y, self.make(self.conv.bias))


def trained(network: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    network = network.double().eval()
    randomise_statistics(network)
    return network


def test_kernel_computed_from_parameters_becomes_a_layer_even_alone() -> None:
    network, x = trained(nn.Sequential(Online(), nn.ReLU())), torch.randn(2, 4, 5, 6, dtype=torch.float64)
    plain = ub.collapse(network, x, strict=True)
    assert isinstance(plain[0], nn.Conv2d)  # type: ignore[index]
    assert_equal(plain(x), network(x))


@pytest.mark.parametrize("bias_too", [True, False], ids=["all parameters", "some parameters"])
def test_layers_whose_parameters_another_forward_reads_are_left_alone(bias_too: bool) -> None:
    network, x = trained(Reading(bias_too)), torch.randn(2, 4, 5, 6, dtype=torch.float64)
    plain = ub.collapse(network, x)
    assert_equal(plain(x), network(x))
    assert plain.state_dict().keys() == network.state_dict().keys()


@pytest.mark.parametrize("nested", [False, True])
def test_tensor_that_a_forward_makes_survives_the_rewrite(nested: bool) -> None:
    network: nn.Module = Anew(lambda bias: torch.full((1, 6, 1, 1), 0.5, dtype=torch.float64))
    network, x = trained(nn.Sequential(network) if nested else network), torch.randn(2, 4, 5, 6, dtype=torch.float64)
    plain = ub.collapse(network, x)
    assert sum(isinstance(m, nn.Conv2d) for m in plain.modules()) == 1
    assert_equal(plain(x), network(x))


def test_groups_that_depend_on_the_input_are_not_fatal() -> None:
    class Dynamic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 1, 3, 3))

        def forward(self, x: Tensor) -> Tensor:
            return F.conv2d(x, self.weight, groups=x.shape[1])

    network, x = trained(nn.Sequential(Dynamic(), nn.BatchNorm2d(4))), torch.randn(2, 4, 5, 6, dtype=torch.float64)
    assert_equal(ub.collapse(network, x)(x), network(x))
