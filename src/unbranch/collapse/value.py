"""What a rule receives in place of a tensor: the operator that gives it from the region's root."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..algebra import ConvMap, add, compose, concat, lifted, pad, scale_shift, select
from ..errors import Inexact


@dataclass(frozen=True, eq=False)
class Affine:
    """A tensor that is ``map`` of the root.

    Args:
        map: the operator.
        last: whether channels lie on the last axis of a tensor of any rank (``nn.Linear``) instead of
            axis 1, followed by the grid.
    """

    map: ConvMap
    last: bool = False

    @property
    def channels(self) -> int:
        return self.map.out_channels

    def then(self, outer: ConvMap, *, last: bool = False) -> Affine:
        """Apply one more map: ``outer(self)``."""
        self._check_axis(outer.ndim, last)
        inner = lifted(self.map, outer.ndim) if outer.ndim else self.map
        return Affine(compose(outer, inner), last or self.last)

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

    def plus(self, *others: Affine) -> Affine:
        """The sum of values of one root."""
        maps, last = _joined((self, *others))
        return Affine(add(*maps), last)

    def joined(self, *others: Affine) -> Affine:
        """Concatenation along the channels."""
        maps, last = _joined((self, *others))
        return Affine(concat(*maps), last)

    def selected(self, channels: Sequence[int]) -> Affine:
        """Some of the channels."""
        return replace(self, map=select(self.map, channels))

    def _check_axis(self, ndim: int, last: bool) -> None:
        if (self.last and ndim) or (last and self.map.ndim):
            raise Inexact("channels on the last axis meet channels on axis 1")

    def _filled(self, value: float) -> Tensor:
        vectors = (self.map.bias, self.map.gain, self.map.weight)
        device = next((v.device for v in vectors if v is not None and not v.is_meta), None)
        return torch.full((self.channels,), float(value), dtype=torch.float64, device=device)


@dataclass(frozen=True, eq=False)
class Bundle:
    """Several values: the parts of a split, or a stack along a new first axis."""

    parts: tuple[Affine, ...]
    stacked: bool = False


def _joined(values: Sequence[Affine]) -> tuple[list[ConvMap], bool]:
    ndim = max(v.map.ndim for v in values)
    last = any(v.last for v in values)
    if last and ndim:
        raise Inexact("channels on the last axis meet channels on axis 1")
    return [lifted(v.map, ndim) for v in values], last
