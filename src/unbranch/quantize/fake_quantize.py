"""Fake quantisation with learned scales, for quantisation-aware training.

Esser, McKinstry, Bablani, Appuswamy, Modha: "Learned Step Size Quantization", ICLR 2020,
https://arxiv.org/abs/1902.08153. Values are rounded to integers on a grid of scale ``s`` and zero point ``z``,

    x̂ = s · (clamp(round(x / s) + z, low, high) − z)

and gradients pass through the rounding. The scale is a parameter; its gradient (equation 3) is multiplied by
``1 / √(n · high)`` for ``n`` values (section 2.2), so that scales are learned about as fast as weights.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from unbranch.quantize.simulation import affine_grid, symmetric_limit

_SMALLEST_SCALE = 1e-12


class FakeQuantize(nn.Module):
    """Round a tensor to integers and back, with a scale that is learned.

    Args:
        scale: ``()`` for one scale, ``(C,)`` for one of each channel.
        zero_point: integer that stands for zero.
        low, high: smallest and largest integer.
        axis: of the channels; None for one scale.
    """

    zero_point: Tensor

    def __init__(self, scale: Tensor, zero_point: int, low: int, high: int, axis: int | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(scale.detach().clone().float().reshape(-1))
        self.register_buffer("zero_point", torch.full_like(self.scale.detach(), zero_point))
        self.low, self.high, self.axis = low, high, axis

    @classmethod
    def of_activations(cls, lowest: float, highest: float, bits: int) -> FakeQuantize:
        """Return a module for unsigned integers that cover a range and zero."""
        scale, zero_point = affine_grid(lowest, highest, bits)
        return cls(torch.tensor(scale), zero_point, 0, 2**bits - 1)

    @classmethod
    def of_weight(cls, weight: Tensor, axis: int, bits: int) -> FakeQuantize:
        """Return a module for symmetric integers that cover the weights of each channel along an axis."""
        high = symmetric_limit(bits)
        largest = weight.detach().abs().movedim(axis, 0).flatten(1).amax(1)
        return cls(torch.where(largest > 0, largest / high, 1.0), 0, -high, high, axis)

    @property
    def positive_scale(self) -> Tensor:
        """The scale that is used, ``(1,)`` or ``(C,)``: a step of the optimizer may change the parameter's sign."""
        return self.scale.abs().clamp_min(_SMALLEST_SCALE)

    def forward(self, x: Tensor) -> Tensor:
        grid = self.positive_scale, self.zero_point
        if self.axis is None:
            factor = self._gradient_factor(x.numel() // max(1, len(x)))
            return torch._fake_quantize_learnable_per_tensor_affine(x, *grid, self.low, self.high, factor)
        factor = self._gradient_factor(x.numel() // len(self.scale))
        return torch._fake_quantize_learnable_per_channel_affine(x, *grid, self.axis, self.low, self.high, factor)

    def _gradient_factor(self, values: int) -> float:
        return 1 / math.sqrt(max(1, values) * self.high)

    def extra_repr(self) -> str:
        return f"low={self.low}, high={self.high}, channels={len(self.scale)}, axis={self.axis}"
