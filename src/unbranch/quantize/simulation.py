"""Integer quantisation, simulated in floating point."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from unbranch.quantize.calls import Call, CallMode, filled
from unbranch.quantize.layers import LayerCall, layer_call

_SMALLEST_SHARE = 1e-3  # of the range that a weighted scale covers
_SHARES = 48


def quantized_weight(layer: LayerCall, weight: Tensor, bits: int, *, per_channel: bool) -> Tensor:
    """Return a kernel rounded to symmetric integers, with the largest weight as the largest integer.

    Args:
        layer: tells which axis has the output channels.
        weight: the kernel.
        bits: of the integers.
        per_channel: one scale for each output channel, or one for the kernel.
    """
    return _rounded(weight, _largest(layer, weight, per_channel), bits)


def weighted_weight(layer: LayerCall, weight: Tensor, bits: int, power: Tensor, *, per_channel: bool) -> Tensor:
    """Return a kernel rounded to symmetric integers, with scales that minimise the error of the layer's output.

    The scale is the share of the largest weight for which ``Σ E[x²] (w - w_q)²`` is the smallest; larger weights are
    clipped. Weights of channels that are always zero have no influence.

    Args:
        power: mean square of each input channel, ``(I,)``.
    """
    largest = _largest(layer, weight, per_channel)
    factor = layer.by_input(power.to(weight)).expand(weight.shape)
    best, least = weight, torch.full_like(largest, math.inf)
    for step in range(_SHARES):
        share: float = _SMALLEST_SHARE ** (step / (_SHARES - 1))
        rounded = _rounded(weight, share * largest, bits)
        error = _summed(layer, factor * (rounded - weight).square(), per_channel)
        best = rounded if not step else torch.where(error < least, rounded, best)
        least = torch.minimum(error, least)
    return best


def quantized_input(x: Tensor, lowest: float, highest: float, bits: int) -> Tensor:
    """Return values rounded to unsigned integers that cover a range and zero."""
    if not max(0.0, highest) > min(0.0, lowest):
        return x
    scale, zero = affine_grid(lowest, highest, bits)
    rounded: Tensor = (torch.clamp(torch.round(x / scale) + zero, 0, 2**bits - 1) - zero) * scale
    return rounded


def affine_grid(lowest: float, highest: float, bits: int) -> tuple[float, int]:
    """Return the scale and zero point of unsigned integers that cover a range and zero; scale 1 if the range is 0."""
    low, high = min(0.0, lowest), max(0.0, highest)
    scale = (high - low) / (2**bits - 1)
    return (scale, round(-low / scale)) if scale > 0 else (1.0, 0)


def symmetric_limit(bits: int) -> int:
    """Return the largest of symmetric integers, 127 for 8 bits."""
    return int(2 ** (bits - 1) - 1)


def _rounded(weight: Tensor, largest: Tensor, bits: int) -> Tensor:
    top = symmetric_limit(bits)
    scale = torch.where(largest > 0, largest / top, 1.0)
    rounded: Tensor = torch.clamp(torch.round(weight / scale), -top, top) * scale
    return rounded


def _largest(layer: LayerCall, weight: Tensor, per_channel: bool) -> Tensor:
    size = weight.abs()
    return layer.by_output(layer.output_ranges(size)) if per_channel else size.max()


def _summed(layer: LayerCall, errors: Tensor, per_channel: bool) -> Tensor:
    if not per_channel:
        return errors.sum()
    index = layer.by_output(torch.arange(layer.out_channels, device=errors.device)).expand(errors.shape).reshape(-1)
    found = errors.new_zeros(layer.out_channels).scatter_add(0, index, errors.reshape(-1))
    return layer.by_output(found)


@dataclass(frozen=True, eq=False)
class QuantizedLayer:
    """What a layer computes with when it is quantised.

    Args:
        weight: the rounded kernel.
        lowest, highest: of its inputs on the calibration data.
    """

    weight: Tensor
    lowest: float
    highest: float


class SimulationMode(CallMode):  # type: ignore[no-untyped-call]
    """Runs layers with quantised kernels and inputs; everything else in floating point.

    Args:
        layers: by the name of the kernel.
        bits: of inputs.
    """

    def __init__(self, layers: dict[str, QuantizedLayer], bits: int) -> None:
        super().__init__()
        self._layers, self._bits = layers, bits

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunction():
            call: Call = filled(func, args, kwargs or {}, None)
            layer = None if func._overloadname == "out" else layer_call(self, call)
            known = None if layer is None else self._layers.get(layer.stored.name)
            if layer is None or known is None:
                return func(*args, **(kwargs or {}))
            x = quantized_input(layer.x, known.lowest, known.highest, self._bits)
            return layer.function(x, known.weight.to(x), layer.bias)


def decibels(signal: float, noise: float) -> float:
    """Return a signal-to-noise ratio of two powers in dB; infinite without noise."""
    if noise <= 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf
