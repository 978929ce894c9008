"""Maps that stand for one layer of PyTorch's."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from unbranch.algebra.convmap import ConvMap


def identity(channels: int, ndim: int, *, device: torch.device | str | None = None) -> ConvMap:
    """The map that changes nothing, as a depthwise kernel of one tap."""
    weight = torch.ones(channels, 1, *(1,) * ndim, dtype=torch.float64, device=device)
    return ConvMap(weight, None, (1,) * ndim, (1,) * ndim, (0,) * ndim, (0,) * ndim, channels)


def convolution(
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] | int = 1,
    padding: Sequence[int] | int = 0,
    dilation: Sequence[int] | int = 1,
    groups: int = 1,
    *,
    padding_after: Sequence[int] | int | None = None,
    border: str = "zeros",
) -> ConvMap:
    """``F.conv{1,2,3}d`` with its weight ``(O, I/groups, *k)``, or ``F.linear`` with ``(O, I)``."""
    n = weight.dim() - 2
    lo = _tuple(padding, n)
    hi = lo if padding_after is None else _tuple(padding_after, n)
    return ConvMap(weight, _float64(bias), _tuple(stride, n), _tuple(dilation, n), lo, hi, groups, border=border)


def transposed_convolution(
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] | int = 1,
    padding: Sequence[int] | int = 0,
    output_padding: Sequence[int] | int = 0,
    groups: int = 1,
    dilation: Sequence[int] | int = 1,
) -> ConvMap:
    """``F.conv_transpose{1,2,3}d`` with its weight ``(I, O/groups, *k)``: a flipped kernel on a zero-stuffed grid."""
    n = weight.dim() - 2
    inputs, outputs, *size = weight.shape
    kernel = weight.reshape(groups, inputs // groups, outputs, *size).transpose(1, 2)
    kernel = kernel.reshape(groups * outputs, inputs // groups, *size).flip(tuple(range(2, 2 + n)))
    spread, pad, extra = _tuple(dilation, n), _tuple(padding, n), _tuple(output_padding, n)
    lo = tuple(d * (k - 1) - p for d, k, p in zip(spread, size, pad, strict=True))
    hi = tuple(a + e for a, e in zip(lo, extra, strict=True))
    return ConvMap(kernel, _float64(bias), (1,) * n, spread, lo, hi, groups, _tuple(stride, n))


def average_pool(
    channels: int,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    *,
    divisor: float | None = None,
    device: torch.device | str | None = None,
) -> ConvMap:
    """Average pooling that counts its padding: a depthwise kernel of ``1/divisor`` (default: its taps)."""
    weight = torch.full((channels, 1, *size), 1 / (divisor or prod(size)), dtype=torch.float64, device=device)
    return convolution(weight, None, stride, padding, groups=channels)


def batch_norm_scale_shift(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Scale ``γ/√(σ²+ε)`` and shift ``β - μγ/√(σ²+ε)`` of a batch norm in evaluation, each ``(C,)`` in float64."""
    scale = (variance.double() + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.double()
    shift = -mean.double() * scale
    return scale, shift if bias is None else shift + bias.double()


def _tuple(value: Sequence[int] | int, n: int) -> tuple[int, ...]:
    return (value,) * n if isinstance(value, int) else tuple(value)


def _float64(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.double()
