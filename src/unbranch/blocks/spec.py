"""The convolution that a block stands in for, and the branches that fit into its frame."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from math import gcd
from typing import TypeAlias

import torch
from torch import nn

from unbranch.blocks.layers import Scale
from unbranch.blocks.parts import Device, DilatedAvgPool, Size
from unbranch.errors import InputError
from unbranch.grids import (
    AVG_POOL_LAYERS,
    CONV_LAYERS,
    NORM_LAYERS,
    PAD_LAYERS,
    Amounts,
    Ints,
    last_axis_first,
    per_axis,
    same_padding,
)

Layers: TypeAlias = OrderedDict[str, nn.Module]


def resolve_padding(padding: Size | str, kernel: Ints, stride: Ints, dilation: Ints) -> Amounts:
    """Return the padding before and after on each axis, with ``"valid"`` and ``"same"`` turned into numbers.

    Raises:
        InputError: for another word, and for "same" with a stride.
    """
    if not isinstance(padding, str):
        return tuple((p, p) for p in per_axis(padding, len(kernel), "padding", 0))
    if padding not in ("same", "valid"):
        raise InputError(f"`padding` must be 'same', 'valid' or numbers, got {padding!r}")
    if padding == "valid":
        return ((0, 0),) * len(kernel)
    if any(s != 1 for s in stride):
        raise InputError(f"`padding='same'` needs stride 1, got stride={stride}")
    return tuple(zip(*same_padding(kernel, dilation), strict=True))


def centre(length: int) -> int:
    """The middle tap; an even kernel has none, and its tap ``(length - 1) // 2`` is taken."""
    return (length - 1) // 2


