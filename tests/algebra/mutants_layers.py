"""Broken twins of the laws that give the map of one layer; see ``mutants.py``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from tests.algebra.mutant_tools import MUTANTS, breaks, flipped, moved, unbiased, undilated
from unbranch.algebra import (
    ConvMap,
    average_pool,
    batch_norm_scale_shift,
    convolution,
    transposed_convolution,
)

FORMULA = "a map computes its formula"
MUTANTS[FORMULA, "gain forgotten"] = lambda m: replace(m, gain=None)
MUTANTS[FORMULA, "bias forgotten"] = unbiased
MUTANTS[FORMULA, "dilation ignored"] = undilated
MUTANTS[FORMULA, "kernel flipped"] = flipped
MUTANTS[FORMULA, "border always zero"] = lambda m: replace(m, padding_mode="zeros")
MUTANTS[FORMULA, "hi forgotten"] = lambda m: replace(m, hi=m.lo)
MUTANTS[FORMULA, "cropping ignored"] = lambda m: replace(m, lo=tuple(max(v, 0) for v in m.lo))
MUTANTS[FORMULA, "zero-stuffing ignored"] = lambda m: replace(m, input_dilation=(1,) * m.ndim)

MANY_TAPS = "a map of many taps computes its formula"
MUTANTS[MANY_TAPS, "kernel flipped"] = flipped
MUTANTS[MANY_TAPS, "dilation ignored"] = undilated
MUTANTS[MANY_TAPS, "groups reversed"] = lambda m: replace(
    m, weight=m.weight.unflatten(0, (m.groups, -1)).flip(0).flatten(0, 1)
)

IDENTITY = "identity changes nothing"
MUTANTS[IDENTITY, "sums channels"] = lambda channels, n: convolution(
    torch.ones(channels, channels, *(1,) * n, dtype=torch.float64)
)

CONVOLUTION = "convolution is F.conv and F.linear"
MUTANTS[CONVOLUTION, "padding after forgotten"] = lambda *a, padding_after=None, **k: convolution(*a, **k)
MUTANTS[CONVOLUTION, "border forgotten"] = lambda *a, padding_mode="zeros", **k: convolution(*a, **k)
MUTANTS[CONVOLUTION, "dilation ignored"] = lambda w, b, s, p, d, g, **k: convolution(w, b, s, p, 1, g, **k)
MUTANTS[CONVOLUTION, "stride of other axis"] = lambda w, b, s, *a, **k: convolution(w, b, s[::-1], *a, **k)
MUTANTS[CONVOLUTION, "kernel flipped"] = lambda *a, **k: flipped(convolution(*a, **k))

TRANSPOSED = "transposed_convolution is F.conv_transpose"
MUTANTS[TRANSPOSED, "kernel not flipped"] = lambda *a: flipped(transposed_convolution(*a))
MUTANTS[TRANSPOSED, "output padding forgotten"] = lambda w, b, s, p, e, *a: transposed_convolution(w, b, s, p, 0, *a)
MUTANTS[TRANSPOSED, "dilation ignored"] = lambda *a: undilated(transposed_convolution(*a))
MUTANTS[TRANSPOSED, "output padding before"] = lambda w, b, s, p, e, *a: moved(
    transposed_convolution(w, b, s, p, e, *a), transposed_convolution(w, b, s, p, e, *a).hi
)


@breaks(TRANSPOSED, "axes of channels not swapped within groups")
def transposed_reshaped(weight: Tensor, bias: Tensor | None, stride: Any, padding: Any, extra: Any, g: int, d: Any):
    true = transposed_convolution(weight, bias, stride, padding, extra, g, d)
    wrong = weight.reshape(true.weight.shape).flip(tuple(range(2, weight.dim())))
    return replace(true, weight=wrong)


POOL = "average_pool is F.avg_pool"
MUTANTS[POOL, "divisor ignored"] = lambda *a, divisor: average_pool(*a)
MUTANTS[POOL, "divides by one side"] = lambda c, size, *a, divisor: average_pool(
    c, size, *a, divisor=divisor or size[0]
)
MUTANTS[POOL, "mixes channels"] = lambda *a, **k: over_channels(average_pool(*a, **k))


def over_channels(m: ConvMap) -> ConvMap:
    """The same kernel from every input to every output."""
    return replace(m, weight=m.weight.expand(-1, m.in_channels, *m.kernel_size), groups=1)


@breaks(POOL, "padding not counted")
def pool_without_padding(channels: int, size: Any, stride: Any, padding: Any, *, divisor: float | None):
    if divisor is not None:
        return average_pool(channels, size, stride, padding, divisor=divisor)
    pool = (F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)[len(size) - 1]
    return lambda x: pool(x, size, stride, padding, count_include_pad=False)


NORM = "batch_norm_scale_shift is F.batch_norm"
MUTANTS[NORM, "eps forgotten"] = lambda m, v, w, b, eps: batch_norm_scale_shift(m, v, w, b, 0)
MUTANTS[NORM, "eps outside the root"] = lambda m, v, w, b, eps: batch_norm_scale_shift(
    m, (v.sqrt() + eps) ** 2, w, b, 0
)
MUTANTS[NORM, "no root"] = lambda m, v, w, b, eps: batch_norm_scale_shift(m, (v + eps) ** 2, w, b, 0)
MUTANTS[NORM, "bias forgotten"] = lambda m, v, w, b, eps: batch_norm_scale_shift(m, v, w, None, eps)
MUTANTS[NORM, "weight forgotten"] = lambda m, v, w, b, eps: batch_norm_scale_shift(m, v, None, b, eps)
MUTANTS[NORM, "mean added"] = lambda m, *a: batch_norm_scale_shift(-m, *a)


@breaks(NORM, "mean not scaled by gamma")
def norm_mean_unscaled(mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float):
    scale, _ = batch_norm_scale_shift(mean, variance, weight, bias, eps)
    _, shift = batch_norm_scale_shift(mean, variance, None, bias, eps)
    return scale, shift
