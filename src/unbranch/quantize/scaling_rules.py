"""Rules of ``ScalingMode`` for layers, functions of each number, sums and products."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from unbranch.quantize.calls import Call
from unbranch.quantize.labels import ANY, FIXED
from unbranch.quantize.layers import LAYER_NAMES, layer_call
from unbranch.quantize.scaling import (
    ADDED,
    MULTIPLIED,
    POSITIONS,
    KernelLabels,
    ScalingMode,
    along,
    channels_of,
    each,
    rule,
)

JOINED = "it is added to a value whose scale is fixed"


# Layers


@rule(*LAYER_NAMES)
def _layer(mode: ScalingMode, call: Call) -> Any:
    """``W' = W · s[out] / s[in]`` and ``b' = b · s[out]``."""
    layer = layer_call(mode, call)
    if layer is None:
        return NotImplemented
    before = channels_of(mode, mode.of(layer.x), layer.axis)
    behind = mode.labels.new(layer.out_channels)
    mode.scales.kernels[layer.stored.name] = KernelLabels(behind, before, layer.groups, layer.transposed)
    mode.layer(layer.stored, layer.by_input(before), layer.by_output(behind))
    _join_bias(mode, layer.bias, behind)
    return each(along(behind, layer.axis, layer.x.dim()))


def _join_bias(mode: ScalingMode, bias: Tensor | None, behind: Tensor) -> None:
    if bias is not None:
        mode.labels.join(mode.of(bias), behind, JOINED)


@rule("native_batch_norm", "cudnn_batch_norm", "miopen_batch_norm", "_native_batch_norm_legit_no_training")
def _batch_norm(mode: ScalingMode, call: Call) -> Any:
    """``γ (x - μ) / σ + β`` with ``γ' = γ · s[out] / s[in]``, ``μ' = s[in] μ`` and ``β' = s[out] β``; σ stays."""
    x, weight, bias, mean, variance = (call.arg(j) for j in range(5))
    if mean is None or ("no_training" not in call.func._schema.name and call.arg(5)):
        return NotImplemented
    stored = None if weight is None else mode.parameter(weight)
    if weight is not None and stored is None:
        return NotImplemented
    before = channels_of(mode, mode.of(x), 1)
    mode.labels.join(mode.of(mean), before, JOINED)
    mode.fix(variance, "a batch norm divides by it")
    behind = before if stored is None else mode.labels.new(len(mean))
    if stored is not None:
        mode.layer(stored, before, behind)
    _join_bias(mode, bias, behind)
    return each(along(behind, 1, x.dim()))


@rule("native_layer_norm")
def _layer_norm(mode: ScalingMode, call: Call) -> Any:
    """Only the affine part scales: ``γ' = γ · s[out]`` and ``β' = s[out] β``."""
    x, weight, bias = call.arg(0), call.arg(2), call.arg(3)
    return _norm(mode, x, weight, bias, torch.Size(call.arg(1)), 0)


@rule("native_group_norm")
def _group_norm(mode: ScalingMode, call: Call) -> Any:
    x, weight, bias = (call.arg(j) for j in range(3))
    return _norm(mode, x, weight, bias, x.shape[1:2], x.dim() - 2)


def _norm(mode: ScalingMode, x: Tensor, weight: Any, bias: Any, shape: torch.Size, ends: int) -> Any:
    stored = mode.parameter(weight)
    if stored is None:
        return NotImplemented
    mode.fix(x, "it is normalised by its own statistics")
    behind = mode.labels.new(math.prod(shape)).reshape(shape)
    mode.layer(stored, torch.full(shape, float(FIXED), dtype=torch.float64), behind)
    _join_bias(mode, bias, behind)
    return each(behind.reshape(*shape, *(1,) * ends))


# Functions of each number


@rule(
    "relu",
    "leaky_relu",
    "abs",
    "neg",
    "clone",
    "detach",
    "alias",
    "lift_fresh",
    "contiguous",
    "_unsafe_view",
    "dropout",
)
def _homogeneous(mode: ScalingMode, call: Call) -> Any:
    return each(mode.of(call.arg(0)))


