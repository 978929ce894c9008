"""Broken twins of the laws of grid maps; see ``mutants.py``."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from torch import Tensor

from tests.algebra.mutant_tools import MUTANTS, breaks, flipped, unbiased
from unbranch.algebra import (
    ConvMap,
    GridMap,
    densified,
    grid_add,
    grid_compose,
    grid_scale_shift,
    grid_select,
    regridded,
    to_grid,
)

GRID = "a grid map computes its formula"
MUTANTS[GRID, "bias forgotten"] = unbiased
MUTANTS[GRID, "points before channels"] = lambda m: replace(m, matrix=points_first(m))
MUTANTS[GRID, "groups reversed"] = lambda m: replace(m, matrix=m.matrix.flip(0))


def points_first(m: GridMap) -> Tensor:
    """Matrices whose columns count the grid's points first."""
    return m.matrix.unflatten(2, (-1, prod(m.grid_in))).transpose(2, 3).flatten(2)


TO_GRID = "to_grid is the convolution"
MUTANTS[TO_GRID, "points before channels"] = lambda m, grid: replace(
    to_grid(m, grid), matrix=points_first(to_grid(m, grid))
)
MUTANTS[TO_GRID, "kernel flipped"] = lambda m, grid: to_grid(flipped(m), grid)
MUTANTS[TO_GRID, "bias in every column"] = lambda m, grid: replace(
    to_grid(m, grid), matrix=to_grid(m, grid).matrix + (0 if m.bias is None else 1)
)
MUTANTS[TO_GRID, "border ignored"] = lambda m, grid: to_grid(replace(m, border="zeros"), grid)
MUTANTS[TO_GRID, "made dense"] = lambda m, grid: to_grid(densified(m), grid)


@breaks(TO_GRID, "transposed")
def to_grid_transposed(m: ConvMap, grid: tuple[int, ...]) -> GridMap:
    true = to_grid(m, grid)
    square = true.matrix.shape[1] == true.matrix.shape[2]
    return replace(true, matrix=true.matrix.mT) if square else true


MUTANTS["grid_add sums outputs", "only the first bias"] = lambda *maps: grid_add(maps[0], *map(unbiased, maps[1:]))
MUTANTS["grid_add sums outputs", "last map lost"] = lambda *maps: grid_add(*maps[:-1])


@breaks("grid_add is exact or refuses", "different groups or grids accepted")
def grid_add_anything(a: GridMap, b: GridMap) -> GridMap:
    if a.matrix.shape[1:] != b.matrix.shape[1:] or (a.bias is None) != (b.bias is None):
        return grid_add(a, b)
    bias = None if a.bias is None or b.bias is None else a.bias.reshape(-1)[: b.bias.numel()].reshape(b.bias.shape)
    return replace(a, matrix=a.matrix + b.matrix[:1], bias=a.bias if bias is None or b.bias is None else bias + b.bias)


GRID_COMPOSE = "grid_compose is one map after the other"
MUTANTS[GRID_COMPOSE, "inner bias not carried"] = lambda outer, inner: grid_compose(outer, unbiased(inner))
MUTANTS[GRID_COMPOSE, "outer bias forgotten"] = lambda outer, inner: grid_compose(unbiased(outer), inner)
MUTANTS[GRID_COMPOSE, "groups reversed"] = lambda outer, inner: grid_compose(
    replace(outer, matrix=outer.matrix.flip(0)), inner
)


@breaks("grid_compose is exact or refuses", "different groups accepted")
def grid_compose_anything(outer: GridMap, inner: GridMap) -> GridMap:
    if outer.matrix.shape[2] != inner.matrix.shape[1]:
        return grid_compose(outer, inner)
    return GridMap(outer.matrix[:1] @ inner.matrix, None, inner.grid_in, outer.grid_out)


GRID_SCALE = "grid_scale_shift scales and shifts"
MUTANTS[GRID_SCALE, "bias not scaled"] = lambda m, scale, shift: replace(
    grid_scale_shift(m, scale, shift), bias=grid_scale_shift(m, None, shift).bias
)
MUTANTS[GRID_SCALE, "shift scaled"] = lambda m, scale, shift: grid_scale_shift(grid_scale_shift(m, None, shift), scale)


@breaks(GRID_SCALE, "scales counted by point instead of by channel")
def grid_scale_points(m: GridMap, scale: Tensor | None, shift: Tensor | None) -> GridMap:
    true = grid_scale_shift(m, scale, shift)
    if scale is None:
        return true
    rows = scale.reshape(m.groups, -1, 1).repeat(1, prod(m.grid_out), 1)
    return replace(true, matrix=m.matrix * rows)


GRID_SELECT = "grid_select slices channels"
MUTANTS[GRID_SELECT, "order of inputs lost"] = lambda m, outs, ins: grid_select(m, outs, ins and sorted(ins))
MUTANTS[GRID_SELECT, "order of outputs lost"] = lambda m, outs, ins: grid_select(m, outs and sorted(outs), ins)
MUTANTS[GRID_SELECT, "bias not selected"] = lambda m, outs, ins: replace(
    grid_select(unbiased(m), outs, ins), bias=None if m.bias is None else m.bias[: len(outs or m.bias)]
)

REGRID = "regridded is a reshape"
MUTANTS[REGRID, "bias kept in place of reshaped"] = lambda m, grid: unbiased(regridded(m, grid))


@breaks(REGRID, "columns of the grid before rows")
def regridded_transposed(m: GridMap, grid: tuple[int, ...]) -> GridMap:
    true = regridded(m, grid)
    return replace(true, matrix=true.matrix.unflatten(1, (-1, *grid)).transpose(2, 3).flatten(1, 3))


@breaks(REGRID, "points before channels")
def regridded_points_first(m: GridMap, grid: tuple[int, ...]) -> GridMap:
    true = regridded(m, grid)
    rows = true.matrix.unflatten(1, (-1, prod(grid))).transpose(1, 2).flatten(1, 2)
    return replace(true, matrix=rows)


@breaks("grid_add coarsens groups to their gcd", "blocks of the finer map in the first place")
def grid_add_misplaced(a: GridMap, b: GridMap) -> GridMap:
    true = grid_add(a, b)
    return replace(true, matrix=true.matrix.roll(1, 2)) if a.groups != b.groups else true
