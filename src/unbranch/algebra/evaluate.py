"""Convolution in float64: PyTorch's own for dense kernels, faster forms for grouped ones.

PyTorch runs grouped float64 convolutions group by group, which takes seconds for a few hundred channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from math import prod
from typing import Any

import torch
from torch import Tensor

from unbranch.grids import CONV_FUNCTIONS

_MOST_TAPS = 64  # above it, by Fourier transform


def convolve(
    x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], dilation: Sequence[int], groups: int
) -> Tensor:
    """Return ``F.conv{1,2,3}d`` without padding: ``x (N, I, *grid)``, ``weight (O, I/groups, *k)``."""
    n = weight.dim() - 2
    if groups == 1 or x.dtype != torch.float64 or x.device.type != "cpu":
        return CONV_FUNCTIONS[n](x, weight, bias, tuple(stride), 0, tuple(dilation), groups)
    size = weight.shape[2:]
    grid = [(g - d * (k - 1) - 1) // s + 1 for g, k, d, s in zip(x.shape[2:], size, dilation, stride, strict=True)]
    if min(grid) < 1:  # let PyTorch raise its error
        return CONV_FUNCTIONS[n](x, weight, bias, tuple(stride), 0, tuple(dilation), groups)
    by = _by_taps if prod(size) <= _MOST_TAPS else _by_fourier
    channels = x.reshape(x.shape[0], groups, x.shape[1] // groups, *x.shape[2:])  # (N, g, I/g, *grid)
    kernels = weight.reshape(groups, -1, *weight.shape[1:])  # (g, O/g, I/g, *k)
    y = by(channels, kernels, grid, stride, dilation).flatten(1, 2)
    return y if bias is None else y + bias.reshape(-1, *(1,) * n)


def _by_taps(x: Tensor, weight: Tensor, grid: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """Sum over taps of a channel product; ``x (N, g, I/g, *grid)``, ``weight (g, O/g, I/g, *k)``."""
    y = x.new_zeros(x.shape[0], *weight.shape[:2], *grid)
    taps = product(*(range(k) for k in weight.shape[3:]))
    for tap, kernel in zip(taps, weight.flatten(3).unbind(-1), strict=True):
        place: list[Any] = [
            slice(t * d, t * d + (g - 1) * s + 1, s) for t, d, g, s in zip(tap, dilation, grid, stride, strict=True)
        ]
        if kernel.shape[2] == 1:  # depthwise: one product per number
            y.addcmul_(kernel.reshape(*kernel.shape[:2], *(1,) * len(grid)), x[(..., *place)])
        else:
            y += torch.einsum("goi,ngi...->ngo...", kernel, x[(..., *place)])
    return y


def _by_fourier(
    x: Tensor, weight: Tensor, grid: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> Tensor:
    """Correlation by Fourier transform, which is exact to float64's rounding."""
    size = weight.shape[3:]
    axes = tuple(range(-len(size), 0))
    spread = weight.new_zeros(*weight.shape[:3], *(d * (k - 1) + 1 for d, k in zip(dilation, size, strict=True)))
    places: list[Any] = [slice(None, None, d) for d in dilation]
    spread[(..., *places)] = weight
    lengths = tuple(x.shape[3:])
    signal, kernel = torch.fft.rfftn(x, lengths, axes), torch.fft.rfftn(spread, lengths, axes)
    both = torch.einsum("goi...,ngi...->ngo...", kernel.conj(), signal)
    y: Tensor = torch.fft.irfftn(both, lengths, axes)
    kept: list[Any] = [slice(0, (g - 1) * s + 1, s) for g, s in zip(grid, stride, strict=True)]
    return y[(..., *kept)]
