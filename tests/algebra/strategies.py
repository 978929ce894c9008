"""Random maps and inputs. Geometry is drawn, so that it shrinks; numbers come from a drawn seed.

Everything is float64 and small; grid sizes differ in each dimension and are as large as the maps need.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from math import gcd

import torch
from hypothesis import strategies as st
from torch import Tensor

from unbranch.algebra import PADDING_MODES, ConvMap, GridMap

Draw = st.DrawFn
NDIMS = st.sampled_from([0, 1, 1, 2, 2, 2, 3])
GRIDS = st.sampled_from([1, 1, 2, 2, 2, 3])  # for laws that need at least one grid dimension
CHANNELS = st.sampled_from([1, 2, 3, 4, 6])
SEEDS = st.integers(0, 9999)


def numbers(seed: int, *shape: int) -> Tensor:
    """Normal numbers of that shape, the same for the same seed."""
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def divisors(*counts: int) -> list[int]:
    return [d for d in range(1, gcd(*counts) + 1) if gcd(*counts) % d == 0]


@st.composite
def per_dim(draw: Draw, ndim: int, low: int, high: int) -> tuple[int, ...]:
    return tuple(draw(st.integers(low, high)) for _ in range(ndim))


@st.composite
def conv_maps(
    draw: Draw,
    ndim: int,
    inputs: int | None = None,
    outputs: int | None = None,
    *,
    groups: int | None = None,
    stride: Sequence[int] | None = None,
    delta: Sequence[int] | None = None,
    input_dilation: Sequence[int] | None = None,
    padding_mode: str | None = None,
    bias: bool | None = None,
    crops: bool = True,
) -> ConvMap:
    """Any map with the given properties; what isn't given is drawn.

    Without ``delta`` the padding is drawn freely, from cropping (negative) to beyond the kernel's reach;
    with it, only ``lo`` is, and ``hi`` follows.
    """
    inputs = inputs or draw(CHANNELS)
    if groups is None:
        groups = draw(st.sampled_from(divisors(inputs, outputs or inputs)))
    outputs = outputs or groups * draw(st.integers(1, 3))
    size = draw(per_dim(ndim, 1, 3 if ndim > 1 else 5))
    dilation = draw(per_dim(ndim, 1, 3))
    reach = [d * (k - 1) for d, k in zip(dilation, size, strict=True)]
    lo = draw(per_dim(ndim, -1 if crops else 0, 3))
    hi = draw(per_dim(ndim, -1 if crops else 0, 3))
    if delta is not None:
        hi = tuple(v - a + r for v, a, r in zip(delta, lo, reach, strict=True))
    seed = draw(SEEDS)
    has_bias = draw(st.booleans()) if bias is None else bias
    return ConvMap(
        numbers(seed, outputs, inputs // groups, *size),
        numbers(seed + 1, outputs) if has_bias else None,
        tuple(stride if stride is not None else draw(per_dim(ndim, 1, 3))),
        dilation,
        lo,
        hi,
        groups,
        tuple(input_dilation if input_dilation is not None else draw(ups(ndim))),
        padding_mode or draw(st.sampled_from(PADDING_MODES)),
        numbers(seed + 2, outputs) if draw(st.booleans()) else None,
    )


def ups(ndim: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Zero-stuffing: mostly none."""
    return st.one_of(st.just((1,) * ndim), st.just((1,) * ndim), per_dim(ndim, 1, 3))