@dataclass(frozen=True)
class ConvSpec:
    """A convolution, and what the batch norms of its branches have in common; ``online`` makes scales of them.

    A branch of any kernel shape is put where the whole kernel has its centre: it sees the input padded or cropped
    so that its centre tap sees what the centre tap of the whole kernel sees.

    Raises:
        InputError: if channels or groups don't fit.
    """

    in_channels: int
    out_channels: int
    kernel: Ints
    stride: Ints
    padding: Ints
    dilation: Ints
    groups: int = 1
    affine: bool = True
    eps: float = 1e-5
    momentum: float = 0.1
    device: Device = None
    dtype: torch.dtype | None = None
    online: bool = False

    def __post_init__(self) -> None:
        for name in ("in_channels", "out_channels", "groups"):
            if getattr(self, name) < 1:
                raise InputError(f"`{name}` must be at least 1, got {getattr(self, name)}")
        if gcd(self.in_channels, self.out_channels) % self.groups:
            raise InputError(
                f"`groups` must divide both `in_channels` and `out_channels`, got groups={self.groups}, "
                f"in_channels={self.in_channels}, out_channels={self.out_channels}"
            )

    @property
    def ndim(self) -> int:
        return len(self.kernel)

    @property
    def depthwise(self) -> bool:
        return self.groups == self.in_channels == self.out_channels

    @property
    def keeps_shape(self) -> bool:
        """Whether input and output have the same channels and step."""
        return self.in_channels == self.out_channels and all(s == 1 for s in self.stride)

    def padded_by(self, mode: str, amounts: Amounts) -> tuple[nn.Module | None, ConvSpec]:
        """Return a module that pads the input once for all branches, if any, and the convolution left to do.

        Padding by as many zeros before as after is left to the convolution.

        Raises:
            InputError: if there is no such mode.
        """
        if mode not in PAD_LAYERS:
            raise InputError(f"`padding_mode` must be one of {', '.join(PAD_LAYERS)}, got {mode!r}")
        if mode == "zeros" and all(before == after for before, after in amounts):
            return None, replace(self, padding=tuple(before for before, _ in amounts))
        if not any(any(pair) for pair in amounts):
            return None, self
        return PAD_LAYERS[mode][self.ndim](last_axis_first(amounts)), self

    def frames(self, shape: Ints, step: int = 1) -> Amounts:
        """Padding with which a kernel of this shape has its centre where the whole kernel has it.

        ``step`` is the distance of its taps in taps of the whole kernel.

        Raises:
            InputError: if the shape doesn't fit into the kernel.
        """
        if len(shape) != self.ndim or any(step * (s - 1) >= k for s, k in zip(shape, self.kernel, strict=True)):
            stepped = f", {step} taps apart," if step > 1 else ""
            raise InputError(f"a branch with kernel {shape}{stepped} doesn't fit into kernel {self.kernel}")
        frames = []
        for short, long, p, d in zip(shape, self.kernel, self.padding, self.dilation, strict=True):
            before = centre(long) - step * centre(short)
            after = long - 1 - step * (short - 1) - before
            if min(before, after) < 0:
                raise InputError(f"a branch with kernel {shape} doesn't fit around the centre of kernel {self.kernel}")
            frames.append((p - d * before, p - d * after))
        return tuple(frames)

    # --- layers

    def norm(self, channels: int) -> nn.Module:
        """A batch norm, or a scale where the block is trained online."""
        if self.online:
            return Scale(channels, self.ndim, self.device, self.dtype)
        return NORM_LAYERS[self.ndim](
            channels, self.eps, self.momentum, self.affine, device=self.device, dtype=self.dtype
        )  # fmt: skip

    def zero_pad(self, frames: Amounts) -> Layers:
        """A layer that pads and crops, where that is needed."""
        pad = PAD_LAYERS["zeros"][self.ndim](last_axis_first(frames))
        return OrderedDict(crop=pad) if any(any(frame) for frame in frames) else OrderedDict()

    def conv(
        self, in_channels: int, out_channels: int, shape: Ints, padding: Ints | None = None, strided: bool = True
    ) -> nn.Module:
        """A bias-free convolution of another shape, with the same groups; unstrided ones aren't dilated either."""
        one = (1,) * self.ndim
        return CONV_LAYERS[self.ndim](
            in_channels, out_channels, shape, self.stride if strided else one, padding or (0,) * self.ndim,
            self.dilation if strided else one, self.groups, bias=False, device=self.device, dtype=self.dtype,
        )  # fmt: skip

    # --- branches

    def conv_bn(self, shape: Ints | None = None, step: int = 1) -> nn.Sequential:
        """``BN(conv(x))`` with a kernel of this shape, the whole one unless given, and of this step."""
        branch = self.conv_alone(shape, step)
        branch.add_module("bn", self.norm(self.out_channels))
        return branch

    def conv_alone(self, shape: Ints | None = None, step: int = 1) -> nn.Sequential:
        """``conv(x)`` without a norm."""
        shape = shape or self.kernel
        frames = self.frames(shape, step)
        shared = tuple(max(min(frame), 0) for frame in frames)  # what a convolution can pad itself
        layers = self.zero_pad(tuple((low - s, high - s) for (low, high), s in zip(frames, shared, strict=True)))
        stepped = replace(self, dilation=tuple(step * d for d in self.dilation))
        layers["conv"] = stepped.conv(self.in_channels, self.out_channels, shape, shared)
        return nn.Sequential(layers)

    def identity(self) -> nn.Sequential:
        """``x`` itself, as the centre tap sees it.

        Raises:
            InputError: if input and output differ in channels or step.
        """
        if not self.keeps_shape:
            raise InputError(
                f"an identity branch needs in_channels == out_channels and stride 1, "
                f"got {self.in_channels} to {self.out_channels} with stride {self.stride}"
            )
        return nn.Sequential(self.zero_pad(self.frames((1,) * self.ndim)))

    def identity_bn(self) -> nn.Sequential:
        """``BN(x)``; raises as ``identity``."""
        branch = self.identity()
        branch.add_module("bn", self.norm(self.out_channels))
        return branch

    def average(self, padding: Ints) -> Layers:
        """The mean over the kernel's taps, zeros of the padding counted; nn.AvgPool where that can do it."""
        plain = all(d == 1 for d in self.dilation)
        if plain and all(2 * p <= k for p, k in zip(padding, self.kernel, strict=True)):
            return OrderedDict(pool=AVG_POOL_LAYERS[self.ndim](self.kernel, self.stride, padding))
        layers = self.zero_pad(tuple((p, p) for p in padding))
        layers["pool"] = (
            AVG_POOL_LAYERS[self.ndim](self.kernel, self.stride)
            if plain
            else DilatedAvgPool(self.kernel, self.stride, self.dilation)
        )
        return layers
