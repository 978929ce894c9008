"""An affine map on a fixed grid: one matrix per group of channels.

    y[o, q] = bias[o, q] + sum_{i, p} matrix[group(o)][(o, q), (i, p)] · x[i, p]

RepMLP's fully connected layer is one, and every convolution becomes one on a grid of known size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd, prod

import torch
from torch import Tensor

from unbranch.algebra.convmap import ConvMap
from unbranch.algebra.frame import coarsened
from unbranch.algebra.laws import select
from unbranch.errors import Inexact, InputError


@dataclass(frozen=True, eq=False)
class GridMap:
    """A frozen affine map between grids of fixed size.

    Args:
        matrix: ``(groups, O/groups·|grid_out|, I/groups·|grid_in|)`` in float64; within a row or column
            index the channel comes first, then the grid in row-major order.
        bias: ``(O, *grid_out)`` in float64, or None.
        grid_in, grid_out: sizes of the grids.

    Raises:
        InputError: if the shapes don't fit together.
    """

    matrix: Tensor
    bias: Tensor | None
    grid_in: tuple[int, ...]
    grid_out: tuple[int, ...]

    def __post_init__(self) -> None:
        _, rows, columns = self.matrix.shape
        if rows % prod(self.grid_out) or columns % prod(self.grid_in):
            raise InputError(f"matrices of {rows}x{columns} don't fit grids {self.grid_in} and {self.grid_out}")
        if self.bias is not None and self.bias.shape != (self.out_channels, *self.grid_out):
            raise InputError(f"bias has shape {tuple(self.bias.shape)}, expected {(self.out_channels, *self.grid_out)}")

    @property
    def groups(self) -> int:
        return int(self.matrix.shape[0])

    @property
    def out_channels(self) -> int:
        return self.groups * int(self.matrix.shape[1]) // prod(self.grid_out)

    @property
    def in_channels(self) -> int:
        return self.groups * int(self.matrix.shape[2]) // prod(self.grid_in)

    @property
    def ndim(self) -> int:
        """Number of grid dimensions of the input."""
        return len(self.grid_in)

    @property
    def features(self) -> int:
        """Numbers of one output image, ``O·|grid_out|``."""
        return int(self.matrix.shape[0] * self.matrix.shape[1])

    @property
    def numbers(self) -> int:
        """Numbers of the map: its matrices, and one bias a channel."""
        return self.matrix.numel() + (0 if self.bias is None else self.out_channels)

    def meta(self) -> GridMap:
        """The same map without its values: enough to plan with."""
        return replace(self, matrix=self.matrix.to("meta"), bias=None if self.bias is None else self.bias.to("meta"))

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to ``x (N, I, *grid_in)``; gives ``(N, O, *grid_out)``."""
        columns = x.reshape(x.shape[0], self.groups, -1)  # (N, groups, I/groups·|grid_in|)
        y = torch.einsum("grc,ngc->ngr", self.matrix.to(x.dtype), columns)
        y = y.reshape(x.shape[0], self.out_channels, *self.grid_out)
        return y if self.bias is None else y + self.bias.to(x.dtype)


def to_grid(m: ConvMap, grid: tuple[int, ...]) -> GridMap:
    """A convolution as matrices on an input grid of that size, by what it does to each unit image.

    The groups stay; a depthwise kernel gives one ``|grid'| x |grid|`` matrix per channel.
    """
    width, points = m.in_channels // m.groups, prod(grid)
    if points == 1 and m.pointwise:
        matrix = m.kernel.reshape(m.groups, -1, width)
        return _alike(GridMap(matrix, None if m.bias is None else m.bias.reshape(-1, *grid), grid, grid))[0]
    units = torch.eye(width * points, dtype=torch.float64, device=m.weight.device)
    units = units.reshape(width * points, width, *grid).repeat(1, m.groups, *(1,) * len(grid))
    images = replace(m, bias=None)(units)  # (I/groups·|grid|, O, *grid')
    out = tuple(images.shape[2:])
    matrix = images.reshape(width * points, m.groups, -1).permute(1, 2, 0)
    bias = None if m.bias is None else m.bias.reshape(-1, *(1,) * len(out)).expand(-1, *out)
    return _alike(GridMap(matrix, bias, tuple(grid), out))[0]


def _alike(*maps: GridMap) -> list[GridMap]:
    """All without values if one of them is."""
    return [m.meta() for m in maps] if any(m.matrix.is_meta for m in maps) else list(maps)


