"""Each block becomes one convolution that computes the same, at the border as inside."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from unbranch import collapse
from unbranch.blocks import ACB, DBB, RepVGG
from unbranch.models.statistics import randomise_statistics

GEOMETRIES: dict[str, dict[str, Any]] = {
    "same": {"kernel_size": 3, "padding": 1},
    "word": {"kernel_size": (5, 3), "padding": "same", "dilation": 2},
    "unpadded": {"kernel_size": 3},
    "overpadded": {"kernel_size": 3, "padding": 4},
    "strided": {"kernel_size": 5, "padding": 2, "stride": (2, 3)},
    "dilated": {"kernel_size": 3, "padding": (2, 4), "dilation": (2, 4)},
    "tall": {"kernel_size": (5, 1), "padding": (2, 0)},
    "even": {"kernel_size": (4, 2), "padding": 1},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 8, "stride": 2},
    "depthwise dilated": {"kernel_size": 3, "padding": 3, "groups": 8, "dilation": 3},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
}


def layers(network: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in network.modules() if isinstance(module, kind)]


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
@pytest.mark.parametrize("out_channels", [8, 16])
@pytest.mark.parametrize("block", [ACB, DBB, RepVGG])
def test_block_becomes_the_convolution_that_it_stood_for(
    block: Callable[..., nn.Module], geometry: dict[str, Any], out_channels: int
) -> None:
    torch.manual_seed(0)
    network = block(8, out_channels, **geometry).double().eval()
    randomise_statistics(network)
    x = torch.randn(2, 8, 13, 16, dtype=torch.float64)
    plain = collapse(network, x)
    (conv,) = layers(plain, nn.Conv2d)
    wanted = nn.Conv2d(8, out_channels, **geometry)
    assert (conv.weight.shape, conv.stride, conv.dilation) == (wanted.weight.shape, wanted.stride, wanted.dilation)
    assert not layers(plain, nn.BatchNorm2d)
    assert sum(p.numel() for p in plain.parameters()) == conv.weight.numel() + out_channels
    expected = network(x)
    assert (plain(x) - expected).abs().max() < 1e-12 * expected.abs().max()


@pytest.mark.parametrize("block", [ACB, DBB, RepVGG])
def test_untrained_block_of_one_channel_becomes_one_convolution(block: Callable[..., nn.Module]) -> None:
    network = block(1, 16, 3, padding=1).eval()
    plain = collapse(network, torch.randn(1, 1, 8, 8))
    assert len(layers(plain, nn.Conv2d)) == 1


@pytest.mark.parametrize("squeeze_excite", ["before", "after"])
def test_squeeze_excite_stays_and_the_branches_merge(squeeze_excite: str) -> None:
    network = RepVGG(16, 16, 3, padding=1, activation=nn.ReLU, squeeze_excite=squeeze_excite).double().eval()
    randomise_statistics(network)
    x = torch.randn(2, 16, 7, 9, dtype=torch.float64)
    plain = collapse(network, x)
    assert [conv.kernel_size for conv in layers(plain, nn.Conv2d)].count((3, 3)) == 1
    assert len(layers(plain, nn.Conv2d)) == 3
    expected = network(x)
    assert (plain(x) - expected).abs().max() < 1e-12 * expected.abs().max()


def test_wrong_border_would_be_seen() -> None:
    """The proof has teeth: zeros in place of the norm's border change the block by far more than is allowed."""
    torch.manual_seed(0)
    network = DBB(8, 8, 3, padding=1).double().eval()
    randomise_statistics(network)
    x = torch.randn(2, 8, 6, 7, dtype=torch.float64)
    expected = network(x)
    for border in (network.average.border_bn, network.conv_1x1_kxk.border_bn):
        border.forward = lambda y, norm=border.bn: nn.functional.pad(norm(y), (1, 1, 1, 1))
    assert (network(x) - expected).abs().max() > 1e-2 * expected.abs().max()
