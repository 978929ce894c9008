"""The values that rules receive in place of tensors: affine maps of the interpretation's root."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unbranch.algebra import (
    AffineMap,
    ConvMap,
    GridMap,
    add,
    as_pointwise,
    compose,
    concat,
    pad,
    reshape,
    scale_shift,
    select,
    to_grid,
)
from unbranch.deprecation import RenamedAttribute, warn_deprecated
from unbranch.errors import InexactError, NotAffineError
from unbranch.rules.arrangement import Arrangement, Shapes


@dataclass(frozen=True, eq=False)
class Affine:
    """A tensor that is an affine map of the root, an earlier tensor.

    Args:
        map: a ``ConvMap``, or a ``GridMap`` after a reshape to images of a fixed size.
        channel_axis: 1, or -1 for channels on the last axis of a tensor of any rank (``nn.Linear``).
        root_grid: size of the root's grid, if the graph fixes it, else None.
        rank: of the root, None if unknown.
        arrangement: how the tensor's axes are composed of the root's, None if they are the same. ``map`` is always
            for the root's axes; operations on other axes must be pointwise.
    """

    map: AffineMap
    channel_axis: int = 1
    root_grid: tuple[int, ...] | None = None
    rank: int | None = None
    arrangement: Arrangement | None = None

    last = RenamedAttribute("channel_axis", lambda axis: axis == -1)

    @property
    def conv(self) -> ConvMap:
        """The map as a ``ConvMap``.

        Raises:
            NotAffineError: if the tensor has been reshaped to images of a fixed size.
        """
        if not isinstance(self.map, ConvMap):
            raise NotAffineError("a layer on grids of any size after a reshape to a fixed one")
        return self.map

    @property
    def is_grid(self) -> bool:
        """Whether the tensor has been reshaped to images of a fixed size."""
        return isinstance(self.map, GridMap)

    @property
    def channels(self) -> int:
        return self.map.out_channels

    @property
    def ndim(self) -> int:
        """Number of grid dimensions of the tensor."""
        return self.map.out_ndim

    @property
    def device(self) -> torch.device:
        return self.map.device

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the laws compute in."""
        return self.map.dtype

    # --- where the channels are ------------------------------------------------------------------

    def expect_channels(self, axis: int | None = None, *, last: bool | None = None) -> None:
        """Check that the channels are on axis 1 or -1, as an operation requires.

        Raises:
            NotAffineError: if they are on another axis.
        """
        axis = _axis(axis, last)
        if self.is_grid:
            return  # ``then`` compares shapes
        if self.arrangement is not None:
            fits = self.arrangement.channel_axis == (self.arrangement.rank - 1 if axis == -1 else 1)
        elif axis == -1:
            fits = self.channel_axis == -1 or (self.ndim == 0 and self.rank in (None, 2))
        else:
            fits = self.channel_axis == 1 or self.rank in (None, 2)
        if not fits:
            raise NotAffineError("a layer of another axis than that of the channels")

    @property
    def axes(self) -> int:
        """Number of axes of the tensor; if the rank is unknown, a batch axis is assumed."""
        if self.arrangement is not None:
            return self.arrangement.rank
        return self.rank or 2 if self.channel_axis == -1 else self.ndim + 2

    def channel_axis_from_right(self) -> int:
        """Return the axis of the channels counted from the right, 1 for the last.

        Raises:
            NotAffineError: if this axis has other numbers, too.
        """
        if self.arrangement is None:
            return 1 if self.channel_axis == -1 else self.ndim + 1
        if self.arrangement.channel_axis is None:
            raise NotAffineError("channels that share an axis")
        return self.arrangement.rank - self.arrangement.channel_axis

    def arranged(self, shapes: Shapes) -> Arrangement:
        """Return how the axes of the tensor are composed of the root's.

        Args:
            shapes: of the tensor, for inputs of two sizes.

        Raises:
            NotAffineError: if the shapes don't match the map.
        """
        if self.arrangement is not None:
            return self.arrangement
        if self.is_grid:
            raise NotAffineError("a transposition after a reshape")
        rank = len(shapes[0])
        last = self.channel_axis == -1
        axis = rank - 1 if last else 1
        fits = rank == self.rank and (last or rank == self.ndim + 2)
        if not fits or any(len(s) != rank or s[axis] != self.channels for s in shapes):
            raise NotAffineError("a tensor of another rank")
        return Arrangement.of(shapes, axis)

    def rearranged(self, arrangement: Arrangement) -> Affine:
        """Return the value with another arrangement of its axes."""
        return replace(self, arrangement=None if arrangement.is_own else arrangement)

    # --- the laws --------------------------------------------------------------------------------

    def then(self, outer: ConvMap, *, channel_axis: int | None = None, last: bool | None = None) -> Affine:
        """Return ``outer(self)`` for a map of the channels on axis 1 or -1."""
        axis = _axis(channel_axis, last)
        if self.is_grid:
            return self._then_on_images(outer, axis)
        if self.arrangement is not None:
            return self._then_everywhere(outer, axis)
        if self.rank is not None:
            self.expect_channels(axis)
        self._check_axis(outer.ndim, axis)
        inner = as_pointwise(self.conv, outer.ndim) if outer.ndim else self.conv
        return replace(self, map=compose(outer, inner), channel_axis=min(axis, self.channel_axis))

    def _then_on_images(self, outer: ConvMap, axis: int) -> Affine:
        """Return ``outer(self)`` after a reshape to images of a fixed size."""
        if outer.ndim != self.ndim or (axis == -1 and self.ndim) or outer.in_channels != self.channels:
            raise NotAffineError("a layer of other dimensions after a reshape")
        return replace(self, map=compose(outer, self.map))

    def _then_everywhere(self, outer: ConvMap, axis: int) -> Affine:
        """Return ``outer(self)`` for a pointwise map and any arrangement of the points."""
        self.expect_channels(axis)
        assert self.arrangement is not None
        if not outer.pointwise or outer.ndim != (0 if axis == -1 else self.arrangement.rank - 2):
            raise NotAffineError("a kernel on a grid that isn't the root's")
        n = self.ndim
        flat = outer.weight.reshape(*outer.weight.shape[:2], *(1,) * n)
        one, zero = (1,) * n, (0,) * n
        here = ConvMap(flat, outer.bias, one, one, zero, zero, outer.groups, gain=outer.gain, dtype=outer.dtype)
        return replace(self, map=compose(here, self.map))

    def scaled(self, scale: Tensor | None = None, shift: Tensor | None = None) -> Affine:
        """Return ``scale·self + shift``, per channel, ``(C,)`` each."""
        return replace(self, map=scale_shift(self.map, scale, shift))

    def times(self, factor: float) -> Affine:
        """Return ``factor·self``."""
        return self if factor == 1 else self.scaled(self._filled(factor))

    def shifted(self, amount: float) -> Affine:
        """Return ``self + amount``, the same for every channel."""
        return self if amount == 0 else self.scaled(shift=self._filled(amount))

    def padded(
        self, lo: Sequence[int], hi: Sequence[int], value: Tensor | float = 0.0, padding_mode: str = "zeros"
    ) -> Affine:
        """Return the value padded along the grid; see ``algebra.pad``.

        Args:
            lo, hi: amounts before and after each axis; negative ones crop.
            value: a number, or one per channel ``(C,)``.
            padding_mode: one of ``algebra.PADDING_MODES``.
        """
        if self.is_grid:
            raise NotAffineError("padding after a reshape")
        self._check_axis(len(lo), 1)
        number = not isinstance(value, Tensor)
        fill = (self._filled(value) if value else None) if number else value  # type: ignore[arg-type]
        return replace(self, map=pad(as_pointwise(self.conv, len(lo)), lo, hi, fill, padding_mode))  # type: ignore[arg-type]

    def plus(self, *others: Affine) -> Affine:
        """Return the sum of values of one root."""
        maps, axis = _aligned((self, *others), "a sum of tensors of different shapes")
        return replace(self, map=add(*maps), channel_axis=axis)

    def concat(self, *others: Affine) -> Affine:
        """Return the concatenation of values of one root along the channels."""
        if any(v.is_grid for v in (self, *others)):
            raise NotAffineError("a concatenation after a reshape")
        maps, axis = _aligned((self, *others), "")
        return replace(self, map=concat(*maps), channel_axis=axis)

    def selected(self, channels: Sequence[int]) -> Affine:
        """Return some of the channels."""
        return replace(self, map=select(self.map, channels))

    def reshape(self, shape: Sequence[int]) -> Affine:
        """Return the value reshaped to images of a fixed shape, ``(B, *shape)``."""
        m = self.on_grid().map
        assert isinstance(m, GridMap)
        if torch.Size(shape).numel() != m.features:
            raise NotAffineError("a reshape that moves numbers between images")
        return replace(self, map=reshape(m, shape[1:]))

    def on_grid(self) -> Affine:
        """Return the same value with a ``GridMap``.

        Raises:
            NotAffineError: if the size of the root's grid is unknown.
        """
        if self.is_grid:
            return self
        known = self.root_grid is not None and self.channel_axis == 1 and self.arrangement is None
        if not known or self.root_grid is None or len(self.root_grid) != self.ndim:
            raise NotAffineError("a reshape of a tensor whose size depends on the input")
        return replace(self, map=to_grid(self.conv, self.root_grid))

    def on_meta(self) -> Affine:
        """Return the same value with its map on the meta device."""
        return replace(self, map=self.map.meta())

    def _check_axis(self, ndim: int, axis: int) -> None:
        if self.arrangement is not None:
            raise NotAffineError("points in another arrangement than the root's")
        if (self.channel_axis == -1 and ndim) or (axis == -1 and self.ndim):
            raise InexactError("an operation on channels of axis 1 combined with one on channels of the last axis")

    def _filled(self, value: float) -> Tensor:
        vectors = (self.map.bias, self.map.gain, self.map.weight) if isinstance(self.map, ConvMap) else ()
        device = next((v.device for v in vectors if v is not None and not v.is_meta), None)
        return torch.full((self.channels,), float(value), dtype=self.dtype, device=device)

    bordered = RenamedAttribute("padded")
    joined = RenamedAttribute("concat")
    viewed = RenamedAttribute("reshape")


