"""The laws of maps on a fixed grid, see ``laws``, and the conversion of convolutions to them.

Maps on a fixed grid are matrices, so the laws are exact for all maps of matching sizes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import gcd, prod

import torch
from torch import Tensor

from unbranch.algebra.affine import AffineMap, is_integer, promoted
from unbranch.algebra.convmap import ConvMap
from unbranch.algebra.frame import with_fewer_groups
from unbranch.algebra.gridmap import GridMap
from unbranch.algebra.laws import add, compose, concat, pad, reshape, scale_shift, select
from unbranch.errors import InexactError, InputError, NotAffineError


def to_grid(m: ConvMap, grid: Sequence[int]) -> GridMap:
    """Return a convolution as matrices on an input grid of that size, from its outputs for unit images.

    The number of groups doesn't change; a depthwise kernel gives one ``|grid'| x |grid|`` matrix per channel.
    """
    grid = tuple(grid)
    if len(grid) != m.ndim or min(grid, default=1) < 1:
        raise InputError(f"`grid` must be {m.ndim} positive integers for {m}, got {grid}")
    if min(m.output_size(grid), default=1) < 1:
        raise InexactError(f"{m} has no output on a grid of size {grid}")
    width, points = m.in_channels // m.groups, prod(grid)
    if points == 1 and m.pointwise:
        matrix = m.kernel.reshape(m.groups, -1, width)
        return _alike(GridMap(matrix, None if m.bias is None else m.bias.reshape(-1, *grid), grid, grid))[0]
    units = torch.eye(width * points, dtype=m.dtype, device=m.device)
    units = units.reshape(width * points, width, *grid).repeat(1, m.groups, *(1,) * len(grid))
    images = replace(m, bias=None)(units)  # (I/groups·|grid|, O, *grid')
    out = tuple(images.shape[2:])
    matrix = images.reshape(width * points, m.groups, -1).permute(1, 2, 0)
    bias = None if m.bias is None else m.bias.reshape(-1, *(1,) * len(out)).expand(-1, *out)
    return _alike(GridMap(matrix, bias, grid, out))[0]


def on_one_grid(*maps: AffineMap) -> list[GridMap] | None:
    """Return maps of one input as grid maps if one of them is one, else None."""
    grids = [m for m in maps if isinstance(m, GridMap)]
    if not grids:
        return None
    return [m if isinstance(m, GridMap) else to_grid(as_conv(m), grids[0].grid_in) for m in maps]


def as_conv(m: AffineMap) -> ConvMap:
    """Return the map if it is one with a kernel.

    Raises:
        InputError: if it isn't.
    """
    if not isinstance(m, ConvMap):
        raise InputError(f"expected a ConvMap, got {type(m).__name__}")
    return m


def checked_channels(channels: Sequence[int], count: int) -> list[int]:
    """Return channel numbers as a list.

    Raises:
        InputError: if there is none, or one that isn't from 0 to ``count - 1``.
    """
    chosen = list(channels)
    if not chosen or any(not is_integer(c) or not 0 <= c < count for c in chosen):
        raise InputError(f"`channels` must be numbers from 0 to {count - 1}, got {chosen}")
    return chosen


@compose.register
def _compose(outer: GridMap, inner: AffineMap) -> GridMap:
    if not isinstance(inner, GridMap):
        raise InexactError("a map on a grid of fixed size after one on grids of any size")
    if (outer.grid_in, outer.in_channels) != (inner.grid_out, inner.out_channels):
        raise InexactError("grid maps that don't fit one after the other")
    outer, inner = _alike(*_grouped_alike(outer, inner))
    bias = outer.bias
    if inner.bias is not None:
        bias = outer(inner.bias.unsqueeze(0)).squeeze(0)
    matrix = outer.matrix if _is_identity(inner) else outer.matrix @ inner.matrix
    return GridMap(matrix, bias, inner.grid_in, outer.grid_out)


@add.register
def _add(first: GridMap, *others: AffineMap) -> GridMap:
    maps = _grouped_alike(*(on_one_grid(first, *others) or ()))
    _check_agreement(maps, "a sum", ("grid_in", "grid_out", "in_channels", "out_channels"))
    maps = _alike(*maps)
    biases = [m.bias for m in maps if m.bias is not None]
    matrix = torch.stack([m.matrix for m in maps]).sum(0)
    count = max(m.bias_numel for m in maps)
    return replace(maps[0], matrix=matrix, bias=torch.stack(biases).sum(0) if biases else None, bias_numel=count)


@concat.register
def _concat(first: GridMap, *others: AffineMap) -> GridMap:
    maps = [_with_groups(m, 1) for m in on_one_grid(first, *others) or ()]
    _check_agreement(maps, "a concatenation", ("grid_in", "grid_out", "in_channels"))
    maps = _alike(*maps)
    matrix = torch.cat([m.matrix for m in maps], 1)
    if all(m.bias is None for m in maps):
        return replace(maps[0], matrix=matrix)
    biases = [m.matrix.new_zeros(m.shape) if m.bias is None else m.bias for m in maps]
    return replace(maps[0], matrix=matrix, bias=torch.cat(biases), bias_numel=sum(m.bias_numel for m in maps))


@scale_shift.register
def _scale_shift(m: GridMap, scale: Tensor | None = None, shift: Tensor | None = None) -> GridMap:
    (m,) = _alike(m)

    def each(vector: Tensor) -> Tensor:
        """Expand one number per channel to ``(O, *grid_out)``."""
        if vector.shape != (m.out_channels,):
            raise InputError(f"`scale` and `shift` must have shape ({m.out_channels},), got {tuple(vector.shape)}")
        vector = vector.to(device=m.device, dtype=promoted(m.dtype, vector.dtype))
        return vector.reshape(-1, *(1,) * m.out_ndim).expand(m.shape)

    matrix, bias = m.matrix, m.bias
    if scale is not None:
        factor = each(scale)
        matrix = matrix * factor.reshape(m.groups, -1, 1)
        bias = None if bias is None else bias * factor
    count = m.bias_numel
    if shift is not None:
        moved, count = each(shift), max(count, m.out_channels)
        bias = moved if bias is None else bias + moved
    return replace(m, matrix=matrix, bias=bias, bias_numel=count)


@pad.register
def _pad(m: GridMap, lo: Sequence[int], hi: Sequence[int], value: Tensor | None = None, padding_mode: str = "zeros") -> GridMap:  # noqa: ARG001, E501 # fmt: skip
    raise NotAffineError("padding after a reshape")


@select.register
def _select(m: GridMap, channels: Sequence[int]) -> GridMap:
    """Select rows, as channels of a pointwise map whose channels are (channel, point) pairs."""
    chosen = checked_channels(channels, m.out_channels)
    flat, points = ConvMap(m.matrix.flatten(0, 1), None, (), (), (), (), m.groups), prod(m.grid_out)
    kept = select(flat, [c * points + p for c in chosen for p in range(points)])
    bias = None if m.bias is None else m.bias[chosen]
    count = m.bias_numel * len(chosen) // m.out_channels
    return replace(m, matrix=kept.weight.reshape(kept.groups, -1, kept.weight.shape[1]), bias=bias, bias_numel=count)


@reshape.register
def _reshape(m: GridMap, grid: Sequence[int]) -> GridMap:
    grid = tuple(grid)
    if any(not is_integer(n) or n < 1 for n in grid):
        raise InputError(f"`grid` must be positive integers, got {grid}")
    if m.features % prod(grid):
        raise InexactError(f"{m.features} numbers don't divide into grids of {grid}")
    bias = None if m.bias is None else m.bias.reshape(-1, *grid)
    return replace(m, grid_out=grid, bias=bias)


def _check_agreement(maps: list[GridMap], what: str, names: tuple[str, ...]) -> None:
    for name in names:
        values = {getattr(m, name) for m in maps}
        if len(values) > 1:
            raise InexactError(f"{what} of grid maps that differ in {name}: {', '.join(map(str, sorted(values)))}")


def _alike(*maps: GridMap) -> list[GridMap]:
    """Return the maps in their promoted dtype, all on the meta device if one of them is."""
    dtype = promoted(*(m.dtype for m in maps))
    maps = tuple(m.to(dtype) for m in maps)
    return [m.meta() for m in maps] if any(m.is_meta for m in maps) else list(maps)


def _grouped_alike(*maps: GridMap) -> list[GridMap]:
    return [_with_groups(m, gcd(*(n.groups for n in maps))) for m in maps]


def _with_groups(m: GridMap, fewer: int) -> GridMap:
    """Return the same map with fewer, larger blocks."""
    if fewer == m.groups:
        return m
    matrix = with_fewer_groups(m.matrix.flatten(0, 1), m.groups, fewer)
    return replace(m, matrix=matrix.reshape(fewer, -1, matrix.shape[1]))


def _is_identity(m: GridMap) -> bool:
    square = m.matrix.shape[1] == m.matrix.shape[2] and not m.is_meta and not m.matrix.requires_grad
    return square and bool((m.matrix == torch.eye(m.matrix.shape[1], device=m.device)).all())
