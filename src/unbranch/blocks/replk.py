"""RepLK, blocks with very large kernels.

Ding, Zhang, Zhou, Han, Ding, Sun: "Scaling Up Your Kernels to 31x31: Revisiting Large Kernel Design in CNNs",
CVPR 2022, https://arxiv.org/abs/2203.06717, section 4.1.

    y = BN(K×K * x) + BN(s×s * x)        deploys as   K×K * x + b

         ┌── K×K ── BN ──┐
    x ───┤               ├─ + ── y        s = 5
         └── s×s ── BN ──┘

A layer of RepLKNet has two parts, both with a shortcut and stochastic depth:

    RepLKBlock:  x + 1×1(ReLU(LargeKernel(ReLU(1×1(BN(x))))))        LargeKernel depthwise
    ConvFFN:     x + 1×1(GELU(1×1(BN(x))))                           every 1×1 with a batch norm

Deviations from the published code: even, non-square and dilated kernels; the small kernel is aligned with the centre of
the large one for any parity (there, the branches have different sizes); the padding is an argument, as for a
convolution; the block doesn't select a CUDA kernel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbranch.blocks.branched import BranchedConv, BranchOptions
from unbranch.blocks.parts import Device, DropPath, Size, conv_bn
from unbranch.blocks.spec import ConvSpec
from unbranch.errors import InputError
from unbranch.grids import per_axis

if TYPE_CHECKING:
    from typing_extensions import Unpack


class LargeKernel(BranchedConv):
    """``BN(K×K * x) + BN(s×s * x)``, ``(B, C_in, H, W)`` to ``(B, C_out, H', W')`` as nn.Conv2d.

    Other arguments are those of ``BranchedConv``. Section 3, guideline 3.

    Args:
        small_kernel: s, at most K; None for no second branch.

    Example:
        >>> LargeKernel(8, 8, 13, padding=6, groups=8)(torch.zeros(1, 8, 6, 7)).shape
        torch.Size([1, 8, 6, 7])
    """

    main_branch = "large"

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1, padding: Size | str = 0,
        dilation: Size = 1, groups: int = 1, bias: bool = True, padding_mode: str = "zeros", device: Device = None,
        dtype: torch.dtype | None = None, *, small_kernel: Size | None = 5, **options: Unpack[BranchOptions],
    ) -> None:  # fmt: skip
        self.small_kernel = small_kernel
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype, **options,
        )  # fmt: skip

    def make_branches(self, spec: ConvSpec) -> dict[str, nn.Module]:
        if self.small_kernel is None:
            return {"large": spec.conv_bn()}
        return {
            "large": spec.conv_bn(),
            "small": spec.conv_bn(per_axis(self.small_kernel, spec.ndim, "small_kernel", 1)),
        }


class RepLKBlock(nn.Module):
    """``x + 1×1(ReLU(LargeKernel(ReLU(1×1(BN(x))))))``, ``(B, C, H, W)`` to the same.

    Figure 4.

    Args:
        channels: C.
        dw_channels: channels of the depthwise large kernel.
        kernel_size, small_kernel: of ``LargeKernel``.
        drop_path: rate of stochastic depth.

    Raises:
        InputError: if the kernel size is even, which would change the size of the map.
    """

    def __init__(
        self,
        channels: int,
        dw_channels: int,
        kernel_size: int,
        small_kernel: int | None = 5,
        drop_path: float = 0.0,
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise InputError(f"`kernel_size` must be odd for a block with a shortcut, got {kernel_size}")
        self.norm = nn.BatchNorm2d(channels)
        self.pw1 = conv_bn(channels, dw_channels, 1)
        self.large_kernel = LargeKernel(
            dw_channels,
            dw_channels,
            kernel_size,
            padding=kernel_size // 2,
            groups=dw_channels,
            small_kernel=small_kernel,
        )
        self.pw2 = conv_bn(dw_channels, channels, 1)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.pw1(self.norm(x)))
        y = torch.relu(self.large_kernel(y))
        return x + cast(Tensor, self.drop_path(self.pw2(y)))


class ConvFFN(nn.Module):
    """``x + 1×1(GELU(1×1(BN(x))))``, ``(B, C, H, W)`` to the same, with exact GELU. Figure 4.

    Args:
        in_channels, out_channels: C, equal.
        internal_channels: hidden channels.
        drop_path: rate of stochastic depth.

    Raises:
        InputError: if ``out_channels`` differs from ``in_channels``.
    """

    def __init__(self, in_channels: int, internal_channels: int, out_channels: int, drop_path: float = 0.0) -> None:
        super().__init__()
        if in_channels != out_channels:
            raise InputError(
                f"`in_channels` and `out_channels` must be equal for a shortcut, got {in_channels} and {out_channels}"
            )
        self.norm = nn.BatchNorm2d(in_channels)
        self.pw1 = conv_bn(in_channels, internal_channels, 1)
        self.pw2 = conv_bn(internal_channels, out_channels, 1)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.pw2(F.gelu(self.pw1(self.norm(x))))
        return x + cast(Tensor, self.drop_path(y))
