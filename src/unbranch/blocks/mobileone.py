"""MobileOne, a block of a mobile network with several branches for the same kernel.

Vasu, Gabriel, Zhu, Tuzel, Ranjan: "MobileOne: An Improved One millisecond Mobile Backbone", CVPR 2023,
https://arxiv.org/abs/2206.04040, section 3.

    y = Σₙ BN(K×K * x) + BN(1×1 * x) + BN(x)        deploys as   K×K * x + b

         ┌── K×K ── BN ──┐   n times
    x ───┼── 1×1 ── BN ──┼─ + ── (squeeze-excite, activation) ── y
         └───────── BN ──┘

The 1×1 ("scale") exists for kernels with more than one tap; the last branch exists if input and output have the same
channels and the stride is 1.

Deviations from the published code: any padding and dilation for all branches; the block has no activation
by default.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from unbranch.blocks.branched import BranchedConv, BranchOptions
from unbranch.blocks.parts import Device, Size, gated
from unbranch.blocks.spec import ConvSpec
from unbranch.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Unpack


class MobileOne(BranchedConv):
    """``Σ BN(K×K * x) + BN(1×1 * x) + BN(x)``, ``(B, C_in, H, W)`` to ``(B, C_out, H', W')`` as nn.Conv2d.

    Other arguments are those of ``BranchedConv``; the published block has ``activation=nn.ReLU``. Section 3.3.

    Args:
        num_branches: n, the number of K×K branches: 4 in MobileOne-S0, 1 in the other networks.
        squeeze_excite, reduction: as for ``RepVGG``.

    Raises:
        InputError: if ``num_branches`` is below 1.

    Example:
        >>> MobileOne(8, 8, 3, padding=1, num_branches=4)(torch.zeros(1, 8, 6, 7)).shape
        torch.Size([1, 8, 6, 7])
    """

    main_branch = "conv_kxk_0"

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1, padding: Size | str = 0,
        dilation: Size = 1, groups: int = 1, bias: bool = True, padding_mode: str = "zeros", device: Device = None,
        dtype: torch.dtype | None = None, *, num_branches: int = 1, squeeze_excite: str | None = None,
        reduction: int | None = None, **options: Unpack[BranchOptions],
    ) -> None:  # fmt: skip
        if num_branches < 1:
            raise InputError(f"`num_branches` must be at least 1, got {num_branches}")
        self.num_branches = num_branches
        ndim, activation = options.get("ndim", 2), options.get("activation")
        options["activation"] = gated(activation, out_channels, squeeze_excite, reduction, ndim)
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype, **options,
        )  # fmt: skip

    def make_branches(self, spec: ConvSpec) -> dict[str, nn.Module]:
        branches: dict[str, nn.Module] = {f"conv_kxk_{i}": spec.conv_bn() for i in range(self.num_branches)}
        if max(spec.kernel) > 1:
            branches["conv_scale"] = spec.conv_bn((1,) * spec.ndim)
        if spec.keeps_shape:
            branches["identity"] = spec.identity_bn()
        return branches
