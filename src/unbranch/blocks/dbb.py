"""DBB, the diverse branch block (ACNetV2).

Ding, Zhang, Han, Ding: "Diverse Branch Block: Building a Convolution as an Inception-like Unit", CVPR 2021,
https://arxiv.org/abs/2103.13425, section 3.

    y = BN(K×K * x) + BN(1×1 * x) + BN(AVG(BN(1×1 * x))) + BN(K×K * BN(1×1 * x))        deploys as   K×K * x + b

         ┌── K×K ────────────── BN ──┐
         ├── 1×1 ────────────── BN ──┤
    x ───┼── 1×1 ── BNᵖ ─ AVG ─ BN ──┼─ + ── y
         └── 1×1 ── BNᵖ ─ K×K ─ BN ──┘

BNᵖ pads *after* normalising, with the value the norm gives to a zero, so that the border of the padded map is what
the 1×1 convolution would have made of padded zeros. Only this makes the sequence one convolution at the border.

Where the sequence keeps the number of channels, its 1×1 starts as the identity: kernel = identity + difference, and
the difference, initially 0, is what is stored and decayed. A depthwise block (groups = C_in = C_out) has no 1×1
branch, averages x itself, and widens to 2·C_in channels inside the sequence.

Deviations from the published code: any padding, where that asserts p = K//2; dilation (there, an assertion fails),
with an average over the dilated taps; even and non-square kernels; groups = C_out ≠ C_in counts as grouped, not as
depthwise; a padding mode other than zeros pads the input once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbranch.blocks.branched import BranchedConv, BranchOptions
from unbranch.blocks.parts import Device, Size, last_axis_first
from unbranch.blocks.spec import ConvSpec, Layers
from unbranch.errors import InputError

if TYPE_CHECKING:
    from typing_extensions import Unpack


class BorderBatchNorm(nn.Module):
    """Batch norm, then a border of the value that it gives to zero: ``v = β − μ·γ/√(σ² + ε)``, by running statistics.

    ``(B, C, *size)`` to ``(B, C, *size + 2·border)``. In training the border follows this batch's update of the
    statistics, and no gradient reaches γ and β through it.
    """

    def __init__(self, spec: ConvSpec, channels: int) -> None:
        super().__init__()
        self.bn = spec.norm(channels)
        self.border = last_axis_first(tuple((p, p) for p in spec.padding))

    def forward(self, x: Tensor) -> Tensor:
        y = cast(Tensor, self.bn(x))
        if not any(self.border):
            return y
        zero = self._of_zero().view(1, -1, *(1,) * (len(self.border) // 2))  # (1, C, 1…)
        return F.pad(y - zero, self.border) + zero

    def _of_zero(self) -> Tensor:
        """What the norm makes of zero, ``(C,)``."""
        bn = cast(nn.BatchNorm2d, self.bn)
        mean, variance = cast(Tensor, bn.running_mean), cast(Tensor, bn.running_var)
        normal = -mean / torch.sqrt(variance + bn.eps)
        return normal * bn.weight.detach() + bn.bias.detach() if bn.affine else normal


class IdentityConv(nn.Module):
    """A 1×1 convolution that starts as the identity: ``x + difference * x``, ``(B, C, *size)`` to the same.

    ``weight`` ``(C, C/g, 1…)`` is the difference.
    """

    def __init__(self, spec: ConvSpec) -> None:
        super().__init__()
        self.groups, self.ndim, channels = spec.groups, spec.ndim, spec.in_channels
        shape = (channels, channels // spec.groups, *(1,) * spec.ndim)
        self.weight = nn.Parameter(torch.zeros(shape, device=spec.device, dtype=spec.dtype))

    def forward(self, x: Tensor) -> Tensor:
        conv = (F.conv1d, F.conv2d, F.conv3d)[self.ndim - 1]
        return x + conv(x, self.weight, groups=self.groups)


def average(spec: ConvSpec) -> nn.Sequential:
    """``BN(AVG(BNᵖ(1×1 * x)))``, or ``BN(AVG(x))`` with zeros around x where the block is depthwise."""
    width = spec.out_channels
    layers = Layers()
    if not spec.depthwise:
        layers["conv_1x1"] = spec.conv(spec.in_channels, width, (1,) * spec.ndim, strided=False)
        layers["border_bn"] = BorderBatchNorm(spec, width)
    layers |= spec.average(spec.padding if spec.depthwise else (0,) * spec.ndim)
    layers["bn"] = spec.norm(width)
    return nn.Sequential(layers)


def sequence(spec: ConvSpec, width: int | None = None) -> nn.Sequential:
    """``BN(K×K * BNᵖ(1×1 * x))`` with ``width`` channels between the two: C_in unless given, 2·C_in if depthwise.

    Raises:
        InputError: if the groups don't divide the width.
    """
    width = (1 + spec.depthwise) * spec.in_channels if width is None else width
    if width < 1 or width % spec.groups:
        raise InputError(f"internal_channels is a multiple of groups={spec.groups}; got {width}")
    layers = Layers()
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

    Arguments as for ``BranchedConv``, and ``internal_channels``, the width inside the 1×1 → K×K branch: ``C_in``
    unless given, ``2·C_in`` if depthwise. ``init="single"`` starts the block as its K×K branch alone.
    Section 3.2, table 1.

    >>> DBB(3, 8, 3, padding=1)(torch.zeros(1, 3, 6, 7)).shape
    torch.Size([1, 8, 6, 7])
    """

    main = "conv_kxk"

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
            "average": average(spec),
            "conv_1x1_kxk": sequence(spec, self.internal_channels),
        }
