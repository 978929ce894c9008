"""An affine map on a fixed grid: one matrix per group of numbers.

    y[o, q] = bias[o, q] + sum_{i, p} matrix[group][(o, q), (i, p)] · x[i, p]

RepMLP's fully connected layer is such a map, and so is every convolution on a grid of fixed size.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from unbranch.algebra.affine import AffineMap, promoted
from unbranch.deprecation import RenamedAttribute
from unbranch.errors import InputError


@dataclass(frozen=True, eq=False)
class GridMap(AffineMap):
    """Immutable affine map between grids of fixed size; the module's docstring has the formula.

    Args:
        matrix: ``(groups, O·|grid_out|/groups, I·|grid_in|/groups)``; the numbers of an image are in
            memory order, channel first, then the grid in row-major order, and block ``j`` maps their ``j``-th slice.
        bias: ``(O, *grid_out)``, or None.
        grid_in, grid_out: sizes of the grids.
        bias_numel: different numbers of the bias by structure: one per channel of the grid on which it was added,
            unless given. A reshape doesn't change it.

    Raises:
        InputError: if the shapes are inconsistent.
    """

    matrix: Tensor
    bias: Tensor | None
    grid_in: tuple[int, ...]
    grid_out: tuple[int, ...]
    bias_numel: int = 0

    numbers = RenamedAttribute("numel")

    def __post_init__(self) -> None:
        if self.matrix.dim() != 3:
            raise InputError(f"`matrix` must have shape (groups, rows, columns), got {tuple(self.matrix.shape)}")
        groups, rows, columns = self.matrix.shape
        for name, count in (("grid_in", groups * columns), ("grid_out", groups * rows)):
            grid = getattr(self, name)
            if min(grid, default=1) < 1 or count % prod(grid):
                raise InputError(f"`{name}` must divide the {count} numbers of an image, got {grid}")
        if self.bias is not None and self.bias.shape != (self.out_channels, *self.grid_out):
            expected = (self.out_channels, *self.grid_out)
            raise InputError(f"`bias` must have shape {expected}, got {tuple(self.bias.shape)}")

        count = 0 if self.bias is None else self.bias_numel or self.out_channels
        object.__setattr__(self, "bias_numel", count)

    @property
    def groups(self) -> int:
        return int(self.matrix.shape[0])

    @property
    def out_channels(self) -> int:
        return self.features // prod(self.grid_out)

    @property
    def in_channels(self) -> int:
        return self.groups * int(self.matrix.shape[2]) // prod(self.grid_in)

    @property
    def ndim(self) -> int:
        """Number of grid dimensions of the input."""
        return len(self.grid_in)

    @property
    def out_ndim(self) -> int:
        """Number of grid dimensions of the output."""
        return len(self.grid_out)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of one output image, channels first."""
        return self.out_channels, *self.grid_out

    @property
    def features(self) -> int:
        """Numbers of one output image, ``O·|grid_out|``."""
        return self.groups * int(self.matrix.shape[1])

    @property
    def dtype(self) -> torch.dtype:
        return promoted(self.matrix.dtype, *([] if self.bias is None else [self.bias.dtype]))

    @property
    def device(self) -> torch.device:
        return self.matrix.device

    @property
    def is_meta(self) -> bool:
        return self.matrix.is_meta

    @property
    def numel(self) -> int:
        """Numbers of the map: its matrices, and the different ones of its bias."""
        return self.matrix.numel() + self.bias_numel

    def meta(self) -> GridMap:
        """Return the same map on the meta device."""
        return replace(self, matrix=self.matrix.to("meta"), bias=None if self.bias is None else self.bias.to("meta"))

    def to(self, dtype: torch.dtype) -> GridMap:
        """Return the same map for laws that compute in ``dtype`` at least."""
        dtype = promoted(self.dtype, dtype)
        return replace(self, matrix=self.matrix.to(dtype), bias=None if self.bias is None else self.bias.to(dtype))

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to ``x (N, I, *grid_in)`` in the dtype of ``x``; gives ``(N, O, *grid_out)``."""
        if x.shape[1:] != (self.in_channels, *self.grid_in):
            raise InputError(f"`x` must have shape (N, {self.in_channels}, *{self.grid_in}), got {tuple(x.shape)}")
        columns = x.reshape(x.shape[0], self.groups, -1)  # (N, groups, I·|grid_in|/groups)
        y = torch.einsum("grc,ngc->ngr", self.matrix.to(x.dtype), columns)
        y = y.reshape(x.shape[0], *self.shape)
        return y if self.bias is None else y + self.bias.to(x.dtype)
