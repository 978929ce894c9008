"""The cases of the laws that give the map of one layer."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from tests.algebra.checks import Case, on_map, two
from tests.algebra.strategies import CHANNELS, GRIDS, NDIMS, SEEDS, Draw, conv_maps, grids, numbers, per_dim
from tests.algebra.truths import AVG_POOL, CONV, CONV_TRANSPOSE, along_channels, by_formula, padded
from unbranch.algebra import ConvMap


@st.composite
def formula(draw: Draw) -> Case:
    m = draw(conv_maps(draw(NDIMS)))
    return on_map(m, draw(grids([m])), lambda x: by_formula(m, x))


@st.composite
def many_taps(draw: Draw) -> Case:
    """Grouped kernels so large that they are evaluated by Fourier transform."""
    size = draw(st.sampled_from([(65,), (8, 9), (13, 5), (5, 5, 3)]))
    n, groups, seed = len(size), draw(st.integers(2, 3)), draw(SEEDS)
    inputs, outputs = groups * draw(st.integers(1, 2)), groups * draw(st.integers(1, 2))
    kernel, bias = numbers(seed, outputs, inputs // groups, *size), numbers(seed + 1, outputs)
    stride, dilation = draw(per_dim(n, 1, 3)), draw(per_dim(n, 1, 2))
    m = ConvMap(kernel, bias, stride, dilation, draw(per_dim(n, -1, 3)), draw(per_dim(n, -1, 3)), groups)
    return on_map(m, draw(grids([m])), lambda x: by_formula(m, x))


@st.composite
def identities(draw: Draw) -> Case:
    channels, ndim = draw(CHANNELS), draw(NDIMS)
    grid = tuple(range(2, 2 + ndim))
    return Case((channels, ndim), lambda x: x, channels, two(grid))


@st.composite
def convolutions(draw: Draw) -> Case:
    m, same = draw(layers()), draw(st.booleans())
    hi = m.lo if same else m.hi
    m = replace(m, hi=hi)

    def truth(x: Tensor) -> Tensor:
        if m.ndim == 0:
            parts = zip(x.chunk(m.groups, 1), m.weight.chunk(m.groups), strict=True)
            y = torch.cat([F.linear(part, weight) for part, weight in parts], 1)
            return y if m.bias is None else y + m.bias
        if same and m.padding_mode == "zeros":
            return CONV[m.ndim](x, m.weight, m.bias, m.stride, m.lo, m.dilation, m.groups)
        x = padded(x, m.lo, hi, padding_mode=m.padding_mode)
        return CONV[m.ndim](x, m.weight, m.bias, m.stride, 0, m.dilation, m.groups)

    kwargs = {"padding_mode": m.padding_mode} | ({} if same else {"padding_after": hi})
    args = (m.bias, m.stride, m.lo, m.dilation, m.groups)
    return Case((m.weight, *args), truth, m.in_channels, two(draw(grids([m]))), kwargs)


@st.composite
def layers(draw: Draw) -> ConvMap:
    """A map that one convolution layer of PyTorch computes."""
    ndim = draw(NDIMS)
    return replace(draw(conv_maps(ndim, input_dilation=(1,) * ndim, crops=False)), gain=None)


@st.composite
def transposed(draw: Draw) -> Case:
    n, groups = draw(GRIDS), draw(st.integers(1, 3))
    inputs, outputs, seed = groups * draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(SEEDS)
    size, stride, dilation = draw(per_dim(n, 1, 3)), draw(per_dim(n, 1, 3)), draw(per_dim(n, 1, 2))
    padding = draw(per_dim(n, 0, 3))
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    weight = numbers(seed, inputs, outputs, *size)
    bias = numbers(seed + 1, groups * outputs) if draw(st.booleans()) else None
    args = (weight, bias, stride, padding, extra, groups, dilation)
    grid = tuple(draw(st.permutations(range(7, 7 + n))))
    return Case(args, lambda x: CONV_TRANSPOSE[n](x, *args), inputs, two(grid))


@st.composite
def pools(draw: Draw) -> Case:
    n, channels = draw(GRIDS), draw(CHANNELS)
    size, stride = draw(per_dim(n, 1, 4)), draw(per_dim(n, 1, 3))
    padding = tuple(draw(st.integers(0, k // 2)) for k in size)
    divisor = draw(st.one_of(st.none(), st.integers(1, 7))) if n > 1 else None
    more = (divisor,) if n > 1 else ()
    grid = tuple(draw(st.permutations(range(4, 4 + n))))

    def truth(x: Tensor) -> Tensor:
        return AVG_POOL[n](x, size, stride, padding, False, True, *more)

    return Case((channels, size, stride, padding), truth, channels, two(grid), {"divisor": divisor})


@st.composite
def batch_norms(draw: Draw) -> Case:
    channels, seed, n = draw(CHANNELS), draw(SEEDS), draw(NDIMS)
    mean, variance = numbers(seed, channels), numbers(seed + 1, channels).square()
    weight, bias = (numbers(seed + j, channels) if draw(st.booleans()) else None for j in (2, 3))
    eps = draw(st.sampled_from([1e-5, 1e-3, 0.1]))
    return Case(
        (mean, variance, weight, bias, eps),
        lambda x: F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps),
        channels,
        two(tuple(range(2, 2 + n))),
        apply=lambda pair, x: along_channels(pair[0], x) * x + along_channels(pair[1], x),
    )
