"""Branches merged while they train: outputs, gradients and running statistics stay, convolutions and memory go.

    BN(1×1 * x) + BN(x)                 (a·W + diag(a')) * x + b          one pointwise convolution, no norm
    BN(AVG(BNᵖ(1×1 * x)))               BN((a·W) * AVG(x) + border)       the average of x, then the 1×1
    BN(K×K * BNᵖ(1×1 * x))              BN((K ∘ a·W) * x + border)        one K×K convolution

a and b are known before anything is convolved (see ``moments``). ``border`` is what the constants that BNᵖ adds, b
inside and its value of zero around, become behind the average or the kernel: one map for all images.

A branch that isn't of this kind runs as it stands: a pointwise one with a step, too, since its output is small. So
does one where merging wouldn't pay, on maps with few positions, or would be seen from outside: with hooks, with norms
that don't use the statistics of the batch or that share them with other processes.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, reduce
from math import prod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbranch.blocks.fused_training.moments import Moments, moments, norm_behind, per_channel
from unbranch.blocks.layers import BorderBatchNorm, IdentityConv
from unbranch.blocks.parts import DilatedAvgPool
from unbranch.grids import AVG_POOL_LAYERS, CONV_FUNCTIONS, CONV_LAYERS, NORM_LAYERS, PAD_LAYERS, Ints, first_axis_first

_ENOUGH_POSITIONS = 8  # in a batch for each channel of a group: below, the covariance costs more than it saves
_ENOUGH_FOR_KERNELS = 4  # for each number that an output channel of the merged kernel has


def fused_sum(branches: Iterable[nn.Module], x: Tensor, groups: int) -> Tensor:
    """``Σ branch(x)`` of branches in training, ``(B, C_in, *size)`` to ``(B, C_out, *size')``."""
    source = _Source(x, groups)
    points: list[_Point] = []
    outputs: list[Tensor] = []
    for branch in branches:
        merged = _merged(branch, source)
        if isinstance(merged, _Point):
            points.append(merged)
        else:
            outputs.append(branch(x) if merged is None else merged)
    first, *others = [*outputs, *_pointwise(points, source)]
    return reduce(Tensor.add_, others[1:], first + others[0]) if others else first


@dataclass(eq=False)
class _Source:
    """What all branches read."""

    x: Tensor
    groups: int

    @property
    def width(self) -> int:
        """Channels of a group."""
        return self.x.shape[1] // self.groups

    @property
    def count(self) -> int:
        """Positions in the batch."""
        return self.x.numel() // self.x.shape[1]

    @cached_property
    def moments(self) -> Moments:
        return moments(self.x, self.groups)

    def pays(self, taps: int = 0) -> bool:
        """Whether there are positions enough for the covariance, and for a merged kernel of so many taps."""
        return self.count >= max(_ENOUGH_POSITIONS, _ENOUGH_FOR_KERNELS * taps) * self.width


# --- branches ----------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Point:
    """``BN(1×1 * x)``, or ``BN(x)`` where there is no convolution."""

    conv: nn.Module | None
    norm: nn.Module


def _merged(branch: nn.Module, source: _Source) -> _Point | Tensor | None:
    """What a branch merges into, or None if it has to run as it stands."""
    layers = list(branch) if type(branch) is nn.Sequential and not _has_hooks(branch) else []
    crop = cast(Any, layers.pop(0)).padding if layers and type(layers[0]) in _CROPS else ()
    kinds = tuple(map(_kind, layers))
    if kinds == ("pool", "norm") and not (crop and _pads(layers[0])):
        return _normed(layers[1], _average(source.x, layers[0], crop))
    if crop:
        return None
    if kinds in (("norm",), ("conv", "norm")):
        return _point(layers, source)
    if kinds == ("conv", "border", "pool", "norm"):
        return _average_behind(layers, source)
    if kinds in (("conv", "border", "conv", "norm"), ("identity", "border", "conv", "norm")):
        return _kernel_behind(layers, source)
    return None


_CROPS = tuple(PAD_LAYERS["zeros"].values())
_KINDS: dict[Any, str] = {
    **dict.fromkeys(CONV_LAYERS.values(), "conv"), **dict.fromkeys(NORM_LAYERS.values(), "norm"),
    **dict.fromkeys(AVG_POOL_LAYERS.values(), "pool"), DilatedAvgPool: "pool", IdentityConv: "identity",
}  # fmt: skip


def _kind(layer: nn.Module) -> str:
    """The kind of layer that merging knows, or "" for any other."""
    if _has_hooks(layer):
        return ""
    if type(layer) is BorderBatchNorm:
        return "border" if _kind(layer.bn) == "norm" else ""
    kind = _KINDS.get(type(layer), "")
    m = cast(Any, layer)
    if kind == "norm" and not (m.training and m.track_running_stats and m.momentum is not None):
        return ""
    if kind == "conv" and (m.bias is not None or m.padding_mode != "zeros" or isinstance(m.padding, str)):
        return ""
    if kind == "pool" and type(m) is not DilatedAvgPool and not _is_mean(m):
        return ""
    return kind


def _is_mean(pool: Any) -> bool:
    """Whether a pool is the mean over all taps of its kernel, the border's zeros among them."""
    sizes = (pool.kernel_size, pool.stride, pool.padding)
    plain = not pool.ceil_mode and pool.count_include_pad and getattr(pool, "divisor_override", None) is None
    return plain and all(isinstance(size, tuple) for size in sizes)


def _has_hooks(module: nn.Module) -> bool:
    hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
    return any(hooks)


def _is_pointwise(conv: nn.Module, groups: int) -> bool:
    c = cast(Any, conv)
    return prod(c.kernel_size) == 1 and not _pads(c) and c.groups == groups


def _pads(layer: nn.Module) -> bool:
    return any(getattr(layer, "padding", ()))


def _steps(conv: nn.Module) -> bool:
    return any(s != 1 for s in cast(Any, conv).stride)


def _point(layers: list[nn.Module], source: _Source) -> _Point | None:
    """A norm alone, or behind a pointwise convolution without a step."""
    *convs, norm = layers
    conv = convs[0] if convs else None
    possible = conv is None or (_is_pointwise(conv, source.groups) and not _steps(conv))
    return _Point(conv, norm) if possible and source.pays() else None


def _average_behind(layers: list[nn.Module], source: _Source) -> Tensor | None:
    """``BN(AVG(BNᵖ(1×1 * x)))``: the two linear layers change places."""
    conv, border, pool, norm = layers
    if not _is_pointwise(conv, source.groups) or _steps(conv) or _pads(pool):
        return None
    if not source.pays():
        return None
    x, amounts = source.x, cast(BorderBatchNorm, border).border
    kernel, inside, outside = _behind(conv, cast(BorderBatchNorm, border), source)
    shares = pool(F.pad(x.new_ones(1, 1, *x.shape[2:]), amounts))  # (1, 1, *size') of each window inside the map
    y = _convolve(_average(x, pool, amounts), kernel, source.groups)
    return _normed(norm, y + (shares * (inside - outside) + outside).to(y.dtype))


def _kernel_behind(layers: list[nn.Module], source: _Source) -> Tensor | None:
    """``BN(K×K * BNᵖ(1×1 * x))``: the two kernels are one."""
    first, border, second, norm = layers
    conv, taps = cast(Any, second), prod(cast(Any, second).kernel_size)
    if _pads(conv) or conv.groups != source.groups or not source.pays(taps):
        return None
    if not isinstance(first, IdentityConv) and (not _is_pointwise(first, source.groups) or _steps(first)):
        return None
    x, amounts = source.x, cast(BorderBatchNorm, border).border
    kernel, inside, outside = _behind(first, cast(BorderBatchNorm, border), source)
    with torch.autocast(x.device.type, enabled=False):
        constant = F.pad((inside - outside).expand(1, -1, *x.shape[2:]), amounts) + outside  # (1, M, *size + border)
        groups, outer = source.groups, conv.weight.to(kernel.dtype)
        left = outer.reshape(groups, conv.out_channels // groups, -1, taps)  # (g, O/g, M/g, taps)
        right = kernel.reshape(groups, left.shape[2], source.width)  # (g, M/g, C/g)
        whole = torch.einsum("gomt,gmc->goct", left, right).reshape(conv.out_channels, source.width, *conv.kernel_size)
        around = conv._conv_forward(constant, outer, None)  # (1, O, *size')
    function = CONV_FUNCTIONS[x.dim() - 2]
    padding = tuple(low for low, _ in first_axis_first(amounts))  # as much on either side
    y = function(x, whole.to(conv.weight.dtype), None, conv.stride, padding, conv.dilation, groups)
    return _normed(norm, y + around.to(y.dtype))


def _behind(conv: nn.Module, border: BorderBatchNorm, source: _Source) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel ``(M, C/g)`` of ``BNᵖ(1×1 * x)``, and what it adds inside and is outside, ``(1, M, 1…)``."""
    rank = source.x.dim()
    weight = conv.kernel() if isinstance(conv, IdentityConv) else cast(Any, conv).weight
    with torch.autocast(source.x.device.type, enabled=False):
        kernel, shift = norm_behind(border.bn, weight, source.moments, source.count)
    return kernel, per_channel(shift, rank), per_channel(border.of_zero().to(shift.dtype), rank)


# --- what is left to compute -------------------------------------------------------------------------


def _pointwise(points: list[_Point], source: _Source) -> Iterable[Tensor]:
    """The pointwise branches as one convolution, or each norm by itself where there are no convolutions."""
    if not points or (source.width > 1 and all(point.conv is None for point in points)):
        return [_normed(point.norm, source.x) for point in points]  # it costs less than the covariance
    x = source.x
    with torch.autocast(x.device.type, enabled=False):
        weights = [None if point.conv is None else cast(Any, point.conv).weight for point in points]
        merged = [norm_behind(p.norm, w, source.moments, source.count) for p, w in zip(points, weights, strict=True)]
        kernel, shift = (reduce(torch.add, parts) for parts in zip(*merged, strict=True))
    y = _convolve(x, kernel, source.groups)
    return [y.add_(per_channel(shift, x.dim()).to(y.dtype))]  # a convolution's own bias is slower


def _convolve(x: Tensor, kernel: Tensor, groups: int) -> Tensor:
    """A pointwise convolution ``(O, C/g)`` in the dtype of its input, or in autocast's."""
    weight = kernel.view(*kernel.shape, *(1,) * (x.dim() - 2)).to(x.dtype)
    return CONV_FUNCTIONS[x.dim() - 2](x, weight, groups=groups)


def _average(x: Tensor, pool: nn.Module, padding: Ints) -> Tensor:
    """What an average pool makes of the input padded with zeros.

    On the CPU a depthwise convolution is mostly the faster one, several times so in the default memory format, and
    keeps no padded copy for the gradient.
    """
    p, ndim = cast(Any, pool), x.dim() - 2
    frames = first_axis_first(padding)
    even = all(low == high >= 0 for low, high in frames)
    if x.device.type != "cpu" or ndim == 3 or not even:
        return cast(Tensor, pool(F.pad(x, padding) if any(padding) else x))
    size = p.kernel if isinstance(pool, DilatedAvgPool) else p.kernel_size
    kernel = x.new_full((x.shape[1], 1, *size), 1 / prod(size))
    amounts = tuple(low for low, _ in frames) or getattr(pool, "padding", (0,) * ndim)
    return CONV_FUNCTIONS[ndim](x, kernel, None, p.stride, amounts, getattr(pool, "dilation", 1), x.shape[1])


def _normed(norm: nn.Module, y: Tensor) -> Tensor:
    return cast(Tensor, norm(y))
