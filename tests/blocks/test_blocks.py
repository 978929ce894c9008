"""Blocks stand where a convolution stood: same shapes, every geometry, gradients, gentle errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from unbranch.blocks import ACB, DBB, RepVGG
from unbranch.blocks.dbb import BorderBatchNorm2d
from unbranch.errors import InputError

BLOCKS = [ACB, DBB, RepVGG]
GEOMETRIES: dict[str, dict[str, Any]] = {
    "same": {"kernel_size": 3, "padding": 1},
    "word": {"kernel_size": (5, 3), "padding": "same", "dilation": 2},
    "unpadded": {"kernel_size": 3},
    "overpadded": {"kernel_size": 3, "padding": 4},
    "strided": {"kernel_size": 5, "padding": 2, "stride": (2, 3)},
    "dilated": {"kernel_size": 3, "padding": (2, 4), "dilation": (2, 4)},
    "tall": {"kernel_size": (5, 1), "padding": (2, 0)},
    "even": {"kernel_size": (4, 2), "padding": 1},
    "pointwise": {"kernel_size": 1},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
    "depthwise": {"kernel_size": 3, "padding": 1, "groups": 8, "stride": 2},
    "depthwise dilated": {"kernel_size": 3, "padding": 3, "groups": 8, "dilation": 3},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "circular": {"kernel_size": 3, "padding": (1, 2), "padding_mode": "circular"},
}


@pytest.fixture(params=BLOCKS, ids=lambda block: block.__name__)
def block(request: pytest.FixtureRequest) -> Callable[..., nn.Module]:
    return request.param


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES.keys())
@pytest.mark.parametrize("out_channels", [8, 16])
def test_block_has_the_shape_of_the_convolution(
    block: Callable[..., nn.Module], geometry: dict[str, Any], out_channels: int
) -> None:
    x = torch.randn(2, 8, 13, 16)
    expected = nn.Conv2d(8, out_channels, **geometry)(x)
    network = block(8, out_channels, **geometry)
    assert network(x).shape == network.eval()(x).shape == expected.shape


def test_every_parameter_gets_a_gradient(block: Callable[..., nn.Module]) -> None:
    network = block(4, 4, 3, padding=1)
    network(torch.randn(2, 4, 6, 7)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_scaling_the_input_and_shifting_it_is_all_that_an_affine_block_does(block: Callable[..., nn.Module]) -> None:
    network = block(3, 5, 3, padding=1).double().eval()
    a, b = torch.randn(2, 1, 3, 6, 7, dtype=torch.float64)
    mixed = network(0.3 * a + 0.7 * b)
    assert torch.allclose(mixed, 0.3 * network(a) + 0.7 * network(b), rtol=0, atol=1e-12)


def test_padding_mode_that_does_not_exist_is_refused(block: Callable[..., nn.Module]) -> None:
    with pytest.raises(InputError, match="padding_mode='mirror'"):
        block(3, 5, 3, padding=1, padding_mode="mirror")


def test_same_padding_of_an_even_kernel_is_refused(block: Callable[..., nn.Module]) -> None:
    with pytest.raises(InputError, match="odd kernel"):
        block(3, 5, 2, padding="same")


def test_border_is_what_the_norm_gives_to_zero() -> None:
    norm = BorderBatchNorm2d(4, (1, 2)).double()
    norm(torch.randn(8, 4, 6, 7, dtype=torch.float64) + 3)  # moves the running statistics
    nn.init.uniform_(norm.bn.weight, -1, 1)
    nn.init.uniform_(norm.bn.bias, -1, 1)
    x = torch.randn(1, 4, 5, 6, dtype=torch.float64)
    padded = nn.functional.pad(x, (2, 2, 1, 1))
    norm.eval()
    assert torch.allclose(norm(x), norm.bn(padded), rtol=0, atol=1e-12)


def test_dilated_average_is_exact_in_float64_when_built_in_float32() -> None:
    block = DBB(2, 2, 3, padding=2, dilation=2, groups=2).double().eval()
    x = torch.randn(1, 2, 9, 8, dtype=torch.float64)
    taps = torch.full((2, 1, 3, 3), 1 / 9, dtype=torch.float64)
    expected = nn.functional.conv2d(x, taps, None, 1, 2, 2, 2)
    assert torch.allclose(block.average.pool(x), expected, rtol=0, atol=1e-15)


def test_single_init_starts_dbb_as_its_convolution() -> None:
    block = DBB(3, 5, 3, padding=1, single_init=True)
    x = torch.randn(2, 3, 6, 7)
    assert torch.equal(block(x), block.conv_kxk(x))


def test_branch_scale_sets_the_three_norms_of_acb() -> None:
    block = ACB(3, 5, 3, branch_scale=1 / 3)
    norms = [module for module in block.modules() if isinstance(module, nn.BatchNorm2d)]
    assert len(norms) == 3
    assert all(torch.equal(norm.weight, torch.full((5,), 1 / 3)) for norm in norms)


def test_squeeze_excite_takes_its_place_around_the_activation() -> None:
    kinds = {
        place: [type(m).__name__ for m in RepVGG(16, 16, activation=nn.ReLU, squeeze_excite=place).post]
        for place in ("before", "after", None)
    }
    assert kinds == {"before": ["SqueezeExcite", "ReLU"], "after": ["ReLU", "SqueezeExcite"], None: ["ReLU"]}
    with pytest.raises(InputError, match="squeeze_excite='inside'"):
        RepVGG(16, 16, squeeze_excite="inside")
