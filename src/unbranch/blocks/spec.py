"""The convolution that a block replaces, as a factory of branches that are aligned with its kernel."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, replace
from math import gcd
from typing import TypeAlias

import torch
from torch import nn

from unbranch.blocks.layers import Scale
from unbranch.blocks.parts import Device, DilatedAvgPool, Size
from unbranch.deprecation import renamed_names
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
from unbranch.large_kernels import accelerate_large_kernels

NamedModules: TypeAlias = OrderedDict[str, nn.Module]
"""Layers by name, as nn.Sequential takes them."""


def resolve_padding(padding: Size | str, kernel: Ints, stride: Ints, dilation: Ints) -> Amounts:
    """Return the padding before and after on each axis, with ``"valid"`` and ``"same"`` turned into numbers.

    Raises:
        InputError: for another string; for "same" with a stride other than 1.
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
    """Return the index of the centre tap, ``(length - 1) // 2``, also for an even kernel."""
    return (length - 1) // 2


@dataclass(frozen=True)
class ConvSpec:
    """A convolution, and the settings of the batch norms of its branches.

    Its methods make branches with kernels of any smaller shape, aligned with the centre of the full kernel: the input
    of a branch is padded or cropped so that both centre taps read the same positions.

    Args:
        in_channels, out_channels, stride, padding, dilation, groups: of the convolution.
        kernel: its kernel size.
        affine, eps, momentum: of the batch norms.
        device, dtype: of the parameters.
        online: make scales in place of batch norms.

    Raises:
        InputError: if a number of channels or groups is below 1, or the groups don't divide the channels.
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
        """Whether input and output have the same channels, and the stride is 1."""
        return self.in_channels == self.out_channels and all(s == 1 for s in self.stride)

    def padded_by(self, mode: str, amounts: Amounts) -> tuple[nn.Module | None, ConvSpec]:
        """Return a module that pads the input of all branches, or None, and the convolution that follows it.

        Symmetric zero padding is part of the convolution.

        Raises:
            InputError: for an unknown mode.
        """
        if mode not in PAD_LAYERS:
            raise InputError(f"`padding_mode` must be one of {', '.join(PAD_LAYERS)}, got {mode!r}")
        if mode == "zeros" and all(before == after for before, after in amounts):
            return None, replace(self, padding=tuple(before for before, _ in amounts))
        if not any(any(pair) for pair in amounts):
            return None, self
        return PAD_LAYERS[mode][self.ndim](last_axis_first(amounts)), self

    def frames(self, shape: Ints, step: int = 1) -> Amounts:
        """Return the padding that aligns a kernel of this shape with the centre of the full kernel.

        Args:
            shape: kernel size of the branch.
            step: distance of its taps, in taps of the full kernel.

        Raises:
            InputError: if the branch's kernel isn't inside the full kernel.
        """
        if len(shape) != self.ndim or any(step * (s - 1) >= k for s, k in zip(shape, self.kernel, strict=True)):
            stepped = f" and taps {step} apart" if step > 1 else ""
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
        """Return a batch norm, or a scale for an online block."""
        if self.online:
            return Scale(channels, self.ndim, self.device, self.dtype)
        return NORM_LAYERS[self.ndim](
            channels, self.eps, self.momentum, self.affine, device=self.device, dtype=self.dtype
        )  # fmt: skip

    def zero_pad(self, frames: Amounts) -> NamedModules:
        """Return a layer ``crop`` that pads and crops, or nothing if there is nothing to pad."""
        pad = PAD_LAYERS["zeros"][self.ndim](last_axis_first(frames))
        return OrderedDict(crop=pad) if any(any(frame) for frame in frames) else OrderedDict()

    def conv(
        self, in_channels: int, out_channels: int, shape: Ints, padding: Ints | None = None, strided: bool = True
    ) -> nn.Module:
        """Return a bias-free convolution with the same groups.

        Args:
            in_channels, out_channels, shape, padding: of the convolution.
            strided: whether it has the stride and dilation of the full convolution, else both are 1.
        """
        one = (1,) * self.ndim
        conv = CONV_LAYERS[self.ndim](
            in_channels, out_channels, shape, self.stride if strided else one, padding or (0,) * self.ndim,
            self.dilation if strided else one, self.groups, bias=False, device=self.device, dtype=self.dtype,
        )  # fmt: skip
        return accelerate_large_kernels(conv)

    # --- branches

    def conv_bn(self, shape: Ints | None = None, step: int = 1) -> nn.Sequential:
        """Return the branch ``BN(conv(x))``; arguments as for ``frames``, by default the full kernel."""
        branch = self.conv_alone(shape, step)
        branch.add_module("bn", self.norm(self.out_channels))
        return branch

    def conv_alone(self, shape: Ints | None = None, step: int = 1) -> nn.Sequential:
        """Return the branch ``conv(x)`` without a norm; arguments as for ``conv_bn``."""
        shape = shape or self.kernel
        frames = self.frames(shape, step)
        shared = tuple(max(min(frame), 0) for frame in frames)  # symmetric: done by the convolution
        layers = self.zero_pad(tuple((low - s, high - s) for (low, high), s in zip(frames, shared, strict=True)))
        stepped = replace(self, dilation=tuple(step * d for d in self.dilation))
        layers["conv"] = stepped.conv(self.in_channels, self.out_channels, shape, shared)
        return nn.Sequential(layers)

    def identity(self) -> nn.Sequential:
        """Return the branch ``x``, padded or cropped to the size of the output.

        Raises:
            InputError: if input and output differ in channels, or the stride isn't 1.
        """
        if not self.keeps_shape:
            raise InputError(
                f"an identity branch needs in_channels == out_channels and stride 1, "
                f"got {self.in_channels} to {self.out_channels} with stride {self.stride}"
            )
        return nn.Sequential(self.zero_pad(self.frames((1,) * self.ndim)))

    def identity_bn(self) -> nn.Sequential:
        """Return the branch ``BN(x)``; raises as ``identity``."""
        branch = self.identity()
        branch.add_module("bn", self.norm(self.out_channels))
        return branch

    def average(self, padding: Ints) -> NamedModules:
        """Return layers that average over the kernel's taps, padding included; nn.AvgPoolNd if it supports this."""
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


__getattr__ = renamed_names(__name__, {"Layers": "NamedModules"})
