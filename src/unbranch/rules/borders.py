"""Padding with one value per channel, and writing one value per channel into a border."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from unbranch.errors import NotAffineError
from unbranch.grids import first_axis_first
from unbranch.rules.registry import register_rule
from unbranch.rules.value import Affine


def bordered(x: Tensor, pad: Sequence[int], value: Tensor | float) -> Tensor:
    """Return ``x`` ``(B, C, *grid)`` padded with ``value``, a number or one per channel ``(C,)``.

    ``pad`` is in ``F.pad``'s order; raises as ``F.pad``.
    """
    if not isinstance(value, Tensor):
        return F.pad(x, list(pad), value=float(value))
    inside = F.pad(torch.ones_like(x[:1, :1], dtype=torch.bool), list(pad), value=False)
    return torch.where(inside, F.pad(x, list(pad)), value.reshape(1, -1, *(1,) * (x.dim() - 2)).to(x))


def overwritten(x: Tensor, margins: Sequence[int], value: Tensor | float) -> Tensor:
    """Return ``x`` ``(B, C, *grid)`` with its border replaced by ``value``, a number or one per channel ``(C,)``.

    ``margins`` are widths of the border in ``F.pad``'s order; they may cover the whole image.
    """
    image = x.clone()
    filled = value.reshape(1, -1, *(1,) * (x.dim() - 2)).to(x) if isinstance(value, Tensor) else value
    for j in range(0, len(margins), 2):
        axis, size = x.dim() - 1 - j // 2, x.shape[x.dim() - 1 - j // 2]
        for start, width in ((0, margins[j]), (max(0, size - margins[j + 1]), margins[j + 1])):
            image.narrow(axis, start, min(width, size)).copy_(torch.as_tensor(filled, dtype=x.dtype, device=x.device))
    return image


@register_rule(bordered)
def _bordered(x: Affine, pad: Sequence[int], value: Tensor | float) -> Affine:
    if not isinstance(x, Affine):
        raise NotAffineError("a border around something that isn't linear in the input")
    lo, hi = _sides(pad, x.ndim)
    if isinstance(value, Tensor):
        vector = value.to(x.dtype).reshape(-1)
        value = vector.expand(x.channels) if vector.numel() == 1 else vector
    return x.padded(lo, hi, value)


@register_rule(overwritten)
def _overwritten(x: Affine, margins: Sequence[int], value: Tensor | float) -> Affine:
    if not isinstance(x, Affine):
        raise NotAffineError("a border of something that isn't linear in the input")
    lo, hi = _sides(margins, x.ndim)
    return _bordered(x.padded([-n for n in lo], [-n for n in hi]), margins, value)


def _sides(pad: Sequence[int], ndim: int) -> tuple[list[int], list[int]]:
    """Return amounts in ``F.pad``'s order as those before and after each axis of the grid."""
    pairs = first_axis_first(pad)
    pairs = ((0, 0),) * (ndim - len(pairs)) + pairs
    return [lo for lo, _ in pairs], [hi for _, hi in pairs]
