"""Mean and covariance of channels, and the batch norm after a pointwise convolution as an affine map.

    mean(W * x) = W · mean(x)        var(W * x) = diag(W · cov(x) · Wᵀ)        for a 1×1 convolution W

So ``BN(W * x)`` is ``(a·W) * x + b``, where a and b follow from the statistics of x without computing W * x. Given
these, a batch norm in training folds into the convolution as it does in evaluation.
"""

from __future__ import annotations

from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from unbranch.grids import CONV_FUNCTIONS


def per_channel(vector: Tensor, rank: int) -> Tensor:
    """Reshape ``(C,)`` to ``(1, C, 1…)`` with ``rank`` axes."""
    return vector.view(1, -1, *(1,) * (rank - 2))


class Moments(NamedTuple):
    """Mean ``(C,)`` and covariance ``(groups, C/groups, C/groups)`` of channels within their groups."""

    mean: Tensor
    covariance: Tensor


def moments(x: Tensor, groups: int) -> Moments:
    """Return the moments of ``x`` ``(B, C, *size)`` over batch and grid, biased, in float32 or float64.

    Only ``x`` and the mean are saved for the backward pass.
    """
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
            gradient = CONV_FUNCTIONS[x.dim() - 2](x.to(kernel.dtype), kernel, offset, groups=groups)
        return gradient.to(x.dtype), None


def _products(centred: Tensor, groups: int) -> Tensor:
    """Return ``Σ xᵢ·xⱼ`` over batch and grid, ``(B, C, *size)`` to ``(groups, c, c)``, without a transposed copy."""
    batch, width = centred.shape[0], centred.shape[1] // groups
    if width == 1:
        return centred.square().sum((0, *range(2, centred.dim()))).view(groups, 1, 1)
    if groups == 1 and centred.dim() == 4 and not centred.is_contiguous():  # channels last in memory
        rows = centred.permute(0, 2, 3, 1).reshape(-1, width)  # (B·h·w, C)
        return (rows.mT @ rows).unsqueeze(0)
    rows = centred.reshape(batch * groups, width, -1)
    return torch.bmm(rows, rows.mT).view(batch, groups, width, width).sum(0)


def fold_norm(norm: nn.Module, weight: Tensor | None, x: Moments, count: int) -> tuple[Tensor, Tensor]:
    """Return the kernel ``a·W`` ``(O, C/groups)`` and the shift ``b`` ``(O,)`` of ``BN(W * x)`` in training.

    Updates the running statistics as the norm's forward would.

    Args:
        norm: the batch norm.
        weight: W, ``(O, C/groups, 1…)``; None for the identity.
        x: moments of the input of W.
        count: number of positions in the batch.
    """
    bn = cast(nn.BatchNorm2d, norm)
    groups, width, _ = x.covariance.shape
    if weight is None:
        rows = torch.eye(width, dtype=x.mean.dtype, device=x.mean.device).expand(groups, width, width)
    else:
        rows = weight.reshape(groups, -1, width).to(x.mean.dtype)  # (g, O/g, c)
    gamma = x.mean.new_ones(bn.num_features) if bn.weight is None else bn.weight.to(x.mean.dtype)
    beta = x.mean.new_zeros(bn.num_features) if bn.bias is None else bn.bias.to(x.mean.dtype)
    kernel, shift, mean, variance = _FoldNorm.apply(rows, gamma, beta, x.mean.view(groups, width), x.covariance, bn.eps)
    with torch.no_grad():
        momentum = cast(float, bn.momentum)
        _update(cast(Tensor, bn.running_mean), mean, momentum)
        _update(cast(Tensor, bn.running_var), variance * (count / (count - 1)), momentum)
        cast(Tensor, bn.num_batches_tracked).add_(1)
    return kernel.reshape(-1, width), shift


class _FoldNorm(torch.autograd.Function):
    """The fold with its gradient written out, where autograd would run forty small operations.

    μ = W·m    v = diag(W·S·Wᵀ)    r = 1/√(v + ε)    a = γ·r    kernel = a·W    shift = β − a·μ
    """

    @staticmethod
    def forward(
        ctx: Any, rows: Tensor, gamma: Tensor, beta: Tensor, mean: Tensor, covariance: Tensor, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        ctx.save_for_backward(rows, gamma, mean, covariance)
        ctx.eps = eps
        mu, variance, _ = _statistics(rows, mean, covariance)
        a = gamma.view(mu.shape) * (variance + eps).rsqrt()
        ctx.mark_non_differentiable(mu, variance)
        return rows * a.unsqueeze(2), beta - (a * mu).flatten(), mu, variance

    @staticmethod
    def backward(ctx: Any, d_kernel: Tensor, d_shift: Tensor, *_unused: Tensor) -> tuple[Tensor | None, ...]:
        rows, gamma, mean, covariance = ctx.saved_tensors
        mu, variance, spread = _statistics(rows, mean, covariance)
        r, d_b = (variance + ctx.eps).rsqrt(), d_shift.view(mu.shape)
        a = gamma.view(mu.shape) * r
        d_a = (d_kernel * rows).sum(2) - d_b * mu
        d_variance = (-0.5 * d_a * a * r * r).unsqueeze(2)
        d_mu = (-a * d_b).unsqueeze(2)
        d_rows = a.unsqueeze(2) * d_kernel + d_mu * mean.unsqueeze(1) + 2 * d_variance * spread
        d_mean, d_covariance = (rows.mT @ d_mu).squeeze(2), rows.mT @ (d_variance * rows)
        return d_rows, (d_a * r).flatten(), d_shift, d_mean, d_covariance, None


def _statistics(rows: Tensor, mean: Tensor, covariance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return ``W·m`` and ``diag(W·S·Wᵀ)``, each ``(g, O/g)``, and ``W·S`` ``(g, O/g, c)``."""
    spread = rows @ covariance
    variance = (spread * rows).sum(2).clamp_min(0)  # rounding can make it negative
    return (rows @ mean.unsqueeze(2)).squeeze(2), variance, spread


def _update(running: Tensor, value: Tensor, momentum: float) -> None:
    running.mul_(1 - momentum).add_(value.flatten().to(running.dtype), alpha=momentum)
