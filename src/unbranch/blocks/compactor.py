"""The compactor, a layer that learns which channels of a network can be removed.

Ding, Hao, Tan, Liu, Han, Guo, Ding: "ResRep: Lossless CNN Pruning via Decoupling Remembering and Forgetting",
ICCV 2021, https://arxiv.org/abs/2007.03260, section 3.2.

    y = 1×1 * BN(K×K * x)        deploys as   a K×K with one output channel per non-zero row of the 1×1

    x ── K×K ── BN ── compactor ── y

A compactor follows a batch norm and is initially the identity. Training drives rows of its kernel to zero; a zero row
makes an output channel constant, so it can be removed.

After a depthwise convolution, the compactor is diagonal: a factor for each channel. This isn't in the paper.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from unbranch.blocks.parts import Device
from unbranch.errors import InputError
from unbranch.grids import CONV_LAYERS


class Compactor(nn.Module):
    """Bias-free 1×1 convolution whose initial value is the identity, ``(B, C, *size)`` to the same.

    The buffer ``mask`` ``(C,)`` is 1 for channels in use and 0 for those that are being removed. The training step
    uses it to stop gradients; the forward pass doesn't.

    Args:
        channels: C.
        ndim: number of grid dimensions.
        device, dtype: of the kernel.
        diagonal: use a depthwise convolution, which scales each channel.

    Raises:
        InputError: if ``channels`` is below 1 or ``ndim`` isn't 1, 2 or 3.

    Example:
        >>> x = torch.randn(1, 4, 5, 6)
        >>> torch.equal(Compactor(4)(x), x)
        True
    """

    mask: Tensor

    def __init__(
        self, channels: int, ndim: int = 2, device: Device = None, dtype: torch.dtype | None = None,
        diagonal: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        if channels < 1 or ndim not in CONV_LAYERS:
            raise InputError(
                f"`channels` must be at least 1 and `ndim` 1, 2 or 3, got channels={channels}, ndim={ndim}"
            )
        groups = channels if diagonal else 1
        self.conv = CONV_LAYERS[ndim](channels, channels, 1, groups=groups, bias=False, device=device, dtype=dtype)
        nn.init.dirac_(self.conv.weight, groups)
        self.register_buffer("mask", torch.ones(channels, device=device, dtype=dtype))

    def forward(self, x: Tensor) -> Tensor:
        return cast(Tensor, self.conv(x))
