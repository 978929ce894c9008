"""RepVGG, a 3×3 convolution that trains with a 1×1 and a shortcut in parallel.

Ding, Zhang, Ma, Han, Ding, Sun: "RepVGG: Making VGG-style ConvNets Great Again", CVPR 2021,
https://arxiv.org/abs/2101.03697, section 3.

    y = BN(3×3 * x) + BN(1×1 * x) + BN(x)        deploys as   3×3 * x + b

         ┌── 3×3 ── BN ──┐
    x ───┼── 1×1 ── BN ──┼─ + ── (squeeze-excite, activation) ── y
         └───────── BN ──┘

The third branch exists if input and output have the same channels and the stride is 1. Squeeze-and-excitation comes
before the activation in RepVGG-D2se and after it in RepVGGplus.

Deviations from the published code: any kernel, padding and dilation, for all branches (there, the training branches
ignore dilation and padding mode); squeeze-and-excitation pools the whole map (there, a square window as wide as the
map) and has at least one hidden channel; the block has no activation by default.
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

    Other arguments are those of ``BranchedConv``; the published block has ``activation=nn.ReLU``. Section 3.

    Args:
        squeeze_excite: its place, ``"before"`` or ``"after"`` the activation; None to omit it.
        reduction: channels over its hidden channels; by default 16 before and 4 after the activation.
        drop_path: rate of stochastic depth of the convolutions in blocks with an identity branch.

    Raises:
        InputError: if ``drop_path`` is used with ``online``.

    Example:
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
            raise InputError(
                f"`drop_path` must be 0 with online=True, where branches aren't computed separately, got {drop_path}"
            )
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
    """Return the penalty that replaces weight decay for the kernels of K×K and 1×1, a scalar.

        Σ K² off the centre + Σ E_centre² / (t² + u²)

    K is the kernel of the large branch, E the equivalent kernel of the two branches together, and t, u are the scales
    γ/√(σ² + ε) of their norms, which get no gradient. At the centre this decays the kernel that will be deployed. Add
    it to the loss with the factor ½ · weight decay, and exclude the two kernels from the optimizer's weight decay.
    From ``get_custom_L2`` of the published code.
    """
    large, point = (block.get_submodule(name) for name in ("conv_kxk", "conv_1x1"))
    middle: tuple[Any, ...] = (..., *(slice(centre(k), centre(k) + 1) for k in block.kernel_size))
    kernel = cast(Tensor, large.get_submodule("conv").weight)  # (O, I/g, *K)
    deployed = equivalent_kernel(large, constant_norms=True).kernel[middle]  # (O, I/g, 1…)
    deployed = deployed + equivalent_kernel(point, constant_norms=True).kernel
    scales = sum(_scale(branch.get_submodule("bn"), deployed).square() for branch in (large, point))
    return kernel.square().sum() - kernel[middle].square().sum() + (deployed.square() / scales).sum()


def _scale(norm: nn.Module, like: Tensor) -> Tensor:
    """Return the factor per channel of a norm in evaluation, or of a scale, ``(O, 1…)``; 1 for other modules."""
    if isinstance(norm, Scale):
        return norm.weight.detach().to(like).view(-1, *(1,) * (like.dim() - 1))
    if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
        return torch.ones_like(like[:, :1])
    mean, variance = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
    scale, _ = batch_norm_scale_shift(mean, variance, norm.weight, norm.bias, norm.eps, dtype=torch.float64)
    return scale.detach().to(like).view(-1, *(1,) * (like.dim() - 1))
