"""Broken twins of the laws of grid maps; see ``mutants.py``."""

from __future__ import annotations

from dataclasses import replace
from math import prod

from torch import Tensor

from tests.algebra.mutant_tools import MUTANTS, breaks, flipped, unbiased
from unbranch.algebra import (
    ConvMap,
    GridMap,
    add,
    compose,
    concat,
    reshape,
    scale_shift,
    select,
    to_grid,
    with_groups,
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
MUTANTS[TO_GRID, "border ignored"] = lambda m, grid: to_grid(replace(m, padding_mode="zeros"), grid)
MUTANTS[TO_GRID, "made dense"] = lambda m, grid: to_grid(with_groups(m), grid)


@breaks(TO_GRID, "transposed")
def to_grid_transposed(m: ConvMap, grid: tuple[int, ...]) -> GridMap:
    true = to_grid(m, grid)
    square = true.matrix.shape[1] == true.matrix.shape[2]
    return replace(true, matrix=true.matrix.mT) if square else true


MUTANTS["add sums outputs of grid maps", "only the first bias"] = lambda *maps: add(maps[0], *map(unbiased, maps[1:]))
MUTANTS["add sums outputs of grid maps", "last map lost"] = lambda *maps: add(*maps[:-1])


@breaks("add of grid maps is exact or refuses", "different groups or grids accepted")
def grid_add_anything(a: GridMap, b: GridMap) -> GridMap:
    if a.matrix.shape[1:] != b.matrix.shape[1:] or (a.bias is None) != (b.bias is None):
        return add(a, b)
    bias = None if a.bias is None or b.bias is None else a.bias.reshape(-1)[: b.bias.numel()].reshape(b.bias.shape)
    return replace(a, matrix=a.matrix + b.matrix[:1], bias=a.bias if bias is None or b.bias is None else bias + b.bias)


GRID_COMPOSE = "compose is one grid map after the other"
MUTANTS[GRID_COMPOSE, "inner bias not carried"] = lambda outer, inner: compose(outer, unbiased(inner))
MUTANTS[GRID_COMPOSE, "outer bias forgotten"] = lambda outer, inner: compose(unbiased(outer), inner)
MUTANTS[GRID_COMPOSE, "groups reversed"] = lambda outer, inner: compose(
    replace(outer, matrix=outer.matrix.flip(0)), inner
)


@breaks("compose of grid maps is exact or refuses", "different groups accepted")
def grid_compose_anything(outer: GridMap, inner: GridMap) -> GridMap:
    if outer.matrix.shape[2] != inner.matrix.shape[1]:
        return compose(outer, inner)
    return GridMap(outer.matrix[:1] @ inner.matrix, None, inner.grid_in, outer.grid_out)


GRID_SCALE = "scale_shift scales and shifts grid maps"
MUTANTS[GRID_SCALE, "bias not scaled"] = lambda m, scale, shift: replace(
    scale_shift(m, scale, shift), bias=scale_shift(m, None, shift).bias
)
MUTANTS[GRID_SCALE, "shift scaled"] = lambda m, scale, shift: scale_shift(scale_shift(m, None, shift), scale)


@breaks(GRID_SCALE, "scales counted by point instead of by channel")
def grid_scale_points(m: GridMap, scale: Tensor | None, shift: Tensor | None) -> GridMap:
    true = scale_shift(m, scale, shift)
    if scale is None:
        return true
    rows = scale.reshape(m.groups, -1, 1).repeat(1, prod(m.grid_out), 1)
    return replace(true, matrix=m.matrix * rows)


GRID_SELECT = "select slices channels of grid maps"
MUTANTS[GRID_SELECT, "order lost"] = lambda m, channels: select(m, sorted(channels))
MUTANTS[GRID_SELECT, "bias not selected"] = lambda m, channels: replace(
    select(unbiased(m), channels), bias=None if m.bias is None else m.bias[: len(channels)]
)
MUTANTS[GRID_SELECT, "points for channels"] = lambda m, channels: replace(
    select(m, channels), matrix=select(reshape(m, ()), range(len(channels) * prod(m.grid_out))).matrix
)

RESHAPE = "reshape is Tensor.reshape"
MUTANTS[RESHAPE, "bias kept in place of reshaped"] = lambda m, grid: unbiased(reshape(m, grid))


@breaks(RESHAPE, "columns of the grid before rows")
def regridded_transposed(m: GridMap, grid: tuple[int, ...]) -> GridMap:
    true = reshape(m, grid)
    return replace(true, matrix=true.matrix.unflatten(1, (-1, *grid)).transpose(2, 3).flatten(1, 3))


@breaks(RESHAPE, "points before channels")
def regridded_points_first(m: GridMap, grid: tuple[int, ...]) -> GridMap:
    true = reshape(m, grid)
    rows = true.matrix.unflatten(1, (-1, prod(grid))).transpose(1, 2).flatten(1, 2)
    return replace(true, matrix=rows)


@breaks("add coarsens groups of grid maps to their gcd", "blocks of the finer map in the first place")
def grid_add_misplaced(a: GridMap, b: GridMap) -> GridMap:
    true = add(a, b)
    return replace(true, matrix=true.matrix.roll(1, 2)) if a.groups != b.groups else true


MIXED_ADD = "add takes convolutions to the grid of a grid map"
MUTANTS[MIXED_ADD, "convolution lost"] = lambda *maps: add(*(m for m in maps if isinstance(m, GridMap)))
MUTANTS[MIXED_ADD, "bias of the convolution lost"] = lambda *maps: add(
    *(unbiased(m) if isinstance(m, ConvMap) else m for m in maps)
)

MIXED_COMPOSE = "compose is a convolution after a grid map"
MUTANTS[MIXED_COMPOSE, "kernel flipped"] = lambda outer, inner: compose(flipped(outer), inner)
MUTANTS[MIXED_COMPOSE, "bias of the grid map lost"] = lambda outer, inner: compose(outer, unbiased(inner))

GRID_CONCAT = "concat is torch.cat of grid maps"
MUTANTS[GRID_CONCAT, "order reversed"] = lambda *maps: concat(*maps[::-1])
MUTANTS[GRID_CONCAT, "bias of the first for none"] = lambda *maps: concat(unbiased(maps[0]), *maps[1:])
MUTANTS[GRID_CONCAT, "groups kept"] = lambda *maps: concat(*(interleaved_blocks(m) for m in maps))


def interleaved_blocks(m: GridMap) -> GridMap:
    return replace(m, matrix=m.matrix.roll(1, 0))
