"""Input channels of layers that are one number for every input of the network."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unbranch.quantize.intervals import Bounds, IntervalMode, constant_channels
from unbranch.quantize.layers import LayerCall
from unbranch.quantize.trials import Trials


@dataclass(frozen=True, eq=False)
class Constants:
    """Constant input channels of a layer.

    Args:
        layer: its last call.
        constant: whether each channel is one number at all positions, in all calls, ``(I,)``.
        value: the number, ``(I,)``.
        bias: name of the parameter that all calls use as the bias, None if there is none.
    """

    layer: LayerCall
    constant: Tensor
    value: Tensor
    bias: str | None

    @property
    def zero(self) -> Tensor:
        """Which channels are zero, ``(I,)``."""
        return self.constant & (self.value == 0)

    @property
    def other(self) -> Tensor:
        """Which channels are another number, ``(I,)``."""
        return self.constant & (self.value != 0)

    def only_zeros(self) -> Constants:
        """Return the channels that are zero."""
        return replace(self, constant=self.zero)


def read_constants(trials: Trials) -> tuple[dict[str, Constants], str]:
    """Return the constant inputs of layers, by the name of the kernel, and why none could be read, empty otherwise."""
    found: dict[str, Constants] = {}

    def see(layer: LayerCall, bounds: Bounds) -> None:
        constant, value = constant_channels(bounds, layer.axis)
        bias = None if layer.stored_bias is None else layer.stored_bias.name
        one, known = Constants(layer, constant, value, bias), found.get(layer.stored.name)
        found[layer.stored.name] = one if known is None else _both(known, one)

    for given in trials.given:
        mode = IntervalMode(see)
        seen = trials.read(mode, given)
        if mode.reads_numbers:
            return {}, "its forward reads numbers in Python, which may depend on the input"
        if seen.changes:
            return {}, "its forward stores values, which the next call may read"
    return found, ""


def _both(first: Constants, second: Constants) -> Constants:
    if first.constant.shape != second.constant.shape:
        return replace(second, constant=torch.zeros_like(second.constant))
    same = (first.value - second.value).abs() <= 1e-9 * first.value.abs()
    layer = second.layer if second.layer.pads else first.layer
    bias = first.bias if first.bias == second.bias else None
    return Constants(layer, first.constant & second.constant & same, first.value, bias)
