"""Scaling and shifting of channels: what is left of a norm that has moved."""

from __future__ import annotations

from torch import Tensor

from ..errors import NotAffine
from .registry import register_rule
from .value import Affine


def scaled_and_shifted(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``scale·x + shift`` for ``x`` ``(B, C, *grid)`` with one number per channel, ``(C,)`` each."""
    shape = (1, -1, *(1,) * (x.dim() - 2))
    return x * scale.view(shape).to(x) + shift.view(shape).to(x)


@register_rule(scaled_and_shifted)
def _scaled_and_shifted(x: Affine, scale: Tensor, shift: Tensor) -> Affine:
    if not isinstance(x, Affine):
        raise NotAffine("a norm of several values")
    return x.scaled(scale.double(), shift.double())
