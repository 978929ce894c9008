"""Rules of activations whose arguments make them the identity."""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unbranch.errors import NotAffineError
from unbranch.rules.registry import register_method, register_rule
from unbranch.rules.value import Affine


def _identity_if(same: bool, x: Affine) -> Affine:
    if not same:
        raise NotAffineError("an activation")
    return x


def _all_ones(slopes: Any) -> bool:
    return isinstance(slopes, Tensor) and not slopes.is_meta and bool((slopes == 1).all())


def _unbounded(low: Any, high: Any) -> bool:
    return low in (None, -inf) and high in (None, inf) if _are_numbers(low, high) else False


def _are_numbers(*values: Any) -> bool:
    return all(isinstance(v, int | float | None) for v in values)


@register_rule(nn.LeakyReLU)
def _leaky_relu_layer(module: nn.LeakyReLU, x: Affine) -> Affine:
    return _identity_if(module.negative_slope == 1, x)


@register_rule(nn.PReLU)
def _prelu_layer(module: nn.PReLU, x: Affine) -> Affine:
    return _identity_if(_all_ones(module.weight), x)


@register_rule(nn.RReLU)
def _rrelu_layer(module: nn.RReLU, x: Affine) -> Affine:
    return _identity_if(module.lower == module.upper == 1, x)


@register_rule(nn.Hardtanh)
def _hardtanh_layer(module: nn.Hardtanh, x: Affine) -> Affine:
    return _identity_if(_unbounded(module.min_val, module.max_val), x)


@register_rule(nn.Softshrink, nn.Hardshrink)
def _shrink_layer(module: Any, x: Affine) -> Affine:
    return _identity_if(module.lambd == 0, x)


@register_rule(F.leaky_relu, kind="view")
def _leaky_relu(x: Affine, negative_slope: float = 0.01, inplace: bool = False) -> Affine:  # noqa: ARG001
    return _identity_if(_are_numbers(negative_slope) and negative_slope == 1, x)


@register_rule(F.hardtanh, kind="view")
def _hardtanh(x: Affine, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False) -> Affine:  # noqa: ARG001
    return _identity_if(_unbounded(min_val, max_val), x)


@register_rule(torch.prelu, F.prelu, kind="view")
def _prelu(x: Affine, weight: Any) -> Affine:
    return _identity_if(_all_ones(weight), x)


@register_rule(torch.clamp, torch.clip, kind="view")
def _clamp(x: Affine, min: Any = None, max: Any = None) -> Affine:
    return _identity_if(_unbounded(min, max), x)


register_method("clamp", "clip", "clamp_", "clip_", kind="view")(_clamp)
