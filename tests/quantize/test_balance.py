"""The expected noise is what a simulation shows, and balancing never raises it."""

from __future__ import annotations

import functools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from tests.quantize.networks import Function, conv
from tests.quantize.test_equalization import X, spread
from unbranch.quantize.balance import balance, clusters_of
from unbranch.quantize.calibration import observe_inputs
from unbranch.quantize.diagnosis import _channel_powers
from unbranch.quantize.scales import NetworkScales, read_scales
from unbranch.quantize.simulation import quantized_input, quantized_weight
from unbranch.quantize.trials import Trials

KINDS: dict[str, Any] = {
    "conv": lambda: nn.Conv2d(16, 8, 3),
    "grouped": lambda: nn.Conv2d(16, 8, 3, groups=4),
    "depthwise": lambda: nn.Conv2d(16, 16, 3, groups=16),
    "pointwise": lambda: nn.Conv2d(16, 8, 1),
    "transposed": lambda: nn.ConvTranspose2d(16, 8, 3),
    "grouped transposed": lambda: nn.ConvTranspose2d(16, 8, 3, groups=4),
    "linear": lambda: Function(lambda m, x: m.a(x.movedim(1, -1)), a=nn.Linear(16, 8)),
}


@functools.lru_cache(maxsize=64)
def chain(seed: int) -> tuple[NetworkScales, Any]:
    torch.manual_seed(seed)
    network = spread(
        nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8, groups=4), nn.ReLU(), nn.ConvTranspose2d(8, 6, 2), conv(6, 2))
    ).eval()
    found = read_scales(Trials(network, (X,)), {})
    return found, found.kernels(observe_inputs(network, [(X,)]).layers)


@pytest.mark.parametrize("kind", KINDS)
def test_expected_noise_is_that_of_a_simulation(kind: str) -> None:
    torch.manual_seed(0)
    network = nn.Sequential(KINDS[kind]()).eval()
    x = torch.randn(4, 16, 20, 20) * torch.rand(16, 1, 1) + torch.randn(16, 1, 1)
    seen = observe_inputs(network, [(x,)]).layers
    found = read_scales(Trials(network, (x,)), {})
    (kernel,) = found.kernels(seen).values()
    (one,) = seen.values()
    layer, weight = one.layer, one.layer.weight
    rounded = quantized_input(layer.x, float(one.lowest.min()), float(one.highest.max()), 8)
    noisy = layer.function(rounded, quantized_weight(layer, weight, 8, per_channel=False), None)
    noise = _channel_powers(layer, noisy - layer.function(layer.x, weight, None)) / one.output_points
    simulated = (noise / one.variance).log().mean()
    expected = kernel.noise(torch.ones(len(found.roots), dtype=torch.float64)) / layer.out_channels
    assert abs(float(simulated) - expected) < 0.7  # 3 dB


@given(st.integers(0, 40), st.integers(0, 10**6))
def test_noise_and_precision_do_not_see_equal_factors_of_all_channels(seed: int, factor_seed: int) -> None:
    found, kernels = chain(seed)
    factor = 2.0 ** (factor_seed % 9 - 4)
    scales = torch.where(found.free, torch.rand(len(found.roots), dtype=torch.float64) + 0.5, 1.0)
    for kernel in kernels.values():
        for index in (kernel.behind, kernel.before):
            changed = scales.clone()
            changed[index.reshape(-1)] *= factor
            assert kernel.noise(changed) == pytest.approx(kernel.noise(scales), abs=1e-6)
            assert kernel.precision(changed) == pytest.approx(kernel.precision(scales), abs=1e-9)


@given(st.integers(0, 40))
def test_balancing_never_raises_the_expected_noise(seed: int) -> None:
    found, kernels = chain(seed)
    clusters = clusters_of(kernels, found.free)
    assert sum(len(cluster.scales) for cluster in clusters) == 8 + 8 + 6
    scales = balance(kernels, clusters, len(found.roots))
    ones = torch.ones_like(scales)
    before, after = (sum(kernel.noise(s) for kernel in kernels.values()) for s in (ones, scales))
    assert after < before
    assert (scales > 0).all()
    assert (scales[~found.free] == 1).all()
