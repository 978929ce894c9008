"""What a rule receives in place of a tensor: the operator that gives it from the region's root."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from unbranch.algebra import (
    ConvMap,
    GridMap,
    add,
    compose,
    concat,
    grid_add,
    grid_compose,
    grid_scale_shift,
    grid_select,
    lifted,
    pad,
    regridded,
    scale_shift,
    select,
    to_grid,
)
from unbranch.errors import Inexact, NotAffine
from unbranch.rules.arrangement import Arrangement, Shapes


@dataclass(frozen=True, eq=False)
class Affine:
    """A tensor that is ``map`` of the root.

    Args:
        map: the operator.
        last: whether channels lie on the last axis of a tensor of any rank (``nn.Linear``) instead of
            axis 1, followed by the grid.
        root_grid: size of the root's grid, where the graph fixes it.
        rank: of the root, where it is known.
        arrangement: how the tensor's axes are made of the root's, where they are others; ``map`` is for axes in the
            root's arrangement, and what is done meanwhile is done to each point alone.
    """

    map: ConvMap
    last: bool = False
    root_grid: tuple[int, ...] | None = None
    rank: int | None = None
    arrangement: Arrangement | None = None

    @property
    def channels(self) -> int:
        return self.map.out_channels

    @property
    def ndim(self) -> int:
        """Number of grid dimensions of the tensor."""
        return self.map.ndim

    @property
    def device(self) -> torch.device:
        return self.map.weight.device

    def then(self, outer: ConvMap, *, last: bool = False) -> Affine:
        """Apply one more map: ``outer(self)``."""
        if self.arrangement is not None:
            return self._then_everywhere(outer, last)
        if self.rank is not None:
            self.expect_channels(last=last)
        self._check_axis(outer.ndim, last)
        inner = lifted(self.map, outer.ndim) if outer.ndim else self.map
        return replace(self, map=compose(outer, inner), last=last or self.last)

    def _then_everywhere(self, outer: ConvMap, last: bool) -> Affine:
        """A map of each point's channels, wherever the points are."""
        self.expect_channels(last=last)
        assert self.arrangement is not None
        if not outer.pointwise or outer.ndim != (0 if last else self.arrangement.rank - 2):
            raise NotAffine("a kernel on a grid that isn't the root's")
        n = self.map.ndim
        flat = outer.weight.reshape(*outer.weight.shape[:2], *(1,) * n)
        here = ConvMap(flat, outer.bias, (1,) * n, (1,) * n, (0,) * n, (0,) * n, outer.groups, gain=outer.gain)
        return replace(self, map=compose(here, self.map))

    def expect_channels(self, *, last: bool) -> None:
        """Refuse an operation whose channels are on the last axis, or on axis 1, where this value's are elsewhere.

        Raises:
            NotAffine: if they are.
        """
        if self.arrangement is not None:
            fits = self.arrangement.channel_axis == (self.arrangement.rank - 1 if last else 1)
        elif last:
            fits = self.last or (self.ndim == 0 and self.rank in (None, 2))
        else:
            fits = not self.last or self.rank in (None, 2)
        if not fits:
            raise NotAffine("a layer of another axis than that of the channels")

    @property
    def axes(self) -> int:
        """Number of axes of the tensor, on the assumption that it has one for images if that isn't known."""
        if self.arrangement is not None:
            return self.arrangement.rank
        return self.rank or 2 if self.last else self.ndim + 2

    def channel_axis_from_right(self) -> int:
        """The axis with the channels, counted from the last, which is 1.

        Raises:
            NotAffine: if they share one with something else.
        """
        if self.arrangement is None:
            return 1 if self.last else self.ndim + 1
        if self.arrangement.channel_axis is None:
            raise NotAffine("channels that share an axis")
        return self.arrangement.rank - self.arrangement.channel_axis

    def arranged(self, shapes: Shapes) -> Arrangement:
        """How the axes of the tensor are made of the root's, given its shapes for inputs of two sizes.

        Raises:
            NotAffine: if the shapes aren't those of such a tensor.
        """
        if self.arrangement is not None:
            return self.arrangement
        rank = len(shapes[0])
        axis = rank - 1 if self.last else 1
        fits = rank == self.rank and (self.last or rank == self.map.ndim + 2)
        if not fits or any(len(s) != rank or s[axis] != self.channels for s in shapes):
            raise NotAffine("a tensor of another rank")
        return Arrangement.of(shapes, axis)

    def rearranged(self, arrangement: Arrangement) -> Affine:
        """The same numbers with other axes."""
        return replace(self, arrangement=None if arrangement.is_own else arrangement)

    def scaled(self, scale: Tensor | None = None, shift: Tensor | None = None) -> Affine:
        """``scale·self + shift`` with one number per channel, ``(C,)`` each."""
        return replace(self, map=scale_shift(self.map, scale, shift))

    def times(self, factor: float) -> Affine:
        """``factor·self``."""
        return self if factor == 1 else self.scaled(self._filled(factor))

    def shifted(self, amount: float) -> Affine:
        """``self + amount``, the same for every channel."""
        return self if amount == 0 else self.scaled(shift=self._filled(amount))

    def padded(self, lo: Sequence[int], hi: Sequence[int], value: float = 0.0, border: str = "zeros") -> Affine:
        """Padded along the grid; see ``algebra.pad``."""
        self._check_axis(len(lo), False)
        fill = self._filled(value) if value else None
        return replace(self, map=pad(lifted(self.map, len(lo)), lo, hi, fill, border))

    def bordered(self, lo: Sequence[int], hi: Sequence[int], value: Tensor | float) -> Affine:
        """Padded along the grid with a number, or with one for each channel ``(C,)``."""
        if not isinstance(value, Tensor):
            return self.padded(lo, hi, value)
        self._check_axis(len(lo), False)
        return replace(self, map=pad(lifted(self.map, len(lo)), lo, hi, value))

    def plus(self, *others: Affine) -> Affine:
        """The sum of values of one root."""
        gridded = [v for v in others if isinstance(v, Gridded)]
        if gridded:
            return gridded[0].plus(self, *(v for v in others if v is not gridded[0]))
        maps, last = _joined((self, *others))
        return replace(self, map=add(*maps), last=last)

    def joined(self, *others: Affine) -> Affine:
        """Concatenation along the channels."""
        maps, last = _joined((self, *others))
        return replace(self, map=concat(*maps), last=last)

    def selected(self, channels: Sequence[int]) -> Affine:
        """Some of the channels."""
        return replace(self, map=select(self.map, channels))

    def on_meta(self) -> Affine:
        """The same without its kernel's values."""
        return replace(self, map=self.map.meta())

    def viewed(self, shape: Sequence[int]) -> Affine:
        """Reshaped to images of another shape, ``(B, *shape)``, with the order of the numbers in memory kept."""
        return self.gridded().viewed(shape)

    def gridded(self) -> Gridded:
        """The same value as matrices on its grid, where the graph fixes the grid's size."""
        if self.root_grid is None or self.last or self.arrangement is not None or len(self.root_grid) != self.map.ndim:
            raise NotAffine("a reshape of a tensor whose size depends on the input")
        m = to_grid(self.map, self.root_grid)
        return Gridded(m, False, self.root_grid, shape=(m.out_channels, *m.grid_out))

    def _check_axis(self, ndim: int, last: bool) -> None:
        if self.arrangement is not None:
            raise NotAffine("points in another arrangement than the root's")
        if (self.last and ndim) or (last and self.map.ndim):
            raise Inexact("channels on the last axis meet channels on axis 1")

    def _filled(self, value: float) -> Tensor:
        vectors = (self.map.bias, self.map.gain, self.map.weight)
        device = next((v.device for v in vectors if v is not None and not v.is_meta), None)
        return torch.full((self.channels,), float(value), dtype=torch.float64, device=device)


