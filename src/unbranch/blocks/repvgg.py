"""RepVGG, the block of a plain network that trains with a shortcut.

Ding, Zhang, Ma, Han, Ding, Sun: "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021,
https://arxiv.org/abs/2101.03697, section 3.

    y = BN(3×3 * x) + BN(1×1 * x) + BN(x)        deploys as   3×3 * x + b

         ┌── 3×3 ── BN ──┐
    x ───┼── 1×1 ── BN ──┼─ + ── (squeeze-excite, activation) ── y
         └───────── BN ──┘

The third branch exists where input and output have the same channels and the stride is 1. Squeeze-and-excitation
comes before the activation in RepVGG-D2se and after it in RepVGGplus.

Deviations from the published code: any kernel, padding and dilation, for all branches; squeeze-and-excitation pools
the whole map (there, a square window as wide as the map); the block is affine unless an activation is named.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from unbranch.blocks.parts import Activation, Pair, conv_spec, through
from unbranch.errors import InputError


class SqueezeExcite(nn.Module):
    """``x · σ(up(ReLU(down(mean(x)))))``, ``(B, C, H, W)`` to the same. Hu et al., CVPR 2018."""

    def __init__(self, channels: int, reduction: int) -> None:
        super().__init__()
        self.down = nn.Conv2d(channels, channels // reduction, 1)
        self.up = nn.Conv2d(channels // reduction, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean((2, 3), keepdim=True)  # (B, C, 1, 1)
        return x * torch.sigmoid(self.up(torch.relu(self.down(mean))))


class RepVGG(nn.Module):
    """``BN(K×K * x) + BN(1×1 * x) + BN(x)``, ``(B, C_in, H, W)`` to ``(B, C_out, H', W')`` as nn.Conv2d.

    ``squeeze_excite`` is ``"before"`` or ``"after"`` the activation, or ``None``; ``reduction`` is 16 before and 4
    after unless given. The published block has ``activation=nn.ReLU``. Section 3.

    >>> RepVGG(8, 8, 3, padding=1, activation=nn.ReLU)(torch.zeros(1, 8, 6, 7)).shape
    torch.Size([1, 8, 6, 7])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair = 3,
        stride: int | Pair = 1,
        padding: int | Pair | str = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        *,
        activation: Activation = None,
        squeeze_excite: str | None = None,
        reduction: int | None = None,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
        if squeeze_excite not in (None, "before", "after"):
            raise InputError(f"squeeze_excite={squeeze_excite!r} is none of None, 'before', 'after' (the activation)")
        self.pad, spec = conv_spec(
            in_channels,
            out_channels,
            kernel_size,
            stride,
            padding,
            dilation,
            groups,
            padding_mode,
            eps,
            momentum,
        )
        shortcut = in_channels == out_channels and spec.stride == (1, 1)
        self.conv_kxk = spec.conv_bn(spec.kernel)
        self.conv_1x1 = spec.conv_bn((1, 1))
        self.identity = spec.identity_bn() if shortcut else None
        post: list[nn.Module] = [] if activation is None else [activation()]
        if squeeze_excite is not None:
            first = squeeze_excite == "before"
            layer = SqueezeExcite(out_channels, reduction or (16 if first else 4))
            post.insert(0 if first else len(post), layer)
        self.post = nn.Sequential(*post) if post else None

    def forward(self, x: Tensor) -> Tensor:
        x = through(self.pad, x)
        y = self.conv_kxk(x) + self.conv_1x1(x)
        if self.identity is not None:
            y = y + self.identity(x)
        return through(self.post, y)
