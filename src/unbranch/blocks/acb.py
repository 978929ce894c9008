"""ACB, the asymmetric convolution block.

Ding, Guo, Ding, Han: "ACNet: Strengthening the Kernel Skeletons for Powerful CNN via Asymmetric Convolution
Blocks", ICCV 2019, https://arxiv.org/abs/1908.03930, section 3.2.

    y = BN(K×K * x) + BN(K×1 * x) + BN(1×K * x)        deploys as   K×K * x + b

         ┌── K×K ── BN ──┐
    x ───┼── K×1 ── BN ──┼─ + ── y
         └── 1×K ── BN ──┘

All convolutions are bias-free and share stride, dilation and groups. The line kernels align with the centre column or
row of the K×K kernel: with padding p, their input is padded by p − d·(K//2) across the line, or cropped if that is
negative. In 3-D there is a line for each of the three axes.

Deviations from the published code: with dilation, the lines stay aligned (there, the branches get different shapes);
even and non-square kernels work, an even one has its centre at tap (K − 1)//2; norms without γ and β can be merged; a
padding mode other than zeros pads the input once for all branches. 1-D is rejected, since a line would be the kernel
itself.
"""

from __future__ import annotations

from torch import nn

from unbranch.blocks.branched import BranchedConv
from unbranch.blocks.spec import ConvSpec
from unbranch.deprecation import renamed_names
from unbranch.errors import InputError

AXES = ("depth", "vertical", "horizontal")
"""Names of the grid's axes; a 2-D grid has the last two."""


def line_branch(spec: ConvSpec, name: str) -> nn.Sequential:
    """Return the branch ``BN(line * x)``, whose kernel has more than one tap on one axis only.

    Args:
        spec: the convolution that the block replaces.
        name: the axis, one of ``AXES``.

    Raises:
        InputError: if the grid doesn't have this axis, or is 1-D.
    """
    axis = AXES.index(name) - len(AXES)
    if spec.ndim == 1:
        raise InputError("in 1-D a line is the whole kernel, so the branch needs `ndim` 2 or 3")
    if -axis > spec.ndim:
        raise InputError(f"a grid of {spec.ndim} dimensions has no {name} axis")
    shape = [1] * spec.ndim
    shape[axis] = spec.kernel[axis]
    return spec.conv_bn(tuple(shape))


class ACB(BranchedConv):
    """``BN(K×K * x) + BN(K×1 * x) + BN(1×K * x)``, ``(B, C_in, H, W)`` to ``(B, C_out, H', W')`` as nn.Conv2d.

    Arguments are those of ``BranchedConv``; ``ndim`` must be 2 or 3, and the authors' recipes for CIFAR have
    ``init=1/3``. Section 3.2.

    Example:
        >>> import torch
        >>> ACB(3, 8, 3, padding=1)(torch.zeros(1, 3, 6, 7)).shape
        torch.Size([1, 8, 6, 7])
    """

    main_branch = "square"

    def make_branches(self, spec: ConvSpec) -> dict[str, nn.Module]:
        lines = {name: line_branch(spec, name) for name in AXES[-spec.ndim :]}
        return {"square": spec.conv_bn(), **lines}


__getattr__ = renamed_names(__name__, {"line": "line_branch"})