@dataclass(frozen=True, eq=False)
class Gridded(Affine):
    """A tensor of known size that is matrices times the root's grid: fully connected layers, and what joins them.

    Args:
        shape: of one image as the tensor has it now, channels first; the map's own channels and grid are others
            after a reshape, the order of the numbers is the same.
    """

    map: GridMap  # type: ignore[assignment]
    shape: tuple[int, ...] = ()

    @property
    def channels(self) -> int:
        return self.shape[0]

    @property
    def ndim(self) -> int:
        return len(self.shape) - 1

    @property
    def device(self) -> torch.device:
        return self.map.matrix.device

    def then(self, outer: ConvMap, *, last: bool = False) -> Gridded:
        grid = self.shape[1:]
        if outer.ndim != len(grid) or (last and grid) or outer.in_channels != self.channels:
            raise NotAffine("a layer of other dimensions after a reshape")
        after = to_grid(outer, grid)
        m = grid_compose(after, regridded(self.map, grid))
        return replace(self, map=m, shape=(m.out_channels, *m.grid_out))

    def expect_channels(self, *, last: bool) -> None:  # noqa: ARG002
        return  # ``then`` compares shapes

    def arranged(self, shapes: Shapes) -> Arrangement:  # noqa: ARG002
        raise NotAffine("a transposition after a reshape")

    def scaled(self, scale: Tensor | None = None, shift: Tensor | None = None) -> Gridded:
        return replace(self, map=grid_scale_shift(regridded(self.map, self.shape[1:]), scale, shift))

    def padded(self, lo: Sequence[int], hi: Sequence[int], value: float = 0.0, border: str = "zeros") -> Gridded:  # noqa: ARG002
        raise NotAffine("padding after a reshape")

    def bordered(self, lo: Sequence[int], hi: Sequence[int], value: Tensor | float) -> Gridded:  # noqa: ARG002
        raise NotAffine("padding after a reshape")

    def plus(self, *others: Affine) -> Gridded:
        parts = [self, *(v.gridded() for v in others)]
        if len({v.shape for v in parts}) > 1:
            raise NotAffine("a sum of tensors of different shapes")
        return replace(self, map=grid_add(*(regridded(v.map, self.shape[1:]) for v in parts)))

    def joined(self, *others: Affine) -> Gridded:  # noqa: ARG002
        raise NotAffine("a concatenation after a reshape")

    def selected(self, channels: Sequence[int]) -> Gridded:
        kept = list(channels)
        m = grid_select(regridded(self.map, self.shape[1:]), kept)
        return replace(self, map=m, shape=(len(kept), *self.shape[1:]))

    def viewed(self, shape: Sequence[int]) -> Gridded:
        if prod(shape) != self.map.features:
            raise NotAffine("a reshape that moves numbers between images")
        return replace(self, shape=tuple(shape))

    def gridded(self) -> Gridded:
        return self

    def on_meta(self) -> Gridded:
        return replace(self, map=self.map.meta())

    def _filled(self, value: float) -> Tensor:
        return torch.full((self.channels,), float(value), dtype=torch.float64, device=self.device)


@dataclass(frozen=True, eq=False)
class Bundle:
    """Several values: the parts of a split, or a stack along a new first axis."""

    parts: tuple[Affine, ...]
    stacked: bool = False


def _joined(values: Sequence[Affine]) -> tuple[list[ConvMap], bool]:
    if any(v.arrangement != values[0].arrangement for v in values):
        raise NotAffine("values in several arrangements")
    ndim = max(v.map.ndim for v in values)
    last = any(v.last for v in values)
    if last and ndim:
        raise Inexact("channels on the last axis meet channels on axis 1")
    return [lifted(v.map, ndim) for v in values], last
