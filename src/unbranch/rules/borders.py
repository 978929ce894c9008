"""Padding with one value per channel: what writing a constant into a border amounts to."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import NotAffine
from .registry import register_rule
from .value import Affine


def bordered(x: Tensor, pad: Sequence[int], value: Tensor | float) -> Tensor:
    """``x`` ``(B, C, *grid)`` padded as by ``F.pad`` with ``value``, a number or one for each channel.

    Errors are those of ``F.pad``.
    """
    if not isinstance(value, Tensor):
        return F.pad(x, list(pad), value=float(value))
    inside = F.pad(torch.ones_like(x[:1, :1], dtype=torch.bool), list(pad), value=False)
    return torch.where(inside, F.pad(x, list(pad)), value.reshape(1, -1, *(1,) * (x.dim() - 2)).to(x))


@register_rule(bordered)
def _bordered(x: Affine, pad: Sequence[int], value: Tensor | float) -> Affine:
    if not isinstance(x, Affine):
        raise NotAffine("a border around something that isn't linear in the input")
    pairs = [tuple(pad[j : j + 2]) for j in range(0, len(pad), 2)]
    pairs = (pairs + [(0, 0)] * (x.ndim - len(pairs)))[::-1]
    if isinstance(value, Tensor):
        vector = value.double().reshape(-1)
        value = vector.expand(x.channels) if vector.numel() == 1 else vector
    return x.bordered([lo for lo, _ in pairs], [hi for _, hi in pairs], value)
