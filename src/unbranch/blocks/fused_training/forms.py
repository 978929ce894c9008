"""The forms of branches that can be fused in training, and the parser that recognises them.

    PointwiseNorm           BN(1×1 * x) or BN(x)
    AverageNorm             BN(AVG(x)), of padded or cropped x
    PointwiseAverageNorm    BN(AVG(BNᵖ(1×1 * x)))
    PointwiseKernelNorm     BN(K×K * BNᵖ(1×1 * x))

The parser looks at types and attributes of layers only. It accepts no subclass, whose forward may differ; no layer
with hooks, which fusing would skip; and no norm that doesn't use and update statistics of the batch.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias, cast

from torch import nn

from unbranch.blocks.layers import BorderBatchNorm, IdentityConv
from unbranch.blocks.parts import DilatedAvgPool
from unbranch.grids import AVG_POOL_LAYERS, CONV_LAYERS, NORM_LAYERS, PAD_LAYERS, Ints
from unbranch.large_kernels import LargeConv2d

# --- forms of branches -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class PointwiseNorm:
    """``BN(1×1 * x)``, or ``BN(x)`` if ``conv`` is None."""

    conv: nn.Module | None
    norm: nn.Module


@dataclass(frozen=True, eq=False)
class AverageNorm:
    """``BN(AVG(x))``, where x is padded by ``padding`` in F.pad's order."""

    padding: Ints
    pool: nn.Module
    norm: nn.Module


@dataclass(frozen=True, eq=False)
class PointwiseAverageNorm:
    """``BN(AVG(BNᵖ(1×1 * x)))``; the pool doesn't pad."""

    point: nn.Module
    border: BorderBatchNorm
    pool: nn.Module
    norm: nn.Module


@dataclass(frozen=True, eq=False)
class PointwiseKernelNorm:
    """``BN(K×K * BNᵖ(1×1 * x))``; the K×K doesn't pad."""

    point: nn.Module
    border: BorderBatchNorm
    conv: nn.Module
    norm: nn.Module


Form: TypeAlias = PointwiseNorm | AverageNorm | PointwiseAverageNorm | PointwiseKernelNorm


def form_of(branch: nn.Module, groups: int) -> Form | None:
    """Return the form of a branch of a block with this number of groups, or None if it can't be fused."""
    if type(branch) is not nn.Sequential or _has_hooks(branch):
        return None
    match [_stage_of(layer) for layer in branch]:
        case [_Norm(norm)]:
            return PointwiseNorm(None, norm)
        case [_Conv(conv), _Norm(norm)] if _is_pointwise(conv, groups):
            return PointwiseNorm(conv, norm)
        case [_Pool(pool), _Norm(norm)]:
            return AverageNorm((), pool, norm)
        case [_Pad(pad), _Pool(pool), _Norm(norm)] if not _pads(pool):
            return AverageNorm(cast(Any, pad).padding, pool, norm)
        case [_Conv(point), _BorderNorm(border), _Pool(pool), _Norm(norm)] if _is_pointwise(
            point, groups
        ) and not _pads(pool):
            return PointwiseAverageNorm(point, cast(BorderBatchNorm, border), pool, norm)
        case [_Conv(point) | _Identity(point), _BorderNorm(border), _Conv(conv), _Norm(norm)] if (
            _is_pointwise(point, groups) and not _pads(conv) and conv.groups == groups
        ):
            return PointwiseKernelNorm(point, cast(BorderBatchNorm, border), conv, norm)
    return None


# --- stages of a branch ------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Stage:
    """A layer whose arithmetic is known."""

    layer: nn.Module


class _Conv(_Stage):
    """A convolution without bias, with zero padding in numbers."""


class _Identity(_Stage):
    """An ``IdentityConv``."""


class _Norm(_Stage):
    """A batch norm that uses statistics of the batch and updates running statistics with a fixed momentum."""


class _BorderNorm(_Stage):
    """A ``BorderBatchNorm`` with such a norm."""


class _Pool(_Stage):
    """The mean over all taps of a kernel, padding included."""


class _Pad(_Stage):
    """Zero padding, or cropping."""


_STAGES: dict[Any, type[_Stage]] = {
    **dict.fromkeys(CONV_LAYERS.values(), _Conv), **dict.fromkeys(NORM_LAYERS.values(), _Norm),
    **dict.fromkeys(AVG_POOL_LAYERS.values(), _Pool), **dict.fromkeys(PAD_LAYERS["zeros"].values(), _Pad),
    DilatedAvgPool: _Pool, IdentityConv: _Identity, BorderBatchNorm: _BorderNorm,
    LargeConv2d: _Conv,
}  # fmt: skip


def _stage_of(layer: nn.Module) -> _Stage | None:
    kind = _STAGES.get(type(layer))
    if kind is None or _has_hooks(layer):
        return None
    m = cast(Any, layer)
    known = (
        (kind is not _Norm or (m.training and m.track_running_stats and m.momentum is not None))
        and (kind is not _BorderNorm or isinstance(_stage_of(m.bn), _Norm))
        and (kind is not _Conv or (m.bias is None and m.padding_mode == "zeros" and not isinstance(m.padding, str)))
        and (kind is not _Pool or type(m) is DilatedAvgPool or _is_mean(m))
    )
    return kind(layer) if known else None


def _is_mean(pool: Any) -> bool:
    """Whether an average pool divides by the number of its taps everywhere; its sizes must be tuples."""
    sizes = (pool.kernel_size, pool.stride, pool.padding)
    plain = not pool.ceil_mode and pool.count_include_pad and getattr(pool, "divisor_override", None) is None
    return plain and all(isinstance(size, tuple) for size in sizes)


def _has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _is_pointwise(layer: Any, groups: int) -> bool:
    """Whether a convolution has one tap, the block's groups, stride 1 and no padding."""
    if isinstance(layer, IdentityConv):
        return True
    single = prod(layer.kernel_size) == 1 and all(s == 1 for s in layer.stride)
    return single and not _pads(layer) and layer.groups == groups


def _pads(layer: nn.Module) -> bool:
    return any(getattr(layer, "padding", ()))
