"""Batch norms whose statistics look like those of dead channels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from unbranch.quantize.report import SuspiciousNorm

_SCALE = 10.0  # times the median
_VARIANCE = 1e-3  # of the median


def suspicious_norms(network: nn.Module) -> tuple[SuspiciousNorm, ...]:
    """Return batch norms with channels of almost no variance, whose scale γ/σ is therefore far above the others'.

    Such a norm as an identity branch becomes one huge weight of the collapsed kernel.

    Args:
        network: with its norms, not collapsed.
    """
    found = []
    for path, module in network.named_modules():
        variance = getattr(module, "running_var", None)
        if not isinstance(variance, Tensor) or variance.is_meta or not isinstance(getattr(module, "eps", None), float):
            continue
        norm: Any = module
        scale = (variance.detach().double() + norm.eps).rsqrt()
        if isinstance(norm.weight, Tensor):
            scale = scale * norm.weight.detach().double().abs()
        typical = float(scale.median())
        suspicious = (scale > _SCALE * typical) & (variance < _VARIANCE * variance.median())
        if bool(suspicious.any()):
            channels = tuple(int(c) for c in torch.nonzero(suspicious)[:, 0])
            found.append(SuspiciousNorm(path, channels, float(scale.max()), typical))
    return tuple(found)
