"""Modules that the blocks of several papers share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from unbranch.errors import InputError
from unbranch.grids import CONV_LAYERS, Ints

if TYPE_CHECKING:
    from torch._prims_common import DeviceLikeType

Size: TypeAlias = int | Ints
"""One number for every axis of the grid, or one for each."""
Activation: TypeAlias = Callable[[], nn.Module] | None
"""Factory of the module after the sum, such as ``nn.ReLU``; with None the block is affine."""
Device: TypeAlias = "DeviceLikeType | None"


def through(module: nn.Module | None, x: Tensor) -> Tensor:
    """Return ``module(x)``, or ``x`` if the module is None."""
    return x if module is None else cast(Tensor, module(x))


def conv_bn(
    in_channels: int, out_channels: int, kernel_size: int, stride: int = 1, padding: int = 0, groups: int = 1
) -> nn.Sequential:
    """Return ``BN(conv(x))`` with a bias-free convolution, ``(B, C_in, H, W)`` to ``(B, C_out, H', W')``."""
    layers = nn.Sequential()
    layers.add_module(
        "conv", nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding, groups=groups, bias=False)
    )
    layers.add_module("bn", nn.BatchNorm2d(out_channels))
    return layers


class DilatedAvgPool(nn.Module):
    """Average pool with dilation, ``(B, C, *size)`` to ``(B, C, *size')``.

    Pools one axis after the other, as a sum of shifted slices.
    """

    def __init__(self, kernel: Ints, stride: Ints, dilation: Ints) -> None:
        super().__init__()
        self.kernel, self.stride, self.dilation = kernel, stride, dilation

    def forward(self, x: Tensor) -> Tensor:
        axes = zip(self.kernel, self.stride, self.dilation, strict=True)
        for axis, (kernel, stride, dilation) in enumerate(axes):
            before = (slice(None),) * (axis + 2)
            taps = [slice(j * dilation, (j + 1 - kernel) * dilation or None, stride) for j in range(kernel)]
            total = x[(*before, taps[0])]
            for tap in taps[1:]:
                total = total + x[(*before, tap)]
            x = total / kernel
        return x


class ChannelGate(nn.Module):
    """``g(up(ReLU(down(mean(x)))))``, a factor per channel, ``(B, C, *size)`` to ``(B, C, 1…)``.

    Args:
        channels: C.
        hidden: channels between the two 1×1 convolutions.
        gate: factory of g.
        ndim: number of grid dimensions.
    """

    def __init__(self, channels: int, hidden: int, gate: Callable[[], nn.Module] = nn.Sigmoid, ndim: int = 2) -> None:
        super().__init__()
        if hidden < 1:
            raise InputError(f"`hidden` must be at least 1, got {hidden}")
        self.axes = tuple(range(2, ndim + 2))
        self.down = CONV_LAYERS[ndim](channels, hidden, 1)
        self.up = CONV_LAYERS[ndim](hidden, channels, 1)
        self.gate = gate()

    def forward(self, x: Tensor) -> Tensor:
        mean = x.mean(self.axes, keepdim=True)  # (B, C, 1…)
        return cast(Tensor, self.gate(self.up(torch.relu(self.down(mean)))))


class SqueezeExcite(ChannelGate):
    """``x`` times its channel gate, ``(B, C, *size)`` to the same.

    The mean is over the whole map. Hu, Shen, Sun: "Squeeze-and-Excitation Networks", CVPR 2018, section 3.
    """

    def forward(self, x: Tensor) -> Tensor:
        return x * super().forward(x)


REDUCTION = {"before": 16, "after": 4}  # published for RepVGG, by place relative to the activation


def gated(activation: Activation, channels: int, place: str | None, reduction: int | None, ndim: int) -> Activation:
    """Return a factory of an activation with squeeze-and-excitation.

    Args:
        activation: factory of the activation, or None.
        channels: of its input.
        place: of squeeze-and-excitation: ``"before"`` or ``"after"`` the activation, or None to omit it.
        reduction: channels over hidden channels; by default 16 before and 4 after the activation.
        ndim: number of grid dimensions.

    Raises:
        InputError: for another place.
    """
    if place is None:
        return activation
    if place not in REDUCTION:
        raise InputError(f"`squeeze_excite` must be None, 'before' or 'after' (the activation), got {place!r}")
    hidden = max(1, channels // (reduction or REDUCTION[place]))
    makers: list[Callable[[], nn.Module]] = [partial(SqueezeExcite, channels, hidden, ndim=ndim)]
    if activation is not None:
        makers.insert(1 if place == "before" else 0, activation)
    return lambda: nn.Sequential(*(make() for make in makers))


class DropPath(nn.Module):
    """Stochastic depth, ``(B, …)`` to the same.

    In training, sets samples to zero with probability ``rate`` and divides the others by 1 − rate; the identity in
    evaluation. Huang et al.: "Deep Networks with Stochastic Depth", ECCV 2016.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        if not 0 <= rate < 1:
            raise InputError(f"`rate` must be in [0, 1), got {rate}")
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.rate == 0:
            return x
        keep = 1 - self.rate
        return x * x.new_empty((x.shape[0], *(1,) * (x.dim() - 1))).bernoulli_(keep).div_(keep)

    def extra_repr(self) -> str:
        return f"rate={self.rate}"


def on(module: nn.Module, device: Device, dtype: torch.dtype | None) -> nn.Module:
    """Move a module to a device and dtype, if given, and return it."""
    place: dict[str, Any] = {"device": device, "dtype": dtype}
    return module.to(**place)