@rule("_prelu_kernel", "prelu")
def _prelu(mode: ScalingMode, call: Call) -> Any:
    mode.fix(call.arg(1), "PReLU reads it")
    return each(mode.of(call.arg(0)))


@rule("_to_copy")
def _cast(mode: ScalingMode, call: Call) -> Any:
    if not (call.arg(0).is_floating_point() and call.result.is_floating_point()):
        return NotImplemented
    return each(mode.of(call.arg(0)))


@rule("clamp", "clamp_min", "clamp_max", "hardtanh", "threshold")
def _clamp(mode: ScalingMode, call: Call) -> Any:
    """Only bounds of zero and infinity are homogeneous."""
    bounds = [v for v in (*call.args[1:], *call.kwargs.values()) if v is not None]
    if any(isinstance(v, Tensor) or not (v == 0 or math.isinf(v)) for v in bounds):
        return NotImplemented
    return each(mode.of(call.arg(0)))


@rule("masked_fill")
def _masked_fill(mode: ScalingMode, call: Call) -> Any:
    value = call.arg(2)
    if isinstance(value, Tensor) or not (value == 0 or math.isinf(value)):
        return NotImplemented
    mode.fix(call.arg(1), "it is a condition")
    return each(mode.of(call.arg(0)))


# Sums and products


@rule("add", "sub", "maximum", "minimum")
def _sum(mode: ScalingMode, call: Call) -> Any:
    x, y = call.arg(0), call.arg(1)
    if not isinstance(y, Tensor):
        if y != 0:
            mode.fix(x, ADDED)
        return each(mode.of(x))
    return each(mode.labels.join(mode.of(x), mode.of(y), JOINED))


@rule("where")
def _where(mode: ScalingMode, call: Call) -> Any:
    if len(call.args) < 3 or not all(isinstance(call.arg(j), Tensor) for j in (1, 2)):
        return NotImplemented
    mode.fix(call.arg(0), "it is a condition")
    return each(mode.labels.join(mode.of(call.arg(1)), mode.of(call.arg(2)), JOINED))


@rule("mul")
def _mul(mode: ScalingMode, call: Call) -> Any:
    """A factor is a number, a parameter (a layer with one weight for each channel), or a gate that keeps its scale."""
    x, y = call.arg(0), call.arg(1)
    if not isinstance(y, Tensor):
        return each(mode.of(x))
    for value, factor in ((x, y), (y, x)):
        stored = mode.parameter(factor)
        if stored is not None and factor.numel() > 1 and value.dim() >= factor.dim() and mode.owner_of(value) is None:
            return _by_parameter(mode, value, factor, stored)
    a, b = mode.of(x), mode.of(y)
    if not (mode.labels.is_fixed(a) or mode.labels.is_fixed(b)):
        mode.fix(x if x.numel() < y.numel() else y, MULTIPLIED)
    return each(_product_labels(mode, a, b))


def _product_labels(mode: ScalingMode, a: Tensor, b: Tensor) -> Tensor:
    """Labels of a product of which one factor keeps its scale; a product with zero is zero."""
    value = b if mode.labels.is_fixed(a) and not mode.labels.is_fixed(b) else a
    return torch.where((a == ANY) | (b == ANY), float(ANY), value)


def _by_parameter(mode: ScalingMode, value: Tensor, factor: Tensor, stored: Any) -> Any:
    labels = mode.of(value)
    added = value.dim() - factor.dim()
    shape = (*(1,) * added, *factor.shape)
    if any(n not in (1, m) for n, m in zip(shape, value.shape, strict=True)):
        return NotImplemented
    shared = [axis for axis, n in enumerate(shape) if n == 1]
    before = mode.labels.reduced(labels, shared, POSITIONS).reshape(factor.shape)
    behind = mode.labels.new(factor.numel()).reshape(factor.shape)
    mode.layer(stored, before, behind)
    return each(behind)


@rule("div")
def _div(mode: ScalingMode, call: Call) -> Any:
    if call.kwargs.get("rounding_mode") is not None:
        return NotImplemented
    if isinstance(call.arg(1), Tensor):
        mode.fix(call.arg(1), "another value is divided by it")
    return each(mode.of(call.arg(0)))
