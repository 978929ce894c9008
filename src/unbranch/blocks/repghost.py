"""RepGhost, a module that reuses features by addition, where Ghost modules use concatenation.

Chen, Guo, Zeng, Xiong, Dong: "RepGhost: A Hardware-Efficient Ghost Module via Re-parameterization", 2022,
https://arxiv.org/abs/2211.06088, section 3.

    y = BN(dw * z) + BN(z),   z = ReLU(BN(1×1 * x))        deploys as   dw * z + b

                               ┌── depthwise 3×3 ── BN ──┐
    x ── 1×1 ── BN ── ReLU ── z┤                         ├─ + ── ReLU ── y
                               └─────────────────── BN ──┘

The branch parallel to the depthwise kernel is called the fusion: a batch norm ("bn"), z itself ("identity", the repid
ablation), both, or none (norep). A bottleneck has two such modules, a strided depthwise convolution and
squeeze-and-excitation between them, and a shortcut.

Deviations from the published code: depthwise kernels of any size can be merged (there, 3×3 only), also without fusion.
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
    """Return the nearest multiple of ``divisor``, at least ``divisor`` and at least 0.9·width.

    Example:
        >>> make_divisible(19), make_divisible(1.6), make_divisible(21.4)
        (20, 4, 20)
    """
    nearest = max(divisor, int(width + divisor / 2) // divisor * divisor)
    return nearest + divisor if nearest < 0.9 * width else nearest


class HardSigmoid(nn.Module):
    """``ReLU6(x + 3) / 6``; in training computed like this, since F.hardsigmoid's gradient rounds 1/6 to float32."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu6(x + 3) / 6 if self.training else F.hardsigmoid(x)


class RepGhostModule(nn.Module):
    """``ReLU(BN(dw * z) + BN(z))`` with ``z = ReLU(BN(K×K * x))``, ``(B, C_in, H, W)`` to ``(B, C_out, H', W')``.

    Figure 3.

    Args:
        in_channels, out_channels: C_in and C_out.
        kernel_size, stride: of the first convolution, which is padded by half its kernel.
        dw_size: size of the depthwise kernel.
        relu: whether the module has its two ReLUs.
        fusion: ``"bn"``, ``"identity"``, ``"both"`` or ``"none"``.

    Raises:
        InputError: for another fusion.
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

    Figure 4.

    Args:
        in_channels, mid_channels, out_channels: of the first module, between the modules, and of the second.
        kernel_size: of the strided depthwise convolutions between the modules and in the shortcut.
        stride: of both; with stride 1 there is none between the modules.
        se_ratio: hidden channels of squeeze-and-excitation over ``mid_channels``, 0 to omit it.
        shortcut: whether there is a shortcut if it would be the identity.
        fusion: of both modules.
        drop_path: rate of stochastic depth in blocks with a shortcut.

    Raises:
        InputError: if the kernel size is even and the shortcut has a convolution with stride 1.
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
