"""RepMixer, a token mixer with a shortcut that deploys as one depthwise convolution.

Vasu, Gabriel, Zhu, Tuzel, Ranjan: "FastViT: A Fast Hybrid Vision Transformer using Structural Reparameterization",
ICCV 2023, https://arxiv.org/abs/2303.14189, section 3.2.

    y = x + γ·(M(x) − BN(x)),   M = MobileOne, depthwise        deploys as   dw * x + b

         ┌── M ─────┐
    x ───┤          − ── γ ──┐
         ├── BN ────┘        + ── y
         └───────────────────┘

The block adds a feed-forward part with a depthwise 7×7:   z + γ · 1×1(GELU(1×1(BN(dw7×7 * z)))).
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from unbranch.blocks.mobileone import MobileOne
from unbranch.blocks.parts import DropPath, conv_bn
from unbranch.errors import InputError


class LayerScale(nn.Module):
    """``γ · x`` with a factor per channel, ``(B, C, H, W)`` to the same."""

    def __init__(self, channels: int, value: float) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.full((channels, 1, 1), value))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gamma


class RepMixer(nn.Module):
    """``x + γ·(M(x) − BN(x))``, ``(B, C, H, W)`` to the same. Equation 2.

    Args:
        channels: C.
        kernel_size: K of M.
        layer_scale: initial γ, None to omit γ.

    Raises:
        InputError: if the kernel size is even, which would change the size of the map.

    Example:
        >>> RepMixer(8)(torch.zeros(1, 8, 5, 6)).shape
        torch.Size([1, 8, 5, 6])
    """

    def __init__(self, channels: int, kernel_size: int = 3, layer_scale: float | None = 1e-5) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise InputError(f"`kernel_size` must be odd for a block with a shortcut, got {kernel_size}")
        self.norm = nn.BatchNorm2d(channels)
        self.mixer = MobileOne(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.scale = nn.Identity() if layer_scale is None else LayerScale(channels, layer_scale)

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.scale(self.mixer(x) - self.norm(x)))


class RepMixerBlock(nn.Module):
    """``z + γ·FFN(z)`` with ``z = RepMixer(x)``, ``(B, C, H, W)`` to the same. Figure 2.

    Args:
        channels, kernel_size, layer_scale: as for ``RepMixer``; γ of the feed-forward part has the same initial value.
        ffn_ratio: hidden channels of the feed-forward part over C.
        drop_path: rate of stochastic depth of the feed-forward part.
    """

    def __init__(
        self,
        channels: int,
        kernel_size: int = 3,
        ffn_ratio: float = 4.0,
        drop_path: float = 0.0,
        layer_scale: float | None = 1e-5,
    ) -> None:
        super().__init__()
        hidden = int(ffn_ratio * channels)
        self.mixer = RepMixer(channels, kernel_size, layer_scale)
        self.conv = conv_bn(channels, channels, 7, padding=3, groups=channels)
        self.fc1 = nn.Conv2d(channels, hidden, 1)
        self.act = nn.GELU()
        self.fc2 = nn.Conv2d(hidden, channels, 1)
        self.scale = nn.Identity() if layer_scale is None else LayerScale(channels, layer_scale)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = cast(Tensor, self.mixer(x))
        y = self.fc2(self.act(self.fc1(self.conv(x))))
        return x + cast(Tensor, self.drop_path(self.scale(y)))
