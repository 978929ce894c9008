"""Fully connected layers on a grid: they merge with what stands beside them, norms and convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

import unbranch as ub
from tests.networks import assert_same_function, linear_layers, randomised


class Perceptron(nn.Module):
    """RepMLP's sum of a fully connected layer and convolutions, ``(B, S, h, w)`` to the same."""

    def __init__(self, sets: int, h: int, w: int, kernels: Sequence[int]) -> None:
        super().__init__()
        self.shape = sets, h, w
        features = sets * h * w
        self.fc = nn.Conv2d(features, features, 1, groups=sets, bias=False)
        self.norm = nn.BatchNorm2d(sets)
        self.convs = nn.ModuleList(
            nn.Sequential(nn.Conv2d(sets, sets, k, padding=k // 2, groups=sets, bias=False), nn.BatchNorm2d(sets))
            for k in kernels
        )

    def forward(self, x: Tensor) -> Tensor:
        x = x.reshape(-1, *self.shape)
        y = self.norm(self.fc(x.reshape(-1, self.fc.in_channels, 1, 1)).reshape(-1, *self.shape))
        for conv in self.convs:
            y = y + conv(x)
        return y


class Flat(nn.Module):
    """A convolution on a grid of fixed size, flattened into a fully connected layer."""

    def __init__(self, *, flatten: nn.Module | None = None, out: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.norm = nn.BatchNorm2d(4)
        self.flatten = flatten or nn.Flatten()
        self.fc = nn.Linear(4 * 3 * 5, 6)
        self.out = out

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(-1, 4, 3, 5)
        y = self.fc(self.flatten(self.norm(self.conv(x))))
        return torch.reshape(y, (-1, *self.out)) if self.out else y


@pytest.mark.parametrize("sets", [1, 4])
@pytest.mark.parametrize("kernels", [(), (1, 3), (5, 1, 3)])
def test_perceptron_becomes_one_fully_connected_layer(sets: int, kernels: tuple[int, ...]) -> None:
    network = randomised(Perceptron(sets, 3, 5, kernels)).double()
    x = torch.randn(2, sets, 3, 5, dtype=torch.float64)
    plain = ub.collapse(network, x, strict=True)
    layers = linear_layers(plain)
    assert (layers["convolution"] + layers["linear"], layers["batch norm"]) == (1, 0)
    assert_same_function(network, plain, x, 1e-14)
    assert ub.report(plain).after.launches == 1


def test_merged_perceptron_is_merged_for_good() -> None:
    network = randomised(Perceptron(2, 3, 5, (3,))).double()
    plain = ub.collapse(network)
    again = ub.collapse(plain)
    assert not ub.report(again).merges
    assert_same_function(plain, again, torch.randn(1, 2, 3, 5, dtype=torch.float64))


@pytest.mark.parametrize("out", [(), (2, 3), (6, 1, 1)])
def test_convolution_on_a_fixed_grid_goes_into_the_fully_connected_layer(out: tuple[int, ...]) -> None:
    network = randomised(Flat(out=out)).double()
    x = torch.randn(3, 4, 3, 5, dtype=torch.float64)
    plain = ub.collapse(network, x)
    assert linear_layers(plain) == {"convolution": 0, "linear": 1, "batch norm": 0}
    assert plain(x).shape == network(x).shape
    assert_same_function(network, plain, x, 1e-14)


class Regrouped(nn.Module):
    """Reshapes between two layers that a merge must not reach across."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.first, self.second, self.shape = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1), shape

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x.reshape(-1, 4, 6, 6)).reshape(self.shape))


@pytest.mark.parametrize("shape", [(-1, 2, 6, 6), (2, -1, 6, 6), (-1, 2, 12, 6)])
def test_reshape_is_not_merged_across_where_it_moves_images_or_costs_more(shape: tuple[int, ...]) -> None:
    network = Regrouped(shape).double()
    x = torch.randn(1, 4, 6, 6, dtype=torch.float64)
    plain = ub.collapse(network, x)
    assert_same_function(network, plain, x)
    assert linear_layers(plain)["convolution"] == 2


def test_flatten_of_a_grid_that_depends_on_the_input_stays() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 5)).double()
    x = torch.randn(2, 3, 6, 6, dtype=torch.float64)
    plain = ub.collapse(network, x)
    assert linear_layers(plain) == {"convolution": 1, "linear": 1, "batch norm": 0}
    assert not ub.report(plain).refusals
