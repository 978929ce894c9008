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

Where the sequence keeps the number of channels, its 1×1 starts as the identity: weight = identity + difference, and
the difference, initially 0, is what is stored and decayed. A depthwise block (groups = C_in = C_out) has no 1×1
branch, averages x itself, and widens to 2·C_in channels inside the sequence.

Deviations from the published code: any padding, where that asserts p = K//2; dilation (there, an assertion fails),
with an average over the dilated taps; even and non-square kernels; groups = C_out ≠ C_in counts as grouped, not as
depthwise; a padding mode other than zeros pads the input once.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbranch.blocks.parts import Activation, ConvSpec, Pair, conv_spec, init_scale, through


class BorderBatchNorm2d(nn.Module):
    """Batch norm, then a border of the value that it gives to zero: ``v = β − μ·γ/√(σ² + ε)``, by running statistics.

    ``(B, C, H, W)`` to ``(B, C, H + 2·border[0], W + 2·border[1])``. In training the border follows this batch's
    update of the statistics, and no gradient reaches γ and β through it.
    """

    def __init__(self, channels: int, border: Pair, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, eps, momentum)
        self.border = (border[1], border[1], border[0], border[0])

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(x)
        mean, variance = cast(Tensor, self.bn.running_mean), cast(Tensor, self.bn.running_var)
        scale = self.bn.weight.detach() / torch.sqrt(variance + self.bn.eps)
        zero = (self.bn.bias.detach() - mean * scale).view(1, -1, 1, 1)  # (1, C, 1, 1)
        return F.pad(y - zero, self.border) + zero


class IdentityConv1x1(nn.Module):
    """A 1×1 convolution that starts as the identity: ``(I + difference) * x``, ``(B, C, H, W)`` to the same.

    ``weight`` ``(C, C/g, 1, 1)`` is the difference.
    """

    identity: Tensor

    def __init__(self, channels: int, groups: int = 1) -> None:
        super().__init__()
        self.groups = groups
        width = channels // groups
        self.weight = nn.Parameter(torch.zeros(channels, width, 1, 1))
        rows = torch.arange(channels)
        identity = torch.zeros(channels, width, 1, 1)
        identity[rows, rows % width] = 1.0
        self.register_buffer("identity", identity, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.identity + self.weight, groups=self.groups)


class DBB(nn.Module):
    """``BN(K×K) + BN(1×1) + BN(AVG(BN(1×1))) + BN(K×K(BN(1×1)))``, ``(B, C_in, H, W)`` to ``(B, C_out, H', W')``.

    ``internal_channels`` is the width inside the 1×1 → K×K branch: ``C_in`` unless given, ``2·C_in`` if depthwise.
    ``single_init`` starts the block as its K×K branch alone. Section 3.2, table 1.

    >>> DBB(3, 8, 3, padding=1)(torch.zeros(1, 3, 6, 7)).shape
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
        internal_channels: int | None = None,
        activation: Activation = None,
        single_init: bool = False,
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
        depthwise = groups == in_channels == out_channels
        self.conv_kxk = spec.conv_bn(spec.kernel)
        self.conv_1x1 = None if depthwise else spec.conv_bn((1, 1))
        self.average = _average(spec, depthwise)
        self.conv_1x1_kxk = _sequence(spec, internal_channels or (2 if depthwise else 1) * in_channels)
        self.activation = activation() if activation is not None else None
        if single_init:
            for branch in (self.conv_1x1, self.average, self.conv_1x1_kxk):
                init_scale(branch, 0.0)

    def forward(self, x: Tensor) -> Tensor:
        x = through(self.pad, x)
        y = self.conv_kxk(x) + self.average(x) + self.conv_1x1_kxk(x)
        if self.conv_1x1 is not None:
            y = y + self.conv_1x1(x)
        return through(self.activation, y)


def _average(spec: ConvSpec, depthwise: bool) -> nn.Sequential:
    """``BN(AVG(BNᵖ(1×1 * x)))``, or ``BN(AVG(x))`` with the pool's own zero padding."""
    width = spec.out_channels
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    if not depthwise:
        layers["conv_1x1"] = spec.conv_1x1(width)
        layers["border_bn"] = BorderBatchNorm2d(width, spec.padding, spec.eps, spec.momentum)
    layers["pool"] = spec.average(width, spec.padding if depthwise else (0, 0))
    layers["bn"] = spec.norm(width)
    return nn.Sequential(layers)


def _sequence(spec: ConvSpec, width: int) -> nn.Sequential:
    """``BN(K×K * BNᵖ(1×1 * x))``, ``width`` channels between the two."""
    same = width == spec.in_channels
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    layers["conv_1x1"] = IdentityConv1x1(width, spec.groups) if same else spec.conv_1x1(width)
    layers["border_bn"] = BorderBatchNorm2d(width, spec.padding, spec.eps, spec.momentum)
    layers["conv_kxk"] = nn.Conv2d(
        width, spec.out_channels, spec.kernel, spec.stride, 0, spec.dilation, spec.groups, bias=False
    )
    layers["bn"] = spec.norm(spec.out_channels)
    return nn.Sequential(layers)
