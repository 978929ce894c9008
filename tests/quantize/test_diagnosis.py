"""The diagnosis measures what it says, and its advice names the cause."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import unbranch as ub
from tests.quantize.networks import LAYERS, Function, conv, with_layer
from tests.quantize.test_dead_channels import DATA, with_dead_channels
from tests.quantize.test_equalization import X, spread
from unbranch.errors import InputError
from unbranch.quantize import LayerDiagnosis, diagnose, equalize, zero_dead_weights
from unbranch.quantize.calls import Stored
from unbranch.quantize.layers import LayerCall
from unbranch.quantize.simulation import decibels, quantized_input, quantized_weight, weighted_weight


def layer_of(weight: torch.Tensor, groups: int = 1, *, transposed: bool = False) -> LayerCall:
    channels = len(weight) if transposed else weight.shape[1] * groups
    x = torch.randn(2, channels, 9, 9)
    return LayerCall(Stored("w", weight), None, x, weight, None, lambda x, *_: x, 1, groups, transposed)


KINDS = [((8, 3, 3, 3), 1, False), ((8, 2, 3, 3), 4, False), ((8, 1, 3, 3), 8, False), ((8, 3, 2, 2), 2, True)]


@pytest.mark.parametrize(("shape", "groups", "transposed"), KINDS)
@pytest.mark.parametrize("bits", [2, 4, 8])
def test_weights_are_rounded_to_symmetric_integers(
    shape: tuple[int, ...], groups: int, transposed: bool, bits: int
) -> None:
    layer = layer_of(torch.randn(shape), groups, transposed=transposed)
    top = 2 ** (bits - 1) - 1
    for per_channel in (False, True):
        rounded = quantized_weight(layer, layer.weight, bits, per_channel=per_channel)
        size = layer.weight.abs()
        largest = layer.by_output(layer.output_ranges(size)) if per_channel else size.max()
        integers = rounded / (largest / top)
        assert torch.allclose(integers, integers.round(), atol=1e-4)
        assert integers.abs().max() <= top + 1e-3
        assert (rounded - layer.weight).abs().max() <= (largest / top / 2).max() * 1.001


@pytest.mark.parametrize(("shape", "groups", "transposed"), KINDS)
@pytest.mark.parametrize("per_channel", [False, True])
def test_weighted_scales_have_no_larger_error(
    shape: tuple[int, ...], groups: int, transposed: bool, per_channel: bool
) -> None:
    layer = layer_of(torch.randn(shape), groups, transposed=transposed)
    power = torch.rand(layer.in_channels)
    power[0] = 0
    factor = layer.by_input(power)
    weight = layer.weight * layer.by_input(torch.where(power == 0, 300.0, 1.0))
    plain = quantized_weight(layer, weight, 8, per_channel=per_channel)
    weighted = weighted_weight(layer, weight, 8, power, per_channel=per_channel)
    error, weighted_error = ((factor * (w - weight).square()).sum() for w in (plain, weighted))
    assert weighted_error <= error
    if groups == 1 and not transposed:
        assert weighted_error < 1e-2 * error  # the weights of channel 0 are clipped


@pytest.mark.parametrize("span", [(-1.0, 3.0), (0.5, 2.0), (-2.0, -1.0), (0.0, 0.0)])
def test_inputs_are_rounded_to_the_range_and_zero(span: tuple[float, float]) -> None:
    x = torch.linspace(*span, 1000)
    rounded = quantized_input(x, *span, 8)
    step = (max(0.0, span[1]) - min(0.0, span[0])) / 255
    assert (rounded - x).abs().max() <= step / 2 * 1.01 + 1e-6
    assert quantized_input(torch.zeros(1), *span, 8) == 0
    assert len(rounded.unique()) <= 256


def test_decibels() -> None:
    assert decibels(100.0, 1.0) == pytest.approx(20)
    assert decibels(1.0, 0.0) == math.inf
    assert decibels(0.0, 1.0) == -math.inf


@pytest.mark.parametrize("make", [pytest.param(make, id=name) for name, make in LAYERS.items()])
def test_more_bits_and_more_scales_are_better(make: Callable[[], nn.Module]) -> None:
    network = spread(with_layer(make))
    few, many = diagnose(network, X, bits=4), diagnose(network, X, bits=8)
    assert len(few.layers) == 3
    for a, b in zip(few.layers, many.layers, strict=True):
        assert b.sqnr > a.sqnr
        assert b.weight_sqnr[1] >= b.weight_sqnr[0] - 3
    assert many.output_sqnr > few.output_sqnr
    assert diagnose(network, X, bits=16).output_sqnr > 60


def advice(network: nn.Module, data: Any = DATA, **options: Any) -> dict[str, LayerDiagnosis]:
    return {layer.path: layer for layer in diagnose(network, data, **options).layers}


def test_dead_channels_are_found_and_cured() -> None:
    branched = with_dead_channels()
    plain = ub.collapse(branched)
    found = advice(plain, per_channel=False)
    assert {path: layer.harmful > 0 for path, layer in found.items()} == {
        "0.weight": False, "2.weight": True, "4.weight": True
    }  # fmt: skip
    assert "zero_dead_weights" in found["2.weight"].advice
    assert diagnose(branched, DATA).norms
    cured = zero_dead_weights(plain, DATA)
    before, after = (diagnose(n, DATA, per_channel=False).output_sqnr for n in (plain, cured))
    assert after > before + 20
    assert not any(layer.harmful for layer in advice(cured).values())


def test_uneven_ranges_are_found_and_equalised() -> None:
    torch.manual_seed(0)
    network: Any = nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8, groups=8), nn.ReLU(), conv(8, 4, 1)).eval()
    with torch.no_grad():
        network[2].weight.mul_(torch.logspace(-2, 1, 8).reshape(-1, 1, 1, 1))
        network[4].weight.div_(torch.logspace(-2, 1, 8).reshape(1, -1, 1, 1))
    found = advice(network, per_channel=False)["2.weight"]
    assert "equalize" in found.advice
    assert "per channel" in found.advice
    equal = equalize(network, X)
    before, after = (diagnose(n, DATA, per_channel=False).output_sqnr for n in (network, equal))
    assert after > before + 10


def test_outliers_of_an_input_are_not_blamed_on_weights() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 1)).eval()
    x = torch.randn(2, 3, 9, 12)
    x[0, 0, 0, 0] = 3e3
    (found,) = advice(network, [x, torch.randn(64, 3, 30, 30)]).values()
    assert found.weight_sqnr[1] > found.input_sqnr + 6
    assert found.advice


def test_good_layers_get_no_advice_and_reports_print() -> None:
    torch.manual_seed(0)
    report = diagnose(nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 4)).eval(), DATA)
    assert not any(layer.advice for layer in report.layers)
    assert str(report)
    assert report.to_dict()["images"] == 9
    assert report.worst[0].sqnr == min(layer.sqnr for layer in report.layers)


def test_the_network_is_unchanged_and_shared_layers_count_once() -> None:
    torch.manual_seed(0)
    network: Any = Function(lambda m, x: m.b(m.b(m.a(x)).relu()), a=conv(3, 8), b=conv(8, 8)).train()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    assert list(advice(network)) == ["a.weight", "b.weight"]
    assert network.training
    assert all(torch.equal(before[name], tensor) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("bits", [1, 17, True, 8.0])
def test_wrong_bits_are_refused(bits: Any) -> None:
    with pytest.raises(InputError):
        diagnose(nn.Conv2d(3, 3, 1), X, bits=bits)
