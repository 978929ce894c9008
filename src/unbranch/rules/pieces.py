"""Scale and shift of channels, which replaces a norm that was moved."""

from __future__ import annotations

from torch import Tensor

from unbranch.errors import NotAffineError
from unbranch.rules.registry import register_rule
from unbranch.rules.value import Affine


def scaled_and_shifted(x: Tensor, scale: Tensor, shift: Tensor, axis: int = 1) -> Tensor:
    """Return ``scale·x + shift`` with one number per channel, ``(C,)`` each, for the channels on an axis of ``x``."""
    shape = (-1, *(1,) * (x.dim() - 1 - axis))
    return x * scale.view(shape).to(x) + shift.view(shape).to(x)


@register_rule(scaled_and_shifted, arranged=True)
def _scaled_and_shifted(x: Affine, scale: Tensor, shift: Tensor, axis: int = 1) -> Affine:
    if not isinstance(x, Affine):
        raise NotAffineError("a norm of several values")
    x.expect_channels(1 if axis == 1 else -1)
    return x.scaled(scale.to(x.dtype), shift.to(x.dtype))
