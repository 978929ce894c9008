"""DilatedReparam, a large kernel trained in parallel with small dilated ones.

Ding, Zhang, Ge, Zhao, Song, Yue, Shan: "UniRepLKNet: A Universal Perception Large-Kernel ConvNet", CVPR 2024,
https://arxiv.org/abs/2311.15599, section 3.1.

    y = BN(K×K * x) + Σ BN(kᵢ×kᵢ dilated by rᵢ * x)        deploys as   K×K * x + b

         ┌── K×K ───────────────── BN ──┐
    x ───┼── k₁×k₁, dilation r₁ ── BN ──┼─ + ── y        rᵢ·(kᵢ − 1) < K
         └── k₂×k₂, dilation r₂ ── BN ──┘  …

The block of UniRepLKNet contains it:

    x + γ · BN(1×1(GRN(GELU(1×1(SE(BN(DilatedReparam(x))))))))

Deviations from the published code: any stride, padding, dilation and groups; even and non-square kernels; the block of
UniRepLKNet has 1×1 convolutions in place of linear layers on the last axis.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbranch.blocks.branched import BranchedConv, BranchOptions
from unbranch.blocks.parts import Device, DropPath, Size, SqueezeExcite, conv_bn
from unbranch.blocks.spec import ConvSpec
from unbranch.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Unpack

BRANCHES: dict[int, tuple[tuple[int, int], ...]] = {
    17: ((5, 1), (9, 2), (3, 4), (3, 5), (3, 7)),
    15: ((5, 1), (7, 2), (3, 3), (3, 5), (3, 7)),
    13: ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)),
    11: ((5, 1), (5, 2), (3, 3), (3, 4), (3, 5)),
    9: ((5, 1), (5, 2), (3, 3), (3, 4)),
    7: ((5, 1), (3, 2), (3, 3)),
    5: ((3, 1), (3, 2)),
}
"""Kernel and dilation of the small branches, by size of the large kernel."""
LARGE = 7  # the smallest kernel that has dilated branches in UniRepLKNet


class DilatedReparam(BranchedConv):
    """``BN(K×K * x) + Σ BN(k×k * x)``, ``(B, C_in, H, W)`` to ``(B, C_out, H', W')`` as nn.Conv2d.

    Other arguments are those of ``BranchedConv``. Table 2.

    Args:
        branches: pairs of kernel size and dilation; by default the paper's, which exist for square kernels of size 5,
            7, … 17.

    Raises:
        InputError: if a branch is larger than the kernel, or the paper has no branches for this kernel.

    Example:
        >>> DilatedReparam(8, 8, 13, padding=6, groups=8)(torch.zeros(1, 8, 9, 9)).shape
        torch.Size([1, 8, 9, 9])
    """

    main_branch = "large"

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1, padding: Size | str = 0,
        dilation: Size = 1, groups: int = 1, bias: bool = True, padding_mode: str = "zeros", device: Device = None,
        dtype: torch.dtype | None = None, *, branches: Sequence[tuple[int, int]] | None = None,
        **options: Unpack[BranchOptions],
    ) -> None:  # fmt: skip
        self._pairs = branches
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype, **options,
        )  # fmt: skip

    def make_branches(self, spec: ConvSpec) -> dict[str, nn.Module]:
        pairs = self._pairs
        if pairs is None:
            side = spec.kernel[0]
            if side not in BRANCHES or any(k != side for k in spec.kernel):
                raise InputError(f"`branches` must be given for kernel {spec.kernel}, for which the paper has none")
            pairs = BRANCHES[side]
        small = {f"small_{k}_{r}": spec.conv_bn((k,) * spec.ndim, r) for k, r in pairs}
        return {"large": spec.conv_bn(), **small}


class GRN(nn.Module):
    """Global response normalisation, ``x + γ · x · n + β`` with ``n = ‖x‖ / mean ‖x‖``, ``(B, C, H, W)`` to the same.

    ``‖x‖`` is the norm of each channel over the map, and the mean is over the channels. Woo et al.: "ConvNeXt V2",
    CVPR 2023, section 3.2.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1, channels, 1, 1))
        self.beta = nn.Parameter(torch.zeros(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        length: Tensor = torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True)  # (B, C, 1, 1)
        relative = length / (length.mean(dim=1, keepdim=True) + 1e-6)
        return x + self.gamma * (x * relative) + cast(Tensor, self.beta)


class ChannelNorm(nn.LayerNorm):
    """Layer norm over the channels of each position, ``(B, C, H, W)`` to the same."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)  # (B, H, W, C) inside


class UniRepLKNetBlock(nn.Module):
    """``x + γ·BN(1×1(GRN(GELU(1×1(SE(BN(dw(x))))))))``, ``(B, C, H, W)`` to the same. Figure 3.

    ``dw`` is depthwise: a ``DilatedReparam`` for kernels of 7×7 or more, else a single convolution.

    Args:
        channels: C.
        kernel_size: of ``dw``.
        drop_path: rate of stochastic depth.
        ffn_ratio: hidden channels between the 1×1 convolutions over C.
        layer_scale: initial γ.

    Raises:
        InputError: if the kernel size is even, which would change the size of the map.
    """

    def __init__(
        self, channels: int, kernel_size: int, drop_path: float = 0.0, ffn_ratio: float = 4.0, layer_scale: float = 1e-6
    ) -> None:
        super().__init__()
        if kernel_size % 2 == 0:
            raise InputError(f"`kernel_size` must be odd for a block with a shortcut, got {kernel_size}")
        make: Callable[..., nn.Module] = DilatedReparam if kernel_size >= LARGE else nn.Conv2d
        self.depthwise = make(channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        self.se = SqueezeExcite(channels, channels // 4)
        hidden = int(ffn_ratio * channels)
        self.pw1 = nn.Conv2d(channels, hidden, 1)
        self.grn = GRN(hidden)
        self.pw2 = conv_bn(hidden, channels, 1)
        self.gamma = nn.Parameter(torch.full((channels,), layer_scale))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        y = self.se(self.norm(self.depthwise(x)))
        y = self.pw2(self.grn(F.gelu(self.pw1(y))))
        return x + cast(Tensor, self.drop_path(y * self.gamma.view(1, -1, 1, 1)))
