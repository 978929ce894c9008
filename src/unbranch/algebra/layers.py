"""The affine maps of single PyTorch layers."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import torch
from torch import Tensor

from unbranch.algebra.affine import promoted
from unbranch.algebra.convmap import ConvMap, marked_identity
from unbranch.deprecation import renamed_arguments
from unbranch.errors import InputError
from unbranch.grids import as_tuple


def identity(
    channels: int, ndim: int, *, device: torch.device | str | None = None, dtype: torch.dtype = torch.float64
) -> ConvMap:
    """Return the identity map, as a depthwise kernel of one tap.

    A composition with it is computed at least in ``dtype``.
    """
    weight = marked_identity(torch.ones(channels, 1, *(1,) * ndim, dtype=dtype, device=device))
    return ConvMap(weight, None, (1,) * ndim, (1,) * ndim, (0,) * ndim, (0,) * ndim, channels)


@renamed_arguments(border="padding_mode")
def convolution(
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] | int = 1,
    padding: Sequence[int] | int = 0,
    dilation: Sequence[int] | int = 1,
    groups: int = 1,
    *,
    padding_after: Sequence[int] | int | None = None,
    padding_mode: str = "zeros",
) -> ConvMap:
    """Return ``F.conv{1,2,3}d`` with its weight ``(O, I/groups, *k)``, or ``F.linear`` with ``(O, I)``.

    ``padding`` is used on both sides, or before the input only if ``padding_after`` is given.
    """
    n = weight.dim() - 2
    lo = as_tuple(padding, n)
    hi = lo if padding_after is None else as_tuple(padding_after, n)
    return ConvMap(
        weight, bias, as_tuple(stride, n), as_tuple(dilation, n), lo, hi, groups, padding_mode=padding_mode
    )  # fmt: skip


def transposed_convolution(
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] | int = 1,
    padding: Sequence[int] | int = 0,
    output_padding: Sequence[int] | int = 0,
    groups: int = 1,
    dilation: Sequence[int] | int = 1,
) -> ConvMap:
    """Return ``F.conv_transpose{1,2,3}d`` with its weight ``(I, O/groups, *k)``.

    It is the convolution with the flipped kernel of the zero-stuffed input.
    """
    n = weight.dim() - 2
    inputs, outputs, *size = weight.shape
    if groups < 1 or inputs % groups:
        raise InputError(f"`groups` must divide the {inputs} input channels of `weight`, got {groups}")
    kernel = weight.reshape(groups, inputs // groups, outputs, *size).transpose(1, 2)
    kernel = kernel.reshape(groups * outputs, inputs // groups, *size).flip(tuple(range(2, 2 + n)))
    spread, pad, extra = as_tuple(dilation, n), as_tuple(padding, n), as_tuple(output_padding, n)
    lo = tuple(d * (k - 1) - p for d, k, p in zip(spread, size, pad, strict=True))
    hi = tuple(a + e for a, e in zip(lo, extra, strict=True))
    return ConvMap(kernel, bias, (1,) * n, spread, lo, hi, groups, as_tuple(stride, n))


def average_pool(
    channels: int,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    *,
    dilation: Sequence[int] | int = 1,
    divisor: float | None = None,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float64,
) -> ConvMap:
    """Return average pooling that includes its padding: a depthwise kernel of ``1/divisor``, by default 1/taps."""
    weight = torch.full((channels, 1, *size), 1 / (divisor or prod(size)), dtype=dtype, device=device)
    return convolution(weight, None, stride, padding, dilation, channels)


def batch_norm_scale_shift(
    mean: Tensor,
    variance: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    *,
    dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """Return scale ``γ/√(σ²+ε)`` and shift ``β - μγ/√(σ²+ε)`` of a batch norm in evaluation, each ``(C,)``.

    Computed in the promoted dtype of the tensors and of ``dtype``.
    """
    given = [t for t in (mean, variance, weight, bias) if t is not None]
    kind = promoted(*(t.dtype for t in given), *([] if dtype is None else [dtype]))
    scale = (variance.to(kind) + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.to(kind)
    shift = -mean.to(kind) * scale
    return scale, shift if bias is None else shift + bias.to(kind)