def grid_add(*maps: GridMap) -> GridMap:
    """The sum of maps between the same grids, groups coarsened to their gcd."""
    maps = tuple(_alike(*_grouped_alike(*maps)))
    first = maps[0]
    for name in ("grid_in", "grid_out", "in_channels", "out_channels"):
        if len({getattr(m, name) for m in maps}) > 1:
            raise Inexact(f"a sum of grid maps that differ in {name}")
    biases = [m.bias for m in maps if m.bias is not None]
    matrix = torch.stack([m.matrix for m in maps]).sum(0)
    return replace(first, matrix=matrix, bias=torch.stack(biases).sum(0) if biases else None)


def grid_compose(outer: GridMap, inner: GridMap) -> GridMap:
    """``outer(inner(x))``, groups coarsened to their gcd. Always exact: a grid has no border."""
    if (outer.grid_in, outer.in_channels) != (inner.grid_out, inner.out_channels):
        raise Inexact("grid maps that don't fit one after the other")
    outer, inner = _alike(*_grouped_alike(outer, inner))
    bias = outer.bias
    if inner.bias is not None:
        bias = outer(inner.bias.unsqueeze(0)).squeeze(0)
    matrix = outer.matrix if _is_identity(inner) else outer.matrix @ inner.matrix
    return GridMap(matrix, bias, inner.grid_in, outer.grid_out)


def regridded(m: GridMap, grid: tuple[int, ...]) -> GridMap:
    """The same numbers seen as channels on another grid, in the order of their memory: a reshape. Always exact.

    Raises:
        Inexact: if they don't divide into such grids.
    """
    if m.features % prod(grid):
        raise Inexact(f"{m.features} numbers don't divide into grids of {grid}")
    channels = m.features // prod(grid)
    if channels % m.groups:
        m = _with_groups(m, gcd(channels, m.groups))
    return replace(m, grid_out=grid, bias=None if m.bias is None else m.bias.reshape(channels, *grid))


def _grouped_alike(*maps: GridMap) -> list[GridMap]:
    return [_with_groups(m, gcd(*(n.groups for n in maps))) for m in maps]


def _with_groups(m: GridMap, fewer: int) -> GridMap:
    """The same map with its blocks written in fewer, larger ones."""
    if fewer == m.groups:
        return m
    matrix = coarsened(m.matrix.flatten(0, 1), m.groups, fewer)
    return replace(m, matrix=matrix.reshape(fewer, -1, matrix.shape[1]))


def _is_identity(m: GridMap) -> bool:
    square = m.matrix.shape[1] == m.matrix.shape[2] and not m.matrix.is_meta
    return square and bool((m.matrix == torch.eye(m.matrix.shape[1], device=m.matrix.device)).all())


def grid_scale_shift(m: GridMap, scale: Tensor | None = None, shift: Tensor | None = None) -> GridMap:
    """``scale·m(x) + shift`` per output channel, each ``(O,)``: a batch norm after a fully connected grid layer."""
    column = (-1, *(1,) * len(m.grid_out))
    (m,) = _alike(m)
    matrix, bias = m.matrix, m.bias
    if scale is not None:
        factor = scale.double().to(matrix.device)
        rows = factor.reshape(m.groups, -1, 1).repeat_interleave(prod(m.grid_out), 1)
        matrix = matrix * rows
        bias = None if bias is None else bias * factor.reshape(column)
    if shift is not None:
        moved = shift.double().to(matrix.device).reshape(column).expand(-1, *m.grid_out)
        bias = moved if bias is None else bias + moved
    return replace(m, matrix=matrix, bias=bias)


def grid_select(m: GridMap, outputs: list[int] | None = None, inputs: list[int] | None = None) -> GridMap:
    """Only some output channels, and only some input channels (the others being zero); see ``select``.

    Done as a selection of a pointwise map whose channels are the (channel, point) pairs.
    """
    flat = ConvMap(m.matrix.flatten(0, 1), None, (), (), (), (), m.groups)

    def points(channels: list[int] | None, count: int) -> list[int] | None:
        return None if channels is None else [c * count + p for c in channels for p in range(count)]

    kept = select(flat, points(outputs, prod(m.grid_out)), points(inputs, prod(m.grid_in)))
    bias = m.bias if m.bias is None or outputs is None else m.bias[outputs]
    return replace(m, matrix=kept.weight.reshape(kept.groups, -1, kept.weight.shape[1]), bias=bias)