@st.composite
def pointwise_maps(draw: Draw, ndim: int, bias: bool | None = None) -> ConvMap:
    """A kernel of one tap that moves nothing."""
    inputs = draw(CHANNELS)
    groups = draw(st.sampled_from(divisors(inputs)))
    outputs, seed = groups * draw(st.integers(1, 3)), draw(SEEDS)
    one, zero = (1,) * ndim, (0,) * ndim
    has_bias = draw(st.booleans()) if bias is None else bias
    return ConvMap(
        numbers(seed, outputs, inputs // groups, *one),
        numbers(seed + 1, outputs) if has_bias else None,
        one,
        draw(per_dim(ndim, 1, 2)),  # of no effect
        zero,
        zero,
        groups,
        padding_mode=draw(st.sampled_from(PADDING_MODES)),  # of no effect
        gain=numbers(seed + 2, outputs) if draw(st.booleans()) else None,
    )


@st.composite
def zero_beyond_maps(draw: Draw, ndim: int, bias: bool = False) -> ConvMap:
    """A map whose formula gives its bias at every point beyond its output: it was padded all the way."""
    m = draw(conv_maps(ndim, padding_mode="zeros", bias=bias, input_dilation=(1,) * ndim))
    lo = tuple(r - s + 1 + draw(st.integers(0, 2)) for r, s in zip(m.span, m.stride, strict=True))
    hi = tuple(r + draw(st.integers(0, 2)) for r in m.span)
    return ConvMap(m.weight, m.bias, m.stride, m.dilation, lo, hi, m.groups, m.input_dilation, m.padding_mode, m.gain)


@st.composite
def siblings(
    draw: Draw, *, same_outputs: bool, same_inputs: bool = True, same_group_width: bool = False
) -> list[ConvMap]:
    """Two or three maps of equal stride, upsampling and delta, so that their outputs have one size."""
    ndim = draw(NDIMS)
    stride, up = draw(per_dim(ndim, 1, 3)), draw(ups(ndim))
    delta, border = draw(per_dim(ndim, -3, 2)), draw(st.sampled_from(PADDING_MODES))
    inputs, outputs = draw(CHANNELS), draw(CHANNELS)
    maps = []
    for _ in range(draw(st.integers(2, 3))):
        groups = None
        if same_group_width:
            groups = draw(st.integers(1, 3))
            fixed = groups * min(inputs, 2), groups * min(outputs, 3)
        else:
            fixed = inputs, outputs if same_outputs else None
        maps.append(
            draw(
                conv_maps(
                    ndim, *fixed, groups=groups, stride=stride, delta=delta, input_dilation=up, padding_mode=border
                )
            )
        )
    return maps


def enough(maps: Sequence[ConvMap], grid: Sequence[int]) -> bool:
    """Whether a grid is large enough for each of the maps, its border included."""
    for m in maps:
        stuffed = [(n - 1) * u + 1 for n, u in zip(grid, m.input_dilation, strict=True)]
        if min(m.output_size(grid), default=1) < 1:
            return False
        if any(n <= max(a, b) for n, a, b in zip(stuffed, m.lo, m.hi, strict=True)):
            return False
        if any(n + min(a, 0) + min(b, 0) < 1 for n, a, b in zip(stuffed, m.lo, m.hi, strict=True)):
            return False
    return True


@st.composite
def grids(draw: Draw, maps: Sequence[ConvMap], then: Sequence[ConvMap] = ()) -> tuple[int, ...]:
    """A grid large enough for ``maps``, whose outputs are large enough for ``then``; sizes differ by dimension."""

    def fits(size: int) -> bool:
        grid = (size,) * maps[0].ndim
        return enough(maps, grid) and all(enough(then, m.output_size(grid)) for m in maps)

    low = next(n for n in count(1) if all(fits(n + more) for more in range(4)))
    order = draw(st.permutations(range(maps[0].ndim)))
    return tuple(low + j + draw(st.integers(0, 1)) * maps[0].ndim for j in order)


@st.composite
def grid_maps(
    draw: Draw,
    groups: int,
    widths: tuple[int, int],
    grid_in: tuple[int, ...],
    grid_out: tuple[int, ...],
) -> GridMap:
    """Matrices of random numbers; ``widths`` are the inputs and outputs of a group."""
    rows, columns = widths[1], widths[0]
    for n in grid_out:
        rows *= n
    for n in grid_in:
        columns *= n
    seed = draw(SEEDS)
    bias = numbers(seed + 1, groups * widths[1], *grid_out) if draw(st.booleans()) else None
    return GridMap(numbers(seed, groups, rows, columns), bias, grid_in, grid_out)


def small_grids(ndim: int) -> st.SearchStrategy[tuple[int, ...]]:
    return st.permutations([2, 3, 4]).map(lambda sizes: tuple(sizes[:ndim]))
