"""ACB, the asymmetric convolution block.

Ding, Guo, Ding, Han: "ACNet: Strengthening the Kernel Skeletons for Powerful CNN via Asymmetric Convolution
Blocks", ICCV 2019, https://arxiv.org/abs/1908.03930, section 3.2.

    y = BN(K×K * x) + BN(K×1 * x) + BN(1×K * x)        deploys as   K×K * x + b

         ┌── K×K ── BN ──┐
    x ───┼── K×1 ── BN ──┼─ + ── y
         └── 1×K ── BN ──┘

All convolutions are bias-free and share stride, dilation and groups. With padding p the 1-D kernels have to look at
what the centre column or row of the K×K kernel sees: their input is padded by p − d·(K//2) across the kernel, and
cropped where that is negative.

Deviations from the published code: dilation moves the frame of the 1-D branches (there, the branches get different
shapes); even and non-square kernels work, an even one around tap (K − 1)//2; a padding mode other than zeros pads
the input once for the three branches.
"""

from __future__ import annotations

from torch import Tensor, nn

from unbranch.blocks.parts import Activation, Pair, conv_spec, init_scale, through


class ACB(nn.Module):
    """``BN(K×K * x) + BN(K×1 * x) + BN(1×K * x)``, ``(B, C_in, H, W)`` to ``(B, C_out, H', W')`` as nn.Conv2d.

    ``branch_scale`` is the initial γ of the three batch norms (1/3 in the authors' CIFAR recipes). Section 3.2.

    >>> import torch
    >>> ACB(3, 8, 3, padding=1)(torch.zeros(1, 3, 6, 7)).shape
    torch.Size([1, 8, 6, 7])
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Pair,
        stride: int | Pair = 1,
        padding: int | Pair | str = 0,
        dilation: int | Pair = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        *,
        activation: Activation = None,
        branch_scale: float = 1.0,
        eps: float = 1e-5,
        momentum: float = 0.1,
    ) -> None:
        super().__init__()
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
        height, width = spec.kernel
        self.square = spec.conv_bn((height, width))
        self.vertical = spec.conv_bn((height, 1))
        self.horizontal = spec.conv_bn((1, width))
        self.activation = activation() if activation is not None else None
        for branch in (self.square, self.vertical, self.horizontal):
            init_scale(branch, branch_scale)

    def forward(self, x: Tensor) -> Tensor:
        x = through(self.pad, x)
        return through(self.activation, self.square(x) + self.vertical(x) + self.horizontal(x))
