"""The cases of the laws on one map."""

from __future__ import annotations

from dataclasses import replace

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.algebra.checks import Case, on_map
from tests.algebra.strategies import (
    GRIDS,
    NDIMS,
    SEEDS,
    Draw,
    conv_maps,
    divisors,
    grids,
    numbers,
    per_dim,
    pointwise_maps,
    zero_beyond_maps,
)
from tests.algebra.truths import along_channels, padded, stuffed
from unbranch.algebra import PADDING_MODES, ConvMap


@st.composite
def scales(draw: Draw) -> Case:
    m = draw(conv_maps(draw(NDIMS)))
    seed = draw(SEEDS)
    scale, shift = (numbers(seed + j, m.out_channels) if draw(st.booleans()) else None for j in range(2))

    def truth(x: Tensor) -> Tensor:
        y = m(x)
        y = y if scale is None else y * along_channels(scale, y)
        return y if shift is None else y + along_channels(shift, y)

    return on_map(m, draw(grids([m])), truth, scale, shift)


@st.composite
def unbiasing_shifts(draw: Draw) -> Case:
    m = draw(conv_maps(draw(NDIMS), bias=True))

    def no_bias(result: ConvMap) -> None:
        assert result.bias is None

    return on_map(m, draw(grids([m])), replace(m, bias=None), None, -m.bias, also=no_bias)


@st.composite
def amounts(draw: Draw, ndim: int, low: int = -1) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return draw(per_dim(ndim, low, 3)), draw(per_dim(ndim, low, 3))


def padding(lo: tuple[int, ...], hi: tuple[int, ...]) -> ConvMap:
    """The padding alone: tells how large its input has to be."""
    one = (1,) * len(lo)
    return ConvMap(torch.ones(1, 1, *one), None, one, one, lo, hi)


@st.composite
def pads_by_constant(draw: Draw) -> Case:
    """Zeros around a map without bias, its own bias around one that has some."""
    n = draw(GRIDS)
    biased = draw(st.booleans())
    m = draw(st.one_of(zero_beyond_maps(n, biased), pointwise_maps(n, biased)))
    lo, hi = draw(amounts(n))
    return on_map(m, draw(grids([m], [padding(lo, hi)])), lambda x: padded(m(x), lo, hi, m.bias), lo, hi, m.bias)


@st.composite
def pads_by_border(draw: Draw) -> Case:
    n = draw(GRIDS)
    m = draw(pointwise_maps(n))
    border = draw(st.sampled_from(PADDING_MODES[1:]))
    lo, hi = draw(amounts(n))
    grid = draw(grids([m], [padding(lo, hi)]))
    return on_map(m, grid, lambda x: padded(m(x), lo, hi, padding_mode=border), lo, hi, None, border)


@st.composite
def crops(draw: Draw) -> Case:
    n = draw(GRIDS)
    m = draw(conv_maps(n))
    lo, hi = (tuple(-v for v in draw(per_dim(n, 0, 2))) for _ in range(2))
    return on_map(m, draw(grids([m], [padding(lo, hi)])), lambda x: padded(m(x), lo, hi), lo, hi)


@st.composite
def any_pads(draw: Draw) -> Case:
    """Any map, amounts, value and border: mostly to be refused."""
    n = draw(GRIDS)
    m = draw(st.one_of(conv_maps(n), conv_maps(n, padding_mode="zeros", bias=False), zero_beyond_maps(n, True)))
    m = draw(st.one_of(st.just(m), pointwise_maps(n)))
    border = draw(st.sampled_from(("zeros", *PADDING_MODES)))
    values = [None, None, m.bias, torch.zeros(m.out_channels, dtype=torch.float64), numbers(5, m.out_channels)]
    value = draw(st.sampled_from(values)) if border == "zeros" else None
    lo, hi = draw(amounts(n))
    grid = draw(grids([m], [padding(lo, hi)]))
    return on_map(m, grid, lambda x: padded(m(x), lo, hi, value, border), lo, hi, value, border)


@st.composite
def upsamplings(draw: Draw) -> Case:
    n = draw(GRIDS)
    up = draw(per_dim(n, 1, 3))
    stride = tuple(1 if u > 1 else draw(st.integers(1, 3)) for u in up)
    m = draw(conv_maps(n, padding_mode="zeros", bias=False, stride=stride))
    return on_map(m, draw(grids([m])), lambda x: stuffed(m(x), up), up)


@st.composite
def any_upsamplings(draw: Draw) -> Case:
    n = draw(GRIDS)
    m, up = draw(conv_maps(n)), draw(per_dim(n, 1, 3))
    return on_map(m, draw(grids([m])), lambda x: stuffed(m(x), up), up)


@st.composite
def lifts(draw: Draw) -> Case:
    m, n = draw(conv_maps(0)), draw(NDIMS)

    def truth(x: Tensor) -> Tensor:
        return m(x.movedim(1, -1).reshape(-1, m.in_channels)).unflatten(0, (len(x), *x.shape[2:])).movedim(-1, 1)

    return on_map(m, tuple(range(2, 2 + n)), truth, n)


@st.composite
def choices(draw: Draw, count: int) -> list[int]:
    """Some of the channels in any order, all of them, or a regular part of them."""
    every = list(range(count))
    step = draw(st.sampled_from(divisors(count)))
    some = st.lists(st.sampled_from(every), min_size=1, max_size=count, unique=True)
    return draw(st.one_of(some, some.map(sorted), st.just(every), st.just(every[::step]), st.just(every[:step])))


@st.composite
def selections(draw: Draw) -> Case:
    m = draw(conv_maps(draw(NDIMS)))
    channels = draw(choices(m.out_channels))
    return on_map(m, draw(grids([m])), lambda x: m(x)[:, channels], channels)


@st.composite
def group_selections(draw: Draw) -> Case:
    """As many channels of every group, in any order: the result has as many groups, and no zeros."""
    m = draw(conv_maps(draw(NDIMS), groups=draw(st.integers(2, 4)), inputs=12))
    rows = m.out_channels // m.groups
    size = draw(st.integers(1, rows))
    channels = [g * rows + j for g in range(m.groups) for j in draw(st.permutations(range(rows)))[:size]]

    def stays_grouped(result: ConvMap) -> None:
        assert (result.groups, result.weight.shape[1]) == (m.groups, m.weight.shape[1])

    return on_map(m, draw(grids([m])), lambda x: m(x)[:, channels], channels, also=stays_grouped)


@st.composite
def densifications(draw: Draw) -> Case:
    m = draw(conv_maps(draw(NDIMS)))
    groups = draw(st.sampled_from(divisors(m.groups)))
    dilation = tuple(draw(st.sampled_from(divisors(d))) for d in m.dilation)
    chosen = draw(st.sampled_from([dilation, None]))

    def as_asked(result: ConvMap) -> None:
        assert (result.groups, result.dilation) == (groups, m.dilation if chosen is None else chosen)

    return on_map(m, draw(grids([m])), m, groups, chosen, also=as_asked)
