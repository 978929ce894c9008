"""Mean and covariance of channels, and the batch norm of what a pointwise convolution would make of them.

    mean(W * x) = W · mean(x)        var(W * x) = diag(W · cov(x) · Wᵀ)        for a 1×1 convolution W

So ``BN(W * x)`` is ``(a·W) * x + b`` with a and b known before W * x is: the batch norm in training is linear once
its statistics are, and merges as it does in evaluation.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbranch.algebra import batch_norm_scale_shift
from unbranch.blocks.parts import Ints

FUNCTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def per_channel(vector: Tensor, rank: int) -> Tensor:
    """``(C,)`` as ``(1, C, 1…)`` of a rank."""
    return vector.view(1, -1, *(1,) * (rank - 2))


class Moments(NamedTuple):
    """Mean ``(C,)`` and covariance ``(groups, C/groups, C/groups)`` of channels within their groups."""

    mean: Tensor
    covariance: Tensor


def moments(x: Tensor, groups: int) -> Moments:
    """Over the batch and the grid, biased, at least in float32; only ``x`` is kept for the gradient."""
    return Moments(*_Moments.apply(x, groups))


class _Moments(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        wide = x if x.dtype == torch.float64 else x.float()
        mean = wide.mean((0, *range(2, x.dim())))  # (C,)
        centred = wide - per_channel(mean, x.dim())
        ctx.save_for_backward(x, mean)
        ctx.groups = groups
        return mean, _products(centred, groups) / (x.numel() // x.shape[1])

    @staticmethod
    def backward(ctx: Any, d_mean: Tensor, d_covariance: Tensor) -> tuple[Tensor, None]:
        x, mean = ctx.saved_tensors
        count, groups = x.numel() // x.shape[1], ctx.groups
        slope = (d_covariance + d_covariance.mT) / count  # (g, c, c)
        offset = d_mean / count - torch.einsum("gab,gb->ga", slope, mean.view(groups, -1)).flatten()
        kernel = slope.reshape(x.shape[1], -1, *(1,) * (x.dim() - 2))
        with torch.autocast(x.device.type, enabled=False):
            gradient = FUNCTIONS[x.dim() - 2](x.to(kernel.dtype), kernel, offset, groups=groups)
        return gradient.to(x.dtype), None


def _products(centred: Tensor, groups: int) -> Tensor:
    """``Σ xᵢ·xⱼ`` over batch and grid, ``(B, C, *size)`` to ``(groups, c, c)``, without moving the channels."""
    batch, width = centred.shape[0], centred.shape[1] // groups
    if width == 1:
        return centred.square().sum((0, *range(2, centred.dim()))).view(groups, 1, 1)
    if groups == 1 and centred.dim() == 4 and not centred.is_contiguous():  # channels last in memory
        rows = centred.permute(0, 2, 3, 1).reshape(-1, width)  # (B·h·w, C)
        return (rows.mT @ rows).unsqueeze(0)
    rows = centred.reshape(batch * groups, width, -1)
    return torch.bmm(rows, rows.mT).view(batch, groups, width, width).sum(0)


def norm_behind(norm: nn.Module, weight: Tensor, x: Moments, count: int) -> tuple[Tensor, Tensor]:
    """Scale and shift, ``(O,)`` each, that a batch norm in training has behind a 1×1 kernel ``(O, C/groups, 1…)``.

    Its running statistics are updated as by its own forward; ``count`` is the number of positions in the batch.
    """
    bn = cast(nn.BatchNorm2d, norm)
    groups, width, _ = x.covariance.shape
    rows = weight.reshape(groups, -1, width).to(x.mean.dtype)  # (g, O/g, c)
    mean = torch.einsum("goc,gc->go", rows, x.mean.view(groups, width)).flatten()
    variance = ((rows @ x.covariance) * rows).sum(-1).flatten().clamp_min(0)  # rounding could go below
    with torch.no_grad():
        _update(cast(Tensor, bn.running_mean), mean, cast(float, bn.momentum))
        _update(cast(Tensor, bn.running_var), variance * (count / (count - 1)), cast(float, bn.momentum))
        cast(Tensor, bn.num_batches_tracked).add_(1)
    scale, shift = batch_norm_scale_shift(mean, variance, bn.weight, bn.bias, bn.eps)
    return scale.to(mean.dtype), shift.to(mean.dtype)


def _update(running: Tensor, value: Tensor, momentum: float) -> None:
    running.mul_(1 - momentum).add_(value.to(running.dtype), alpha=momentum)


def windows(x: Tensor, low: Ints, high: Ints, stride: Ints) -> Tensor:
    """``x`` without ``low`` and ``high`` points at the ends of each axis, every ``stride``-th of the rest."""
    for axis, (before, after, step) in enumerate(zip(low, high, stride, strict=True), start=2):
        x = x[(*(slice(None),) * axis, slice(before, x.shape[axis] - after, step))]
    return x
