"""The sum of branches in training, from fewer convolutions: same outputs, gradients and running statistics.

    BN(1×1 * x) + BN(x)                 (a·W + diag(a')) * x + b          one pointwise convolution, no norm
    BN(AVG(BNᵖ(1×1 * x)))               BN((a·W) * AVG(x) + border)       the average of x, then the 1×1
    BN(K×K * BNᵖ(1×1 * x))              BN((K ∘ a·W) * x + border)        one K×K convolution

a and b follow from statistics of x, before any convolution (see ``moments``). ``border`` is the contribution of the
constants that BNᵖ adds, b inside the map and its output for zero around it; it is the same for all images.

Other branches are computed as usual, and so are these if there are too few positions for fusing to be faster.
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

from unbranch.blocks.fused_training.forms import (
    AverageNorm,
    PointwiseAverageNorm,
    PointwiseKernelNorm,
    PointwiseNorm,
    form_of,
)
from unbranch.blocks.fused_training.moments import Moments, fold_norm, moments, per_channel
from unbranch.blocks.layers import BorderBatchNorm, IdentityConv
from unbranch.blocks.parts import DilatedAvgPool
from unbranch.grids import CONV_FUNCTIONS, Ints, first_axis_first

_MIN_POSITIONS = 8  # per channel of a group: with fewer, the covariance costs more than it saves
_MIN_POSITIONS_PER_TAP = 4  # per weight of an output channel of the fused kernel


def fused_sum(branches: Iterable[nn.Module], x: Tensor, groups: int) -> Tensor:
    """Return ``Σ branch(x)`` of branches in training, ``(B, C_in, *size)`` to ``(B, C_out, *size')``."""
    source = _Source(x, groups)
    points: list[PointwiseNorm] = []
    outputs: list[Tensor] = []
    for branch in branches:
        match form_of(branch, groups):
            case PointwiseNorm() as point if source.pays():
                points.append(point)
            case AverageNorm(padding, pool, norm):
                outputs.append(_normed(norm, _average(x, pool, padding)))
            case PointwiseAverageNorm() as form if source.pays():
                outputs.append(_pointwise_average(form, source))
            case PointwiseKernelNorm() as form if source.pays(prod(cast(Any, form.conv).kernel_size)):
                outputs.append(_pointwise_kernel(form, source))
            case _:
                outputs.append(branch(x))
    first, *others = [*outputs, *_pointwise(points, source)]
    return reduce(Tensor.add_, others[1:], first + others[0]) if others else first


@dataclass(eq=False)
class _Source:
    """The input of all branches ``(B, C_in, *size)``."""

    x: Tensor
    groups: int

    @property
    def width(self) -> int:
        """Channels per group."""
        return self.x.shape[1] // self.groups

    @property
    def count(self) -> int:
        """Positions in the batch, ``B·|size|``."""
        return self.x.numel() // self.x.shape[1]

    @cached_property
    def moments(self) -> Moments:
        return moments(self.x, self.groups)

    def pays(self, taps: int = 0) -> bool:
        """Return whether there are enough positions for the covariance, and for a fused kernel with so many taps."""
        return self.count >= max(_MIN_POSITIONS, _MIN_POSITIONS_PER_TAP * taps) * self.width


# --- branches with several linear layers -------------------------------------------------------------


def _pointwise_average(form: PointwiseAverageNorm, source: _Source) -> Tensor:
    """``BN(AVG(BNᵖ(1×1 * x)))``, with the average before the 1×1."""
    x, amounts = source.x, form.border.border
    kernel, inside, outside = _affine(form.point, form.border, source)
    shares = form.pool(F.pad(x.new_ones(1, 1, *x.shape[2:]), amounts))  # (1, 1, *size') of each window inside the map
    y = _convolve(_average(x, form.pool, amounts), kernel, source.groups)
    return _normed(form.norm, y + (shares * (inside - outside) + outside).to(y.dtype))


def _pointwise_kernel(form: PointwiseKernelNorm, source: _Source) -> Tensor:
    """``BN(K×K * BNᵖ(1×1 * x))``, with one kernel for both convolutions."""
    x, amounts, groups, conv = source.x, form.border.border, source.groups, cast(Any, form.conv)
    kernel, inside, outside = _affine(form.point, form.border, source)
    with torch.autocast(x.device.type, enabled=False):
        constant = F.pad((inside - outside).expand(1, -1, *x.shape[2:]), amounts) + outside  # (1, M, *size + border)
        outer = conv.weight.to(kernel.dtype)
        left = outer.reshape(groups, conv.out_channels // groups, kernel.shape[0] // groups, -1)  # (g, O/g, M/g, taps)
        right = kernel.reshape(groups, left.shape[2], source.width)  # (g, M/g, C/g)
        fused = torch.einsum("gomt,gmc->goct", left, right).reshape(conv.out_channels, source.width, *conv.kernel_size)
        offset = conv._conv_forward(constant, outer, None)  # (1, O, *size')
    padding = tuple(low for low, _ in first_axis_first(amounts))  # the border is symmetric
    function = CONV_FUNCTIONS[x.dim() - 2]
    y = function(x, fused.to(conv.weight.dtype), None, conv.stride, padding, conv.dilation, groups)
    return _normed(form.norm, y + offset.to(y.dtype))


def _affine(point: nn.Module, border: BorderBatchNorm, source: _Source) -> tuple[Tensor, Tensor, Tensor]:
    """The kernel ``(M, C/g)`` of ``BNᵖ(1×1 * x)``, and its offsets inside the map and in the border, ``(1, M, 1…)``."""
    rank = source.x.dim()
    weight = point.kernel() if isinstance(point, IdentityConv) else cast(Any, point).weight
    with torch.autocast(source.x.device.type, enabled=False):
        kernel, shift = fold_norm(border.bn, weight, source.moments, source.count)
    return kernel, per_channel(shift, rank), per_channel(border.of_zero().to(shift.dtype), rank)


# --- layers ------------------------------------------------------------------------------------------


def _pointwise(points: list[PointwiseNorm], source: _Source) -> Iterable[Tensor]:
    """The pointwise branches as one convolution, or each norm separately if there are no convolutions."""
    if not points or (source.width > 1 and all(point.conv is None for point in points)):
        return [_normed(point.norm, source.x) for point in points]  # cheaper than the covariance
    x = source.x
    with torch.autocast(x.device.type, enabled=False):
        weights = [None if point.conv is None else cast(Any, point.conv).weight for point in points]
        folded = [fold_norm(p.norm, w, source.moments, source.count) for p, w in zip(points, weights, strict=True)]
        kernel, shift = (reduce(torch.add, parts) for parts in zip(*folded, strict=True))
    y = _convolve(x, kernel, source.groups)
    return [y.add_(per_channel(shift, x.dim()).to(y.dtype))]  # faster than the bias of a convolution


def _convolve(x: Tensor, kernel: Tensor, groups: int) -> Tensor:
    """A pointwise convolution with a kernel ``(O, C/g)``, in the dtype of its input, or in autocast's."""
    weight = kernel.view(*kernel.shape, *(1,) * (x.dim() - 2)).to(x.dtype)
    return CONV_FUNCTIONS[x.dim() - 2](x, weight, groups=groups)


def _average(x: Tensor, pool: nn.Module, padding: Ints) -> Tensor:
    """An average pool of the input padded with zeros.

    On the CPU a depthwise convolution is usually faster, several times so in the default memory format, and it saves
    no padded copy for the backward pass.
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
