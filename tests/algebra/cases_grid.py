"""The cases of the laws of grid maps."""

from __future__ import annotations

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.algebra.cases_one import choices
from tests.algebra.checks import Case
from tests.algebra.strategies import NDIMS, SEEDS, Draw, conv_maps, grid_maps, grids, numbers, small_grids
from unbranch.algebra import GridMap

WIDTHS = st.tuples(st.integers(1, 3), st.integers(1, 3))
GROUPS = st.integers(1, 3)


@st.composite
def any_grid_map(draw: Draw, groups: int | None = None) -> GridMap:
    n, m = draw(NDIMS), draw(NDIMS)
    return draw(grid_maps(groups or draw(GROUPS), draw(WIDTHS), draw(small_grids(n)), draw(small_grids(m))))


def on_grid_map(m: GridMap, truth: object, *args: object) -> Case:
    return Case((m, *args), truth, m.in_channels, (m.grid_in,))


@st.composite
def grid_formula(draw: Draw) -> Case:
    """``y[o, q] = bias[o, q] + sum matrix[(o, q), (i, p)]·x[i, p]``, written with every axis of its own."""
    m = draw(any_grid_map())
    wide, high = m.in_channels // m.groups, m.out_channels // m.groups

    def truth(x: Tensor) -> Tensor:
        matrix = m.matrix.reshape(m.groups, high, -1, wide, x[0, 0].numel())
        y = torch.einsum("goqip,ngip->ngoq", matrix, x.reshape(len(x), m.groups, wide, -1))
        y = y.reshape(len(x), m.out_channels, *m.grid_out)
        return y if m.bias is None else y + m.bias

    return on_grid_map(m, truth)


@st.composite
def matrices_of_convolutions(draw: Draw) -> Case:
    m = draw(conv_maps(draw(NDIMS)))
    grid = draw(grids([m]))

    def keeps_groups(result: GridMap) -> None:
        assert (result.groups, result.grid_in, result.grid_out) == (m.groups, grid, m.output_size(grid))

    return Case((m, grid), m, m.in_channels, (grid,), also=keeps_groups)


@st.composite
def grid_sums(draw: Draw) -> Case:
    groups, widths = draw(GROUPS), draw(WIDTHS)
    grid_in, grid_out = draw(small_grids(draw(NDIMS))), draw(small_grids(draw(NDIMS)))
    maps = [draw(grid_maps(groups, widths, grid_in, grid_out)) for _ in range(draw(st.integers(2, 3)))]
    return Case(tuple(maps), lambda x: torch.stack([m(x) for m in maps]).sum(0), maps[0].in_channels, (grid_in,))


