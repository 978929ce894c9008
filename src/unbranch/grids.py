"""PyTorch's layers and functions by the number of grid dimensions, and what their arguments mean.

One home for facts about convolutions that rules, blocks and converted layers share.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.nn import functional as F

from unbranch.errors import InputError

Ints: TypeAlias = tuple[int, ...]
Amounts: TypeAlias = tuple[tuple[int, int], ...]
"""Padding ``(before, after)`` of each axis; negative amounts crop."""
Conv: TypeAlias = nn.Conv1d | nn.Conv2d | nn.Conv3d

CONV_LAYERS: dict[int, Callable[..., Conv]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED_CONV_LAYERS: dict[int, Callable[..., nn.Module]] = {
    1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d,
}  # fmt: skip
CONV_FUNCTIONS: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
NORM_LAYERS: dict[int, Callable[..., nn.Module]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
AVG_POOL_LAYERS: dict[int, Callable[..., nn.Module]] = {1: nn.AvgPool1d, 2: nn.AvgPool2d, 3: nn.AvgPool3d}
PAD_LAYERS: dict[str, dict[int, Callable[..., nn.Module]]] = {
    "zeros": {1: nn.ZeroPad1d, 2: nn.ZeroPad2d, 3: nn.ZeroPad3d},
    "reflect": {1: nn.ReflectionPad1d, 2: nn.ReflectionPad2d, 3: nn.ReflectionPad3d},
    "replicate": {1: nn.ReplicationPad1d, 2: nn.ReplicationPad2d, 3: nn.ReplicationPad3d},
    "circular": {1: nn.CircularPad1d, 2: nn.CircularPad2d, 3: nn.CircularPad3d},
}


def ndim_of(layer: Any, classes: dict[int, Any]) -> int | None:
    """Return the number of grid dimensions of a layer of one of the classes, or None if it is of none."""
    return next((n for n, kind in classes.items() if isinstance(layer, kind)), None)


def per_axis(value: int | Sequence[int], ndim: int, name: str, least: int) -> Ints:
    """Return one number per axis of a value given once or ``ndim`` times.

    Raises:
        InputError: if there are fewer or more, or one is below ``least``.
    """
    axes = tuple(value) if isinstance(value, Sequence) else (value,) * ndim
    if len(axes) != ndim or not all(isinstance(a, int) and a >= least for a in axes):
        several = f", or {ndim} of them" if ndim > 1 else ""
        raise InputError(f"`{name}` must be an integer ≥ {least}{several}, got {value!r}")
    return axes


def as_tuple(value: Any, ndim: int) -> Ints:
    """Return one integer per axis of an argument that PyTorch accepts: an integer, or a sequence of 1 or ``ndim``."""
    if isinstance(value, int):
        return (value,) * ndim
    return tuple(value) * (ndim if len(value) == 1 else 1)


def same_padding(kernel_size: Sequence[int], dilation: Sequence[int]) -> tuple[Ints, Ints]:
    """Return the padding before and after that ``padding="same"`` means; PyTorch puts an odd point after."""
    span = [d * (k - 1) for d, k in zip(dilation, kernel_size, strict=True)]
    return tuple(s // 2 for s in span), tuple(s - s // 2 for s in span)


def padding_amounts(padding: Any, dilation: Sequence[int], kernel_size: Sequence[int]) -> tuple[Ints, Ints]:
    """Return the padding before and after of a convolution's ``padding``: numbers, ``"same"`` or ``"valid"``."""
    if padding == "same":
        return same_padding(kernel_size, dilation)
    both = as_tuple(0 if padding == "valid" else padding, len(kernel_size))
    return both, both


def last_axis_first(amounts: Iterable[tuple[int, int]]) -> Ints:
    """Return ``(before, after)`` of each axis as F.pad takes them: one list, the last axis first."""
    return tuple(amount for pair in reversed(list(amounts)) for amount in pair)


def first_axis_first(amounts: Sequence[int]) -> Amounts:
    """Return F.pad's list as ``(before, after)`` of each axis again."""
    return tuple(zip(amounts[-2::-2], amounts[::-2], strict=True))


def is_depthwise(layer: Any) -> bool:
    """Return whether a convolution, or a block, has one output channel for each input channel and never mixes them."""
    groups = getattr(layer, "groups", 1)
    return bool(groups > 1 and groups == layer.in_channels == layer.out_channels)
