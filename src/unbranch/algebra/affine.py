"""The base class of affine maps, and helpers for dtypes and devices."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import reduce
from typing import TypeVar

import torch
from torch import Tensor

Self = TypeVar("Self", bound="AffineMap")

MAX_ROUNDING = 1e-12
"""Relative rounding of a float64 number that is the difference of two equal ones."""


class AffineMap(ABC):
    """Immutable affine map from ``(N, in_channels, *grid)`` to ``(N, out_channels, *grid')``.

    The laws take and return such maps. ``ConvMap`` has a kernel and works on grids of any size, ``GridMap`` has
    matrices and works on one size. A law computes in the promoted dtype of its operands.
    """

    bias: Tensor | None

    @property
    @abstractmethod
    def in_channels(self) -> int:
        """Channels of the input."""

    @property
    @abstractmethod
    def out_channels(self) -> int:
        """Channels of the output."""

    @property
    @abstractmethod
    def out_ndim(self) -> int:
        """Number of grid dimensions of the output."""

    @property
    @abstractmethod
    def dtype(self) -> torch.dtype:
        """The dtype that the laws compute in."""

    @property
    @abstractmethod
    def device(self) -> torch.device:
        """The device of the kernel or the matrices."""

    @property
    @abstractmethod
    def is_meta(self) -> bool:
        """Whether the kernel or the matrices have no values."""

    @property
    @abstractmethod
    def numel(self) -> int:
        """Numbers that a layer stores for this map."""

    @abstractmethod
    def meta(self: Self) -> Self:
        """Return the same map on the meta device."""

    @abstractmethod
    def to(self: Self, dtype: torch.dtype) -> Self:
        """Return the same map for laws that compute in ``dtype`` at least."""

    @abstractmethod
    def __call__(self, x: Tensor) -> Tensor:
        """Apply the map to ``x`` in the dtype of ``x``."""


def promoted(*dtypes: torch.dtype) -> torch.dtype:
    """Return the dtype that holds all of them, as ``torch.promote_types``."""
    return reduce(torch.promote_types, dtypes)


def is_rounding(difference: Tensor, whole: Tensor) -> bool:
    """Return whether ``difference`` is zero up to the rounding of ``whole``, channel by channel.

    In float64, where numbers that are equal may have been computed in two ways; in other dtypes it must be zero.
    """
    if whole.dtype != torch.float64:
        return not bool(difference.any())
    size = whole.abs()
    return bool((difference.abs() <= MAX_ROUNDING * size + 4 * torch.finfo(whole.dtype).eps * size.max()).all())


def is_integer(value: object) -> bool:
    """Return whether a value is an integer and no truth value."""
    return isinstance(value, int) and not isinstance(value, bool)


def same_device(vectors: list[Tensor]) -> list[Tensor]:
    """Move tensors to one device: the meta device if one is there, else that of the first that isn't on the CPU."""
    devices = [v.device for v in vectors]
    kinds = {d.type: d for d in reversed(devices)}
    device = kinds.get("meta") or next((d for d in devices if d.type != "cpu"), torch.device("cpu"))
    return [v.to(device) for v in vectors]