@st.composite
def grid_sums_of_other_groups(draw: Draw) -> Case:
    a, b, wide, high = (draw(st.integers(1, 2)) for _ in range(4))
    grid_in, grid_out = draw(small_grids(draw(NDIMS))), draw(small_grids(draw(NDIMS)))
    maps = [
        draw(grid_maps(groups, (2 * a * b * wide // groups, 2 * a * b * high // groups), grid_in, grid_out))
        for groups in (a, 2 * b)
    ]
    return Case(tuple(maps), lambda x: torch.stack([m(x) for m in maps]).sum(0), maps[0].in_channels, (grid_in,))


@st.composite
def grid_compositions(draw: Draw) -> Case:
    first, second, wide = draw(GROUPS), draw(GROUPS), draw(st.integers(1, 2))
    grids_ = [draw(small_grids(draw(NDIMS))) for _ in range(3)]
    inner = draw(grid_maps(first, (draw(st.integers(1, 2)), second * wide), grids_[0], grids_[1]))
    outer = draw(grid_maps(second, (first * wide, draw(st.integers(1, 2))), grids_[1], grids_[2]))
    return Case((outer, inner), lambda x: outer(inner(x)), inner.in_channels, (inner.grid_in,))


@st.composite
def any_grid_pair(draw: Draw) -> list[GridMap]:
    """Two grid maps that share some of groups, widths and grids."""
    groups, widths, grid = draw(GROUPS), draw(WIDTHS), draw(small_grids(2))

    def one() -> GridMap:
        own = draw(st.integers(0, 4))
        return draw(
            grid_maps(
                draw(GROUPS) if own == 1 else groups,
                draw(WIDTHS) if own == 2 else widths,
                draw(small_grids(2)) if own == 3 else grid,
                draw(small_grids(2)) if own == 4 else grid,
            )
        )

    return [one(), one()]


@st.composite
def any_grid_sums(draw: Draw) -> Case:
    a, b = draw(any_grid_pair())
    return Case((a, b), lambda x: a(x) + b(x), a.in_channels, (a.grid_in,))


@st.composite
def any_grid_compositions(draw: Draw) -> Case:
    outer, inner = draw(any_grid_pair())
    return Case((outer, inner), lambda x: outer(inner(x)), inner.in_channels, (inner.grid_in,))


@st.composite
def grid_scales(draw: Draw) -> Case:
    m, seed = draw(any_grid_map()), draw(SEEDS)
    scale, shift = (numbers(seed + j, m.out_channels) if draw(st.booleans()) else None for j in range(2))

    def truth(x: Tensor) -> Tensor:
        y = m(x)
        column = (-1, *(1,) * len(m.grid_out))
        y = y if scale is None else y * scale.reshape(column)
        return y if shift is None else y + shift.reshape(column)

    return on_grid_map(m, truth, scale, shift)


@st.composite
def grid_selections(draw: Draw) -> Case:
    m = draw(any_grid_map())
    channels = draw(choices(m.out_channels))
    return on_grid_map(m, lambda x: m(x)[:, channels], channels)


@st.composite
def grid_concats(draw: Draw) -> Case:
    groups, wide = draw(GROUPS), draw(st.integers(1, 3))
    grid_in, grid_out = draw(small_grids(draw(NDIMS))), draw(small_grids(draw(NDIMS)))
    maps = [
        draw(grid_maps(groups, (wide, draw(st.integers(1, 3))), grid_in, grid_out))
        for _ in range(draw(st.integers(2, 3)))
    ]
    return Case(tuple(maps), lambda x: torch.cat([m(x) for m in maps], 1), maps[0].in_channels, (grid_in,))


@st.composite
def mixed_sums(draw: Draw) -> Case:
    """A convolution and a grid map of the size that it has on that grid, in any order."""
    conv = draw(conv_maps(draw(NDIMS)))
    grid = draw(grids([conv]))
    widths = (conv.in_channels, conv.out_channels)
    maps = [conv, draw(grid_maps(1, widths, grid, conv.output_size(grid)))]
    maps = maps[::-1] if draw(st.booleans()) else maps
    return Case(tuple(maps), lambda x: maps[0](x) + maps[1](x), conv.in_channels, (grid,))


@st.composite
def mixed_compositions(draw: Draw) -> Case:
    outer = draw(conv_maps(draw(NDIMS)))
    grid = draw(grids([outer]))
    inner = draw(grid_maps(1, (draw(st.integers(1, 3)), outer.in_channels), draw(small_grids(draw(NDIMS))), grid))
    return Case((outer, inner), lambda x: outer(inner(x)), inner.in_channels, (inner.grid_in,))


@st.composite
def reshapes(draw: Draw) -> Case:
    """Outputs seen as channels on another grid, as RepMLP's fully connected layer sees an image."""
    m = draw(any_grid_map())
    sizes = [n for n in range(1, m.features + 1) if m.features % n == 0]
    first = draw(st.sampled_from(sizes))
    second = draw(st.sampled_from([n for n in sizes if m.features // first % n == 0]))
    grid = (first, second)
    return on_grid_map(m, lambda x: m(x).reshape(len(x), -1, *grid), grid)
