"""What the blocks of several papers share: where a branch looks, the conv-BN pair, the average with a dilation."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbranch.errors import InputError

Pair: TypeAlias = tuple[int, int]
Activation: TypeAlias = Callable[[], nn.Module] | None
"""Called without arguments to make the module after the sum, as ``nn.ReLU``; ``None`` leaves the block affine."""

# How F.pad would do it, as modules.
_INPUT_PADS: dict[str, type[nn.Module]] = {
    "reflect": nn.ReflectionPad2d,
    "replicate": nn.ReplicationPad2d,
    "circular": nn.CircularPad2d,
}


def pair(value: int | Pair) -> Pair:
    """``(height, width)`` of a value given once or twice."""
    if isinstance(value, int):
        return value, value
    height, width = value
    return int(height), int(width)


def resolve_padding(padding: int | Pair | str, kernel: Pair, dilation: Pair) -> Pair:
    """Padding per axis, with nn.Conv2d's words ``"valid"`` and ``"same"`` turned into numbers."""
    if not isinstance(padding, str):
        return pair(padding)
    if padding == "valid":
        return 0, 0
    reach = [d * (k - 1) for k, d in zip(kernel, dilation, strict=True)]
    if padding != "same" or any(r % 2 for r in reach):
        raise InputError(f"padding={padding!r} needs an odd kernel; got kernel {kernel} with dilation {dilation}")
    return reach[0] // 2, reach[1] // 2


def input_pad(padding: Pair, mode: str) -> tuple[nn.Module | None, Pair]:
    """A module that pads the block's input once for all branches, if any, and the zero padding left for them to do."""
    if mode == "zeros":
        return None, padding
    if mode not in _INPUT_PADS:
        raise InputError(f"padding_mode={mode!r} is none of zeros, {', '.join(_INPUT_PADS)}")
    vertical, horizontal = padding
    return _INPUT_PADS[mode]((horizontal, horizontal, vertical, vertical)), (0, 0)


def centre_frame(kernel: int, padding: int, dilation: int) -> Pair:
    """Padding ``(low, high)`` with which one tap sees what the centre tap of the long kernel sees; negative crops.

    An even kernel has no centre: its tap ``(kernel - 1) // 2`` is taken.
    """
    centre = (kernel - 1) // 2
    return padding - dilation * centre, padding - dilation * (kernel - 1 - centre)


def split_frames(frames: tuple[Pair, Pair]) -> tuple[Pair, tuple[int, int, int, int]]:
    """What a convolution can pad itself, and the rest for F.pad; negative amounts crop."""
    (top, bottom), (left, right) = frames
    rows, columns = max(min(top, bottom), 0), max(min(left, right), 0)
    return (rows, columns), (left - columns, right - columns, top - rows, bottom - rows)


def _crop(amounts: tuple[int, int, int, int]) -> OrderedDict[str, nn.Module]:
    """The layers of a branch so far: nothing, or what pads and crops as F.pad does."""
    return OrderedDict(crop=nn.ZeroPad2d(amounts)) if any(amounts) else OrderedDict()


@dataclass(frozen=True)
class ConvSpec:
    """The convolution that a block stands in for, and the batch norms of its branches."""

    in_channels: int
    out_channels: int
    kernel: Pair
    stride: Pair
    padding: Pair
    dilation: Pair
    groups: int
    eps: float
    momentum: float

    def norm(self, channels: int) -> nn.BatchNorm2d:
        return nn.BatchNorm2d(channels, self.eps, self.momentum)

    def frames(self, shape: Pair) -> tuple[Pair, Pair]:
        """``((top, bottom), (left, right))`` with which a kernel of this shape, K or 1 long per axis, fits."""
        rows, columns = (
            (p, p) if length == k else centre_frame(k, p, d)
            for length, k, p, d in zip(shape, self.kernel, self.padding, self.dilation, strict=True)
        )
        return rows, columns

    def conv_bn(self, shape: Pair) -> nn.Sequential:
        """``BN(conv(x))`` with a bias-free convolution of this shape, where the whole kernel has its centre."""
        shared, rest = split_frames(self.frames(shape))
        layers = _crop(rest)
        layers["conv"] = nn.Conv2d(
            self.in_channels, self.out_channels, shape, self.stride, shared, self.dilation, self.groups, bias=False
        )
        layers["bn"] = self.norm(self.out_channels)
        return nn.Sequential(layers)

    def identity_bn(self) -> nn.Sequential:
        """``BN(x)``, the input framed as the centre tap sees it."""
        (top, bottom), (left, right) = self.frames((1, 1))
        layers = _crop((left, right, top, bottom))
        layers["bn"] = self.norm(self.out_channels)
        return nn.Sequential(layers)

    def conv_1x1(self, channels: int) -> nn.Conv2d:
        """The unstrided 1×1 convolution that opens a sequence."""
        return nn.Conv2d(self.in_channels, channels, 1, groups=self.groups, bias=False)

    def average(self, channels: int, padding: Pair) -> nn.Module:
        """The mean over the kernel's taps; nn.AvgPool2d where that can do it."""
        inside = all(2 * p <= k for p, k in zip(padding, self.kernel, strict=True))
        if self.dilation == (1, 1) and inside:
            return nn.AvgPool2d(self.kernel, self.stride, padding)
        return DilatedAvgPool2d(channels, self.kernel, self.stride, padding, self.dilation)


def through(module: nn.Module | None, x: Tensor) -> Tensor:
    """The module's output, or ``x`` itself where there is none."""
    return x if module is None else cast(Tensor, module(x))


def init_scale(branch: nn.Sequential | None, value: float) -> None:
    """Set γ of the batch norm that ends a branch."""
    if branch is not None:
        norm = cast(nn.BatchNorm2d, branch.bn)
        nn.init.constant_(norm.weight, value)


class DilatedAvgPool2d(nn.Module):
    """The mean of ``kernel`` taps, ``dilation`` apart, zeros outside counted: an average pool that PyTorch lacks.

    ``(B, C, H, W)`` to ``(B, C, H', W')``.
    """

    ones: Tensor

    def __init__(self, channels: int, kernel: Pair, stride: Pair, padding: Pair, dilation: Pair) -> None:
        super().__init__()
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.channels, self.count = channels, kernel[0] * kernel[1]
        # Ones, divided when used: 1/9 stored in float32 would still be off after a cast to float64.
        self.register_buffer("ones", torch.ones(channels, 1, *kernel), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        mean = self.ones / self.count  # (C, 1, kH, kW)
        return F.conv2d(x, mean, None, self.stride, self.padding, self.dilation, self.channels)


def conv_spec(
    in_channels: int,
    out_channels: int,
    kernel_size: int | Pair,
    stride: int | Pair,
    padding: int | Pair | str,
    dilation: int | Pair,
    groups: int,
    padding_mode: str,
    eps: float,
    momentum: float,
) -> tuple[nn.Module | None, ConvSpec]:
    """The module that pads the block's input, if any, and the convolution that the branches then build."""
    kernel, dilation = pair(kernel_size), pair(dilation)
    pad, padding = input_pad(resolve_padding(padding, kernel, dilation), padding_mode)
    return pad, ConvSpec(in_channels, out_channels, kernel, pair(stride), padding, dilation, groups, eps, momentum)
