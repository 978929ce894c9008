"""The PyTorch layers that compute an affine map: their geometry, their cost, and how to build them."""

from __future__ import annotations

from functools import singledispatch
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from unbranch.algebra import AffineMap, ConvMap, GridMap
from unbranch.convert.plan.emit_conv import LoweredConv, lowered_convs, memory_format_of, pads_separately
from unbranch.convert.plan.emit_grid import LoweredGrid
from unbranch.errors import InexactError
from unbranch.rules.value import Affine


class LoweredLayer(Protocol):
    """A plan for a layer that computes a map: its geometry, without values."""

    def launches(self, m: Any) -> int:
        """Return the number of operations that the layer launches."""

    def numel(self, m: Any) -> int:
        """Return the numbers that the layer stores."""

    def macs(self, m: Any, positions: float) -> float:
        """Return the multiply-accumulates for that many output positions of one image."""

    def allocate(self, m: Any, like: Tensor, dtype: torch.dtype) -> nn.Module:
        """Return the layer without values, on the device and in the memory format of the weight ``like``."""

    def fill(self, module: nn.Module, m: Any) -> None:
        """Cast a map's numbers into an allocated layer."""


def lowered_layers(value: Affine) -> list[LoweredLayer]:
    """Return the plans for layers that compute a value's map, cheapest arithmetic first.

    Raises:
        InexactError: if no layer of PyTorch's computes it.
    """
    if value.arrangement is not None:
        raise InexactError("its axes are in another arrangement than those of what it is computed from")
    return _lowered(value.map)


@singledispatch
def _lowered(m: AffineMap) -> list[LoweredLayer]:
    raise TypeError(f"no layer for a {type(m).__name__}")


@_lowered.register
def _(m: ConvMap) -> list[LoweredLayer]:
    return [*lowered_convs(m)]


@_lowered.register
def _(m: GridMap) -> list[LoweredLayer]:
    return [LoweredGrid(m.shape)]


__all__ = ["LoweredConv", "LoweredGrid", "LoweredLayer", "lowered_layers", "memory_format_of", "pads_separately"]