@dataclass(frozen=True, eq=False)
class TupleValue:
    """Several values: the parts of a split, or a stack along a new first axis."""

    parts: tuple[Affine, ...]
    stacked: bool = False


def _axis(axis: int | None, last: bool | None) -> int:
    """Return the axis of the channels, 1 or -1, also from the deprecated argument ``last``."""
    if last is not None:
        warn_deprecated("the argument `last` is deprecated, use `channel_axis=-1`", frames=2)
        return -1 if last else 1
    if axis not in (None, 1, -1):
        raise ValueError(f"`channel_axis` must be 1 or -1, got {axis}")
    return 1 if axis is None else axis


def _aligned(values: Sequence[Affine], reshaped: str) -> tuple[list[AffineMap], int]:
    """Return the maps of values of one root with equal numbers of dimensions, and the axis of their channels."""
    if any(v.is_grid for v in values):
        values = [v.on_grid() for v in values]
        if len({v.map.shape for v in values if isinstance(v.map, GridMap)}) > 1:
            raise NotAffineError(reshaped)
        return [v.map for v in values], 1
    if any(v.arrangement != values[0].arrangement for v in values):
        raise NotAffineError("values in several arrangements")
    ndim = max(v.ndim for v in values)
    axis = min(v.channel_axis for v in values)
    if axis == -1 and ndim:
        raise InexactError("an operation on channels of axis 1 combined with one on channels of the last axis")
    return [as_pointwise(v.conv, ndim) for v in values], axis
