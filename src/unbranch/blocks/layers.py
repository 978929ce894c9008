"""Layers of branches that PyTorch doesn't have, for grids of 1, 2 and 3 dimensions."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbranch.blocks.parts import Device
from unbranch.grids import CONV_FUNCTIONS, last_axis_first

if TYPE_CHECKING:
    from unbranch.blocks.spec import ConvSpec


class Scale(nn.Module):
    """``γ · x`` with a factor per channel, ``(B, C, *size)`` to the same; replaces batch norms in online blocks."""

    def __init__(self, channels: int, ndim: int, device: Device = None, dtype: torch.dtype | None = None) -> None:
        super().__init__()
        self.channels, self.ndim = channels, ndim
        self.weight = nn.Parameter(torch.ones(channels, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight.view(1, -1, *(1,) * self.ndim)

    def extra_repr(self) -> str:
        return str(self.channels)


class BorderBatchNorm(nn.Module):
    """Batch norm followed by padding with its output for zero, ``v = β − μ·γ/√(σ² + ε)``.

    ``(B, C, *size)`` to ``(B, C, *size + 2·border)``. v uses the running statistics, in training those after the
    update by the current batch, and no gradient reaches γ and β through it.
    """

    def __init__(self, spec: ConvSpec, channels: int) -> None:
        super().__init__()
        self.bn = spec.norm(channels)
        self.border = last_axis_first(tuple((p, p) for p in spec.padding))

    def forward(self, x: Tensor) -> Tensor:
        y = cast(Tensor, self.bn(x))
        if isinstance(self.bn, Scale) or not any(self.border):
            return F.pad(y, self.border) if any(self.border) else y
        zero = self.of_zero().view(1, -1, *(1,) * (len(self.border) // 2))  # (1, C, 1…)
        return F.pad(y - zero, self.border) + zero

    def of_zero(self) -> Tensor:
        """Return the norm's output for zero, ``(C,)``."""
        bn = cast(nn.BatchNorm2d, self.bn)
        mean, variance = cast(Tensor, bn.running_mean), cast(Tensor, bn.running_var)
        normal = -mean / torch.sqrt(variance + bn.eps)
        return normal * bn.weight.detach() + bn.bias.detach() if bn.affine else normal


class IdentityConv(nn.Module):
    """1×1 convolution whose initial value is the identity, ``x + weight * x``.

    ``(B, C, *size)`` to ``(B, width, *size)``; ``weight`` ``(width, C/g, 1…)`` starts at zero.

    Args:
        spec: channels, groups and dimensions.
        width: output channels, by default C; with a multiple of C, the identity repeats the channels of each group.
    """

    def __init__(self, spec: ConvSpec, width: int | None = None) -> None:
        super().__init__()
        self.groups, self.ndim, self.channels = spec.groups, spec.ndim, spec.in_channels
        self.width = self.channels if width is None else width
        shape = (self.width, self.channels // spec.groups, *(1,) * spec.ndim)
        self.weight = nn.Parameter(torch.zeros(shape, device=spec.device, dtype=spec.dtype))

    def forward(self, x: Tensor) -> Tensor:
        conv = CONV_FUNCTIONS[self.ndim]
        if self.width != self.channels:
            return conv(x, self.kernel(), groups=self.groups)
        return x + conv(x, self.weight, groups=self.groups)

    def kernel(self) -> Tensor:
        """Return identity plus ``weight``, ``(width, C/g, 1…)``: output i reads input i mod C/g of its group."""
        inputs = self.channels // self.groups
        identity = torch.diag_embed(self.weight.new_ones(inputs)).repeat(self.width // inputs, 1)
        return self.weight + identity.view(self.width, inputs, *(1,) * self.ndim)


class FixedDepthwise(nn.Module):
    """Depthwise convolution with constant kernels ``(C, 1, *k)`` and the geometry of the block's convolution."""

    weight: Tensor

    def __init__(self, spec: ConvSpec, weight: Tensor) -> None:
        super().__init__()
        self.channels, self.kernel_size, self.stride = len(weight), spec.kernel, spec.stride
        self.padding, self.dilation = spec.padding, spec.dilation
        self.register_buffer("weight", weight.to(device=spec.device, dtype=spec.dtype))

    def forward(self, x: Tensor) -> Tensor:
        conv = CONV_FUNCTIONS[len(self.kernel_size)]
        return conv(x, self.weight, None, self.stride, self.padding, self.dilation, self.channels)
