"""DBB, the diverse branch block (ACNetV2).

Ding, Zhang, Han, Ding: "Diverse Branch Block: Building a Convolution as an Inception-like Unit", CVPR 2021,
https://arxiv.org/abs/2103.13425, section 3.

    y = BN(K×K * x) + BN(1×1 * x) + BN(AVG(BN(1×1 * x))) + BN(K×K * BN(1×1 * x))        deploys as   K×K * x + b

         ┌── K×K ────────────── BN ──┐
         ├── 1×1 ────────────── BN ──┤
    x ───┼── 1×1 ── BNᵖ ─ AVG ─ BN ──┼─ + ── y
         └── 1×1 ── BNᵖ ─ K×K ─ BN ──┘

BNᵖ pads *after* normalising, with the norm's output for zero, so that the border is what the 1×1 convolution and the
norm compute from padded zeros. Without this, the two convolutions couldn't be merged at the border.

Where the sequence keeps the number of channels, its 1×1 starts as the identity: kernel = identity + difference, and
the difference, initially 0, is the parameter, to which weight decay applies. A depthwise block (groups = C_in = C_out)
has no 1×1 branch, averages x itself, and has 2·C_in channels inside the sequence.

Deviations from the published code: any padding (there, p = K//2 is asserted); dilation (there, an assertion fails),
with an average over the dilated taps; even and non-square kernels; groups = C_out ≠ C_in counts as grouped, not as
depthwise; a padding mode other than zeros pads the input once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn

from unbranch.blocks.branched import BranchedConv, BranchOptions
from unbranch.blocks.layers import BorderBatchNorm, IdentityConv
from unbranch.blocks.parts import Device, Size
from unbranch.blocks.spec import ConvSpec, NamedModules
from unbranch.deprecation import renamed_names
from unbranch.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Unpack


def avg_branch(spec: ConvSpec) -> nn.Sequential:
    """Return the branch ``BN(AVG(BNᵖ(1×1 * x)))``, or ``BN(AVG(x))`` with zero padding for a depthwise block."""
    width = spec.out_channels
    layers = NamedModules()
    if not spec.depthwise:
        layers["conv_1x1"] = spec.conv(spec.in_channels, width, (1,) * spec.ndim, strided=False)
        layers["border_bn"] = BorderBatchNorm(spec, width)
    layers |= spec.average(spec.padding if spec.depthwise else (0,) * spec.ndim)
    layers["bn"] = spec.norm(width)
    return nn.Sequential(layers)


def conv1x1_kxk_branch(spec: ConvSpec, width: int | None = None) -> nn.Sequential:
    """Return the branch ``BN(K×K * BNᵖ(1×1 * x))``.

    Args:
        spec: the convolution that the block replaces.
        width: channels between the two convolutions; by default C_in, or 2·C_in for a depthwise block.

    Raises:
        InputError: if the groups don't divide the width.
    """
    width = (1 + spec.depthwise) * spec.in_channels if width is None else width
    if width < 1 or width % spec.groups:
        raise InputError(
            f"`internal_channels` must be a multiple of `groups`, got internal_channels={width}, groups={spec.groups}"
        )
    layers = NamedModules()
    if width == spec.in_channels:
        layers["identity_1x1"] = IdentityConv(spec)
    else:
        layers["conv_1x1"] = spec.conv(spec.in_channels, width, (1,) * spec.ndim, strided=False)
    layers["border_bn"] = BorderBatchNorm(spec, width)
    layers["conv_kxk"] = spec.conv(width, spec.out_channels, spec.kernel)
    layers["bn"] = spec.norm(spec.out_channels)
    return nn.Sequential(layers)


class DBB(BranchedConv):
    """``BN(K×K) + BN(1×1) + BN(AVG(BN(1×1))) + BN(K×K(BN(1×1)))``, ``(B, C_in, H, W)`` to ``(B, C_out, H', W')``.

    Other arguments are those of ``BranchedConv``; with ``init="single"`` only the K×K branch is active at first.
    Section 3.2, table 1.

    Args:
        internal_channels: channels inside the 1×1 → K×K branch; by default C_in, or 2·C_in for a depthwise block.

    Example:
        >>> DBB(3, 8, 3, padding=1)(torch.zeros(1, 3, 6, 7)).shape
        torch.Size([1, 8, 6, 7])
    """

    main_branch = "conv_kxk"

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1, padding: Size | str = 0,
        dilation: Size = 1, groups: int = 1, bias: bool = True, padding_mode: str = "zeros", device: Device = None,
        dtype: torch.dtype | None = None, *, internal_channels: int | None = None, **options: Unpack[BranchOptions],
    ) -> None:  # fmt: skip
        self.internal_channels = internal_channels
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype, **options,
        )  # fmt: skip

    def make_branches(self, spec: ConvSpec) -> dict[str, nn.Module]:
        point = {} if spec.depthwise else {"conv_1x1": spec.conv_bn((1,) * spec.ndim)}
        return {
            "conv_kxk": spec.conv_bn(),
            **point,
            "average": avg_branch(spec),
            "conv_1x1_kxk": conv1x1_kxk_branch(spec, self.internal_channels),
        }


__getattr__ = renamed_names(__name__, {"average": "avg_branch", "sequence": "conv1x1_kxk_branch"})
