"""OREPA, a block whose kernels are summed in each training step, so that it runs one convolution.

Hu, Feng, Hua, Lai, Huang, Gong, Hua: "Online Convolutional Re-parameterization", CVPR 2022,
https://arxiv.org/abs/2204.00826, sections 3 and 4.

    y = BN( (s₁K×K + s₂1×1 + s₃AVG∘1×1 + s₄K×K∘1×1 + s₅PRIOR∘1×1 + s₆1×1∘K×K dw) * x )        deploys as   K×K * x + b

         ┌── K×K ───────── s₁ ──┐   0.25
         ├── 1×1 ───────── s₂ ──┤   1
         ├── 1×1 ── AVG ── s₃ ──┤   0.25
    x ───┼── 1×1 ── K×K ── s₄ ──┼─ + ── BN ── y           0.5
         ├── 1×1 ── PRIOR─ s₅ ──┤   0
         └── dw K×K ─ 1×1 ─ s₆ ─┘   0.5

A branch has a factor s per channel in place of a batch norm, so the block is linear up to the norm after the sum. The
branches only change how the kernel is updated by the optimizer. PRIOR filters each channel with a fixed cosine, along
the height in the first half of the channels and along the width in the second; AVG adds the frequency zero. The last
branch is a depthwise convolution to eight times as many channels, followed by a 1×1.

Deviations from the published code: any padding, dilation and padding mode, even and non-square kernels, 1 to 3
dimensions; cosines for kernels other than 3×3 (there, the rest of the filter is uninitialised memory); with an odd
number of channels the larger half is filtered along the height. The published stem, with several 3×3 kernels in
sequence, isn't implemented.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from unbranch.blocks.branched import BranchedConv, BranchOptions, closing_norm
from unbranch.blocks.layers import FixedDepthwise, IdentityConv, Scale
from unbranch.blocks.parts import Device, Size
from unbranch.blocks.spec import ConvSpec, NamedModules
from unbranch.errors import InputError
from unbranch.grids import CONV_LAYERS
from unbranch.large_kernels import LargeConv2d

if TYPE_CHECKING:
    from typing_extensions import Unpack

SCALES = {"conv_kxk": 0.25, "average": 0.25, "prior": 0.0, "conv_1x1_kxk": 0.5, "conv_1x1": 1.0, "separable": 0.5}
"""Initial factors of the branches."""
EXPANSION = 8  # channels of the depthwise convolution over C_in


class OREPA(BranchedConv):
    """Convolution with the sum of six kernels, then batch norm; ``(B, C_in, H, W)`` to ``(B, C_out, H', W')``.

    Other arguments are those of ``BranchedConv``; ``online`` is always True, and ``init`` sets the factors, by default
    to the published ones. The initial kernels are uniform for ReLU networks (He et al., 2015, fan-in).

    Args:
        internal_channels: channels inside the 1×1 → K×K branch; by default C_in for up to four groups, else 2·C_in.

    Raises:
        InputError: if ``internal_channels`` isn't a multiple of ``in_channels``.

    Example:
        >>> OREPA(3, 8, 3, padding=1)(torch.zeros(2, 3, 6, 7)).shape
        torch.Size([2, 8, 6, 7])
    """

    main_branch = "conv_kxk"

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: Size, stride: Size = 1, padding: Size | str = 0,
        dilation: Size = 1, groups: int = 1, bias: bool = True, padding_mode: str = "zeros", device: Device = None,
        dtype: torch.dtype | None = None, *, internal_channels: int | None = None, **options: Unpack[BranchOptions],
    ) -> None:  # fmt: skip
        if not options.get("online", True):
            raise InputError("`online` must be True for OREPA, whose branches have no batch norms")
        init = options.get("init")
        options["online"] = True
        self.internal_channels = internal_channels
        super().__init__(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias, padding_mode, device,
            dtype, **options,
        )  # fmt: skip
        _start(self, init)

    def make_branches(self, spec: ConvSpec) -> dict[str, nn.Module]:
        point = (1,) * spec.ndim
        branches: dict[str, nn.Module] = {"conv_kxk": spec.conv_bn()}
        if math.prod(spec.kernel) > 1:
            branches["average"] = _after_point(spec, spec.average((0,) * spec.ndim))
            prior = FixedDepthwise(spec, frequencies(spec.out_channels, spec.kernel))
            branches["prior"] = _after_point(spec, NamedModules(filter=prior), padded=False)
        branches["conv_1x1_kxk"] = _sequence(spec, self.internal_channels)
        if math.prod(spec.kernel) > 1:
            branches["conv_1x1"] = spec.conv_bn(point)
            branches["separable"] = _separable(spec)
        return branches


def _after_point(spec: ConvSpec, layers: NamedModules, padded: bool = True) -> nn.Sequential:
    """``s·layers(1×1 * x)``; with ``padded``, the output of the 1×1 is padded with zeros."""
    width = spec.out_channels
    point = NamedModules(conv_1x1=spec.conv(spec.in_channels, width, (1,) * spec.ndim, strided=False))
    around = spec.zero_pad(tuple((p, p) for p in spec.padding)) if padded else NamedModules()
    return nn.Sequential(NamedModules([*point.items(), *around.items(), *layers.items(), ("bn", spec.norm(width))]))


def _sequence(spec: ConvSpec, width: int | None) -> nn.Sequential:
    """``s·K×K * 1×1 * x``, with the identity as the initial 1×1."""
    width = (1 if spec.groups <= 4 else 2) * spec.in_channels if width is None else width
    if width < 1 or width % spec.in_channels:
        raise InputError(
            f"`internal_channels` must be a multiple of `in_channels`, got internal_channels={width}, "
            f"in_channels={spec.in_channels}"
        )
    layers = NamedModules(identity_1x1=IdentityConv(spec, width))
    layers["conv_kxk"] = spec.conv(width, spec.out_channels, spec.kernel, spec.padding)
    layers["bn"] = spec.norm(spec.out_channels)
    return nn.Sequential(layers)


def _separable(spec: ConvSpec) -> nn.Sequential:
    """``s·1×1 * depthwise K×K * x``."""
    width, one = EXPANSION * spec.in_channels, (1,) * spec.ndim
    depthwise = CONV_LAYERS[spec.ndim](
        spec.in_channels, width, spec.kernel, spec.stride, spec.padding, spec.dilation, spec.in_channels, bias=False,
        device=spec.device, dtype=spec.dtype,
    )  # fmt: skip
    point = spec.conv(width, spec.out_channels, one, strided=False)
    return nn.Sequential(NamedModules(depthwise=depthwise, pointwise=point, bn=spec.norm(spec.out_channels)))


def frequencies(channels: int, kernel: tuple[int, ...]) -> Tensor:
    """Return fixed filters ``(channels, 1, *kernel)``: cosines of increasing frequency along each axis in turn.

        cos(π·j·(k + 1/2) / K)        j = 1, 2, … within the channels of an axis, k = 0 … K − 1

    Example:
        >>> frequencies(4, (3, 3))[0, 0].T[0]  # cos(π/6), cos(π/2), cos(5π/6) along the height
        tensor([ 8.6603e-01, -4.3711e-08, -8.6603e-01])
    """
    ndim, parts = len(kernel), []
    starts = [math.ceil(channels * axis / ndim) for axis in range(ndim + 1)]
    for axis, side in enumerate(kernel):
        orders = torch.arange(1, starts[axis + 1] - starts[axis] + 1, dtype=torch.float32).view(-1, 1)
        waves = torch.cos(math.pi * orders * (torch.arange(side, dtype=torch.float32) + 0.5) / side)  # (n, K)
        shape = [1] * ndim
        shape[axis] = side
        parts.append(waves.view(-1, 1, *shape).expand(-1, 1, *kernel))
    return torch.cat(parts)


def _start(block: OREPA, init: float | str | None) -> None:
    for name in block.branch_names:
        branch = block.get_submodule(name)
        kept = init == "identity" and name == block.main_branch
        for layer in branch.modules():
            if type(layer) in (*CONV_LAYERS.values(), LargeConv2d) and not kept:
                nn.init.kaiming_uniform_(cast(Any, layer).weight)
        for scale in closing_norm(branch) if init is None else ():
            nn.init.constant_(cast(Scale, scale).weight, SCALES[name])
