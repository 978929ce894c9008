"""ACB, the asymmetric convolution block.

Ding, Guo, Ding, Han: "ACNet: Strengthening the Kernel Skeletons for Powerful CNN via Asymmetric Convolution
Blocks", ICCV 2019, https://arxiv.org/abs/1908.03930, section 3.2.

    y = BN(K×K * x) + BN(K×1 * x) + BN(1×K * x)        deploys as   K×K * x + b

         ┌── K×K ── BN ──┐
    x ───┼── K×1 ── BN ──┼─ + ── y
         └── 1×K ── BN ──┘

All convolutions are bias-free and share stride, dilation and groups. With padding p the line kernels have to look at
what the centre column or row of the K×K kernel sees: their input is padded by p − d·(K//2) across the kernel, and
cropped where that is negative. In 3-D there is a line for each of the three axes.

Deviations from the published code: dilation moves the frame of the lines (there, the branches get different shapes);
even and non-square kernels work, an even one around tap (K − 1)//2; norms without γ and β can be merged; a padding
mode other than zeros pads the input once for all branches. In 1-D the line would be the kernel itself: refused.
"""

from __future__ import annotations

from torch import nn

from unbranch.blocks.branched import BranchedConv
from unbranch.blocks.spec import ConvSpec
from unbranch.errors import InputError

AXES = ("depth", "vertical", "horizontal")  # of the grid, the last ones first to be there


def line(spec: ConvSpec, name: str) -> nn.Sequential:
    """``BN(line * x)`` with a kernel that is long on one axis only.

    Raises:
        InputError: if the grid has no such axis, or no other.
    """
    axis = AXES.index(name) - len(AXES)
    if spec.ndim == 1:
        raise InputError("in 1-D a line is the whole kernel: there is nothing to add to it")
    if -axis > spec.ndim:
        raise InputError(f"a grid of {spec.ndim} dimensions has no {name} axis")
    shape = [1] * spec.ndim
    shape[axis] = spec.kernel[axis]
    return spec.conv_bn(tuple(shape))


class ACB(BranchedConv):
    """``BN(K×K * x) + BN(K×1 * x) + BN(1×K * x)``, ``(B, C_in, H, W)`` to ``(B, C_out, H', W')`` as nn.Conv2d.

    Arguments as for ``BranchedConv``, ``ndim`` 2 or 3; ``init=1/3`` in the authors' recipes for CIFAR. Section 3.2.

    >>> import torch
    >>> ACB(3, 8, 3, padding=1)(torch.zeros(1, 3, 6, 7)).shape
    torch.Size([1, 8, 6, 7])
    """

    main = "square"

    def make_branches(self, spec: ConvSpec) -> dict[str, nn.Module]:
        lines = {name: line(spec, name) for name in AXES[-spec.ndim :]}
        return {"square": spec.conv_bn(), **lines}
