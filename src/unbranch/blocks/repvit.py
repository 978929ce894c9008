"""RepViT, a block of a mobile network with the structure of a transformer's.

Wang, Chen, Lin, Han, Ding: "RepViT: Revisiting Mobile CNN From ViT Perspective", CVPR 2024,
https://arxiv.org/abs/2307.09283, section 3.

    t(x) = BN( BN(dw K×K * x) + dw 1×1 * x + x )        deploys as   dw K×K * x + b
    y    = z + 1×1(GELU(1×1(z))),   z = SE(t(x))          every 1×1 with a batch norm

         ┌── dw K×K ── BN ──┐
    x ───┼── dw 1×1 ────────┼─ + ── BN ── (SE) ── z ──┬── 1×1 ── GELU ── 1×1 ── + ── y
         └──────────────────┘                         └─────────────────────────┘

The token mixer t is a QARepVGG whose 1×1 has a bias, as published, although the norm after the sum cancels it.
"""

from __future__ import annotations

from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from unbranch.blocks.parts import SqueezeExcite, conv_bn
from unbranch.errors import InputError


class RepVGGDW(nn.Module):
    """``BN(BN(dw K×K * x) + dw 1×1 * x + x)``, ``(B, C, H, W)`` to the same.

    Raises:
        InputError: if the kernel size is even, which would change the size of the map.

    Example:
        >>> import torch
        >>> RepVGGDW(8)(torch.zeros(1, 8, 5, 6)).shape
        torch.Size([1, 8, 5, 6])
    """

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise InputError(f"`kernel_size` must be odd for a block with a shortcut, got {kernel_size}")
        self.conv_kxk = conv_bn(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels)
        self.conv_1x1 = nn.Conv2d(channels, channels, 1, groups=channels)
        self.bn = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.bn(self.conv_kxk(x) + self.conv_1x1(x) + x))


class RepViTBlock(nn.Module):
    """``z + 1×1(GELU(1×1(z)))`` with ``z = SE(t(x))``, ``(B, C, H, W)`` to the same. Figure 3.

    Args:
        channels: C.
        kernel_size: K of the token mixer.
        ffn_ratio: hidden channels between the two 1×1 over C.
        squeeze_excite: whether there is squeeze-and-excitation, with C/4 hidden channels, rounded to a multiple of 8.
    """

    def __init__(
        self, channels: int, kernel_size: int = 3, ffn_ratio: float = 2.0, squeeze_excite: bool = False
    ) -> None:
        super().__init__()
        hidden = int(ffn_ratio * channels)
        self.token_mixer = RepVGGDW(channels, kernel_size)
        gate = max(8, (channels // 4 + 4) // 8 * 8)
        self.se: nn.Module = SqueezeExcite(channels, gate) if squeeze_excite else nn.Identity()
        self.pw1 = conv_bn(channels, hidden, 1)
        self.pw2 = conv_bn(hidden, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        z = cast(Tensor, self.se(self.token_mixer(x)))
        return z + cast(Tensor, self.pw2(F.gelu(self.pw1(z))))
