"""RepGhost, a module that reuses features by adding where Ghost modules concatenate.

Chen, Guo, Zeng, Xiong, Dong: "RepGhost: A Hardware-Efficient Ghost Module via Re-parameterization", 2022,
https://arxiv.org/abs/2211.06088, section 3.

    y = BN(dw * z) + BN(z),   z = ReLU(BN(1×1 * x))        deploys as   dw * z + b

                               ┌── depthwise 3×3 ── BN ──┐
    x ── 1×1 ── BN ── ReLU ── z┤                         ├─ + ── ReLU ── y
                               └─────────────────── BN ──┘

The branch beside the depthwise kernel is called the fusion: a batch norm ("bn"), x itself ("identity", the repid
ablation), both, or none (norep). A bottleneck is two such modules, with a strided depthwise convolution and
squeeze-and-excitation between them, and a shortcut around.

Deviations from the published code: a depthwise kernel of any size merges (there, 3×3 only), and so does the one
without fusion.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

import torch.nn.functional as F
from torch import Tensor, nn

from unbranch.blocks.mixed import Mixed
from unbranch.blocks.parts import DropPath, SqueezeExcite, conv_bn, through
from unbranch.errors import InputError

FUSIONS = {
    "bn": ("kxk", "identity"),
    "identity": ("kxk", "skip"),
    "both": ("kxk", "identity", "skip"),
    "none": ("kxk",),
}


def make_divisible(width: float, divisor: int = 4) -> int:
    """The multiple of ``divisor`` nearest to a width, at least one of it and at least nine tenths of the width.

    >>> make_divisible(19), make_divisible(1.6), make_divisible(21.4)
    (20, 4, 20)
    """
    nearest = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * width else nearest


class HardSigmoid(nn.Module):
    """``ReLU6(x + 3) / 6``; in training as published, since F.hardsigmoid goes backward with a 1/6 of float32."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6 if self.training else F.hardsigmoid(x)


class RepGhostModule(nn.Module):
    """``ReLU(BN(dw * z) + BN(z))`` with ``z = ReLU(BN(K×K * x))``, ``(B, C_in, H, W)`` to ``(B, C_out, H', W')``.

    ``kernel_size`` and ``stride`` are those of the convolution that makes z, padded by half the kernel; ``dw_size``
    is the depthwise kernel; ``relu=False`` leaves out both. ``fusion`` is ``"bn"``, ``"identity"``, ``"both"`` or
    ``"none"``. Figure 3.

    Raises:
        InputError: if there is no such fusion.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int = 1,
        dw_size: int = 3,
        stride: int = 1,
        relu: bool = True,
        fusion: str = "bn",
    ) -> None:
        super().__init__()
        if fusion not in FUSIONS:
            raise InputError(f"`fusion` must be one of {', '.join(FUSIONS)}, got {fusion!r}")
        self.primary = conv_bn(in_channels, out_channels, kernel_size, stride, kernel_size // 2)
        self.act = nn.ReLU() if relu else None
        self.cheap = Mixed(
            out_channels,
            out_channels,
            dw_size,
            padding=dw_size // 2,
            groups=out_channels,
            activation=nn.ReLU if relu else None,
            branches=FUSIONS[fusion],
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.cheap(through(self.act, self.primary(x))))


class RepGhostBottleneck(nn.Module):
    """Two RepGhost modules and a shortcut, ``(B, C_in, H, W)`` to ``(B, C_out, H/stride, W/stride)``.

    ``kernel_size`` is that of the strided depthwise convolution between the modules and of the one in the shortcut.
    ``se_ratio`` is the relative width of squeeze-and-excitation, 0 for none. ``shortcut=False`` leaves out the
    shortcut where it would be the identity; ``drop_path`` is the rate of stochastic depth around one. Figure 4.

    Raises:
        InputError: if the kernel is even and the shortcut has it at stride 1, so that the sizes differ.
    """

    def __init__(
        self,
        in_channels: int,
        mid_channels: int,
        out_channels: int,
        kernel_size: int = 3,
        stride: int = 1,
        se_ratio: float = 0.0,
        shortcut: bool = True,
        fusion: str = "bn",
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        same = in_channels == out_channels and stride == 1
        if stride == 1 and not same and kernel_size % 2 == 0:
            raise InputError(f"`kernel_size` must be odd for a shortcut with stride 1, got {kernel_size}")
        padding = (kernel_size - 1) // 2
        self.ghost1 = RepGhostModule(in_channels, mid_channels, relu=True, fusion=fusion)
        self.depthwise = (
            conv_bn(mid_channels, mid_channels, kernel_size, stride, padding, mid_channels) if stride > 1 else None
        )
        self.se = _squeeze_excite(mid_channels, se_ratio) if se_ratio else None
        self.ghost2 = RepGhostModule(mid_channels, out_channels, relu=False, fusion=fusion)
        self.has_shortcut = shortcut or not same
        self.drop_path = DropPath(drop_path if self.has_shortcut else 0.0)
        self.shortcut = (
            None
            if same
            else nn.Sequential(
                OrderedDict(
                    depthwise=conv_bn(in_channels, in_channels, kernel_size, stride, padding, in_channels),
                    pointwise=conv_bn(in_channels, out_channels, 1),
                )
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        y = through(self.se, through(self.depthwise, self.ghost1(x)))
        y = cast(Tensor, self.ghost2(y))
        return cast(Tensor, self.drop_path(y)) + through(self.shortcut, x) if self.has_shortcut else y


def _squeeze_excite(channels: int, ratio: float) -> SqueezeExcite:
    return SqueezeExcite(channels, make_divisible(ratio * channels), HardSigmoid)
