"""Fake quantisation rounds as PyTorch's operators do, and its gradients are those of the paper."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from unbranch.quantize.fake_quantize import FakeQuantize
from unbranch.quantize.simulation import quantized_input

RANGES = [(0.0, 3.0), (-2.0, 1.0), (-4.0, -1.0), (0.5, 7.0), (0.0, 0.0)]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("low", "high"), RANGES)
def test_activations_are_rounded_as_in_the_diagnosis(low: float, high: float, bits: int) -> None:
    x = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * 3
    ours = FakeQuantize.of_activations(low, high, bits)(x).detach()
    if low == high:
        assert torch.equal(ours, ours.round())  # any grid does
        return
    assert torch.allclose(ours, quantized_input(x, low, high, bits), atol=1e-5)
    assert len(ours.unique()) <= 2**bits
    assert 0 in FakeQuantize.of_activations(low, high, bits)(torch.zeros(1, 1))


@pytest.mark.parametrize("bits", [2, 4, 7, 8])
@pytest.mark.parametrize(("shape", "axis"), [((6, 3, 3, 3), 0), ((6, 5), 0), ((4, 6, 2, 2), 1), ((6, 1, 3), 0)])
def test_weights_are_symmetric_integers_of_each_channel(shape: tuple[int, ...], axis: int, bits: int) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    weight.movedim(axis, 0)[2] = 0
    fake = FakeQuantize.of_weight(weight, axis, bits)
    rounded = fake(weight).detach().movedim(axis, 0).flatten(1)
    steps = rounded / fake.positive_scale[:, None].detach()
    top = 2 ** (bits - 1) - 1
    assert torch.allclose(steps, steps.round(), atol=1e-3)
    others = torch.arange(shape[axis]) != 2
    assert torch.all(steps.abs().amax(1)[others].round() == top)  # the largest weight is the largest integer
    assert not rounded[2].any()


def by_the_paper(x: Tensor, scale: float, low: int, high: int, values: int) -> tuple[Tensor, float]:
    """Gradients of the sum by equations 3 and 5 of the paper, without a zero point."""
    v = x / scale
    inside = (v.round() >= low) & (v.round() <= high)
    of_scale = torch.where(inside, v.round() - v, v.round().clamp(low, high))
    return inside.float(), float(of_scale.sum()) / math.sqrt(values * high)


@pytest.mark.parametrize("axis", [None, 0])
def test_gradients_are_those_of_the_paper(axis: int | None) -> None:
    x = torch.randn(4, 6, generator=torch.Generator().manual_seed(1), requires_grad=True)
    scale = torch.tensor(0.3) if axis is None else torch.full((4,), 0.3)
    fake = FakeQuantize(scale, 0, -3, 3, axis)
    fake(x).sum().backward()
    expected, of_scale = by_the_paper(x.detach(), 0.3, -3, 3, 6)
    assert x.grad is not None
    assert torch.equal(x.grad, expected)
    assert fake.scale.grad is not None
    assert float(fake.scale.grad.sum()) == pytest.approx(of_scale, rel=1e-4)


def test_scale_of_the_wrong_sign_still_rounds() -> None:
    x = torch.randn(3, 4)
    fake = FakeQuantize(torch.tensor(0.1), 0, -7, 7)
    before = fake(x)
    fake.scale.data.neg_()
    assert torch.equal(fake(x), before)
