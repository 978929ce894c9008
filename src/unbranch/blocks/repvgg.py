"""RepVGG, the block of a plain network that trains with a shortcut.

Ding, Zhang, Ma, Han, Ding, Sun: "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021,
https://arxiv.org/abs/2101.03697, section 3.

    y = BN(3×3 * x) + BN(1×1 * x) + BN(x)        deploys as   3×3 * x + b

         ┌── 3×3 ── BN ──┐
    x ───┼── 1×1 ── BN ──┼─ + ── (squeeze-excite, activation) ── y
         └───────── BN ──┘

The third branch exists where input and output have the same channels and the stride is 1. Squeeze-and-excitation
comes before the activation in RepVGG-D2se and after it in RepVGGplus.

Deviations from the published code: any kernel, padding and dilation, for all branches (there, the training branches
ignore dilation and padding mode); squeeze-and-excitation pools the whole map (there, a square window as wide as the
map) and keeps at least one hidden channel; the block is affine unless an activation is named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from unbranch.algebra import batch_norm_scale_shift
from unbranch.blocks.branched import BranchedConv, BranchOptions
from unbranch.blocks.layers import Scale
from unbranch.blocks.parts import Device, DropPath, Size, gated, through
from unbranch.blocks.spec import ConvSpec, centre
from unbranch.convert import equivalent_kernel
from unbranch.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Unpack


class RepVGG(BranchedConv):
    """``BN(K×K * x) + BN(1×1 * x) + BN(x)``, ``(B, C_in, H, W)`` to ``(B, C_out, H', W')`` as nn.Conv2d.

    Arguments as for ``BranchedConv``, and ``squeeze_excite``, which is ``"before"`` or ``"after"`` the activation or
    ``None``, with ``reduction`` 16 before and 4 after unless given, and ``drop_path``, the rate of stochastic depth of
    the convolutions beside an identity. The published block has ``activation=nn.ReLU``. Section 3.

    >>> RepVGG(8, 8, 3, padding=1, activation=nn.ReLU)(torch.zeros(1, 8, 6, 7)).shape
    torch.Size([1, 8, 6, 7])
    """

    main_branch = "conv_kxk"

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size = 3, stride: Size = 1, padding: Size | str = 0,
        dilation: Size = 1, groups: int = 1, bias: bool = True, padding_mode: str = "zeros", device: Device = None,
        dtype: torch.dtype | None = None, *, squeeze_excite: str | None = None, reduction: int | None = None,
        drop_path: float = 0.0, **options: Unpack[BranchOptions],
    ) -> None:  # fmt: skip
        if drop_path and options.get("online"):
            raise InputError("drop_path leaves out branches, which a block with online=True doesn't have one by one")
        ndim, activation = options.get("ndim", 2), options.get("activation")
        options["activation"] = gated(activation, out_channels, squeeze_excite, reduction, ndim)
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype, **options,
        )  # fmt: skip
        self.drop_path = DropPath(drop_path) if drop_path and "identity" in self.branch_names else None

    def make_branches(self, spec: ConvSpec) -> dict[str, nn.Module]:
        shortcut = {"identity": spec.identity_bn()} if spec.keeps_shape else {}
        return {"conv_kxk": spec.conv_bn(), "conv_1x1": spec.conv_bn((1,) * spec.ndim), **shortcut}

    def forward(self, x: Tensor) -> Tensor:
        if self.drop_path is None or not self.training:
            return super().forward(x)
        x = through(self.pad, x)
        y = cast(Tensor, self.drop_path(self.summed(x, ("conv_kxk", "conv_1x1"))))
        return through(self.post, y + self.summed(x, ("identity",)))


def custom_l2(block: RepVGG) -> Tensor:
    """The penalty that the authors put in place of weight decay on the kernels of K×K and 1×1, a scalar.

        Σ K² off the centre + Σ E_centre² / (t² + u²)

    with K the kernel of the large branch, E the equivalent kernel of the two branches together, and t, u the scales
    γ/√(σ² + ε) of their norms, to which no gradient goes: what is decayed at the centre is the kernel that is served.
    From ``get_custom_L2`` of the published code; add ½ · weight decay times it to the loss, and leave the two kernels
    out of the ordinary decay.
    """
    large, point = (block.get_submodule(name) for name in ("conv_kxk", "conv_1x1"))
    middle: tuple[Any, ...] = (..., *(slice(centre(k), centre(k) + 1) for k in block.kernel_size))
    kernel = cast(Tensor, large.get_submodule("conv").weight)  # (O, I/g, *K)
    served = equivalent_kernel(large, constant_norms=True).kernel[middle]  # (O, I/g, 1…)
    served = served + equivalent_kernel(point, constant_norms=True).kernel
    scales = sum(_scale(branch.get_submodule("bn"), served).square() for branch in (large, point))
    return kernel.square().sum() - kernel[middle].square().sum() + (served.square() / scales).sum()


def _scale(norm: nn.Module, like: Tensor) -> Tensor:
    """The factor per channel of a norm in evaluation, or of a scale, ``(O, 1…)``; 1 where the norm was taken off."""
    if isinstance(norm, Scale):
        return norm.weight.detach().to(like).view(-1, *(1,) * (like.dim() - 1))
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return torch.ones_like(like[:, :1])
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale, _ = batch_norm_scale_shift(mean, variance, norm.weight, norm.bias, norm.eps, dtype=torch.float64)
    return scale.detach().to(like).view(-1, *(1,) * (like.dim() - 1))
