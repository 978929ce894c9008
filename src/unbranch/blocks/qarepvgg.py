"""QARepVGG, a RepVGG whose merged kernels can be quantised.

Chu, Li, Zhang: "Make RepVGG Greater Again: A Quantization-Aware Approach", AAAI 2024,
https://arxiv.org/abs/2212.01593, section 4.

    y = BN( BN(3×3 * x) + 1×1 * x + x )        deploys as   3×3 * x + b

         ┌── 3×3 ── BN ──┐
    x ───┼── 1×1 ────────┼─ + ── BN ── (activation) ── y
         └───────────────┘

In RepVGG the variances of the branches add up, and the merged kernels have outliers that don't fit in eight bits. Here
only the large kernel has its own norm, and another norm follows the sum.

Deviations from the published code: any kernel, padding and dilation, for all branches.
"""

from __future__ import annotations

from torch import nn

from unbranch.blocks.branched import BranchedConv
from unbranch.blocks.spec import ConvSpec


class QARepVGG(BranchedConv):
    """``BN(BN(K×K * x) + 1×1 * x + x)``, ``(B, C_in, H, W)`` to ``(B, C_out, H', W')`` as nn.Conv2d.

    Arguments are those of ``BranchedConv``; the published block has ``activation=nn.ReLU``. ``init`` sets γ of the
    large kernel's norm; γ of the norm after the sum is 1. Section 4.3, setting S4.

    Example:
        >>> import torch
        >>> QARepVGG(8, 8, 3, padding=1)(torch.zeros(1, 8, 6, 7)).shape
        torch.Size([1, 8, 6, 7])
    """

    main_branch = "conv_kxk"

    def make_branches(self, spec: ConvSpec) -> dict[str, nn.Module]:
        shortcut = {"identity": spec.identity()} if spec.keeps_shape else {}
        return {"conv_kxk": spec.conv_bn(), "conv_1x1": spec.conv_alone((1,) * spec.ndim), **shortcut}

    def make_closing(self, spec: ConvSpec) -> nn.Module | None:
        return spec.norm(spec.out_channels)
