"""The compactor, a layer that learns which channels a network can do without.

Ding, Hao, Tan, Liu, Han, Guo, Ding: "ResRep: Lossless CNN Pruning via Decoupling Remembering and Forgetting",
ICCV 2021, https://arxiv.org/abs/2007.03260, section 3.2.

    y = 1×1 * BN(K×K * x)        deploys as   a K×K with as many output channels as rows of the 1×1 are left

    x ── K×K ── BN ── compactor ── y

It is put behind a batch norm and starts as the identity, so that it changes nothing. Training drives rows of its
kernel to zero; a row of zeros is an output channel that is constant, and can go.

Behind a depthwise convolution, which keeps channels apart, it is diagonal: a factor for each channel. That isn't in
the paper.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from unbranch.blocks.parts import Device
from unbranch.errors import InputError
from unbranch.grids import CONV_LAYERS


class Compactor(nn.Module):
    """A bias-free 1×1 convolution that starts as the identity, ``(B, C, *size)`` to the same.

    With ``diagonal`` it is a depthwise one, which scales each channel.

    The buffer ``mask`` ``(C,)`` is 1 for the channels that training may still use. It is for the training step, which
    stops the gradients of the others; the forward doesn't read it.

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
