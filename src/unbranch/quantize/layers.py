"""Calls of layers ``y = Wx + b``, whatever they are written with: convolutions, transposed ones, linear layers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from unbranch.quantize.calls import Call, Stored, base_name


class KnowsParameters(Protocol):
    """A mode that knows the parameters of the running network."""

    def stored(self, tensor: Any) -> Stored | None:
        """Return the parameter or buffer that a tensor is as a whole, or None."""


@dataclass(frozen=True, eq=False)
class LayerCall:
    """A call of a layer whose kernel is a parameter.

    Args:
        stored: the parameter.
        stored_bias: the parameter that is the bias, if it is one.
        x: the input, ``(N, I, *grid)`` for convolutions, ``(…, I)`` for linear layers.
        weight: ``(O, I/g, *k)``, or ``(I, O/g, *k)`` for a transposed convolution.
        bias: ``(O,)``, or None.
        function: computes the output from an input, a weight and a bias.
        axis: of the channels in the input and the output.
        groups: of the convolution.
        transposed: whether it is a transposed convolution.
        pads: whether it pads its input with zeros.
    """

    stored: Stored
    stored_bias: Stored | None
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    function: Callable[[Tensor, Tensor, Tensor | None], Tensor]
    axis: int = -1
    groups: int = 1
    transposed: bool = False
    pads: bool = False

    @property
    def in_channels(self) -> int:
        """Number of input channels."""
        return int(self.x.shape[self.axis])

    @property
    def out_channels(self) -> int:
        """Number of output channels."""
        return int(self.weight.shape[1] * self.groups if self.transposed else self.weight.shape[0])

    def by_input(self, values: Tensor) -> Tensor:
        """Return a value for each input channel, ``(I,)``, in a shape that broadcasts to the weight's."""
        return self._rows(values) if self.transposed else self._columns(values)

    def by_output(self, values: Tensor) -> Tensor:
        """Return a value for each output channel, ``(O,)``, in a shape that broadcasts to the weight's."""
        return self._columns(values) if self.transposed else self._rows(values)

    def _rows(self, values: Tensor) -> Tensor:
        return values.reshape(-1, *(1,) * (self.weight.dim() - 1))

    def _columns(self, values: Tensor) -> Tensor:
        """Row r of a kernel lies in group r // (R / g), and has the columns of this group."""
        grouped = values.reshape(self.groups, 1, -1)
        if self.groups > 1:
            grouped = grouped.expand(-1, len(self.weight) // self.groups, -1)
        return grouped.reshape(-1, grouped.shape[-1], *(1,) * (self.weight.dim() - 2))

    def input_ranges(self, values: Tensor) -> Tensor:
        """Return the largest of nonnegative values, of the weight's shape, for each input channel, ``(I,)``."""
        index = self.by_input(torch.arange(self.in_channels)).expand(values.shape).reshape(-1)
        return values.new_zeros(self.in_channels).scatter_reduce(0, index.to(values.device), values.reshape(-1), "amax")

    def output_ranges(self, values: Tensor) -> Tensor:
        """Return the largest of nonnegative values, of the weight's shape, for each output channel, ``(O,)``."""
        index = self.by_output(torch.arange(self.out_channels)).expand(values.shape).reshape(-1)
        found = values.new_zeros(self.out_channels)
        return found.scatter_reduce(0, index.to(values.device), values.reshape(-1), "amax")


def layer_call(mode: KnowsParameters, call: Call) -> LayerCall | None:
    """Return the layer that a call of an operation is, None if it isn't one whose kernel is a parameter."""
    made = _LAYERS.get(base_name(call.func))
    found = None if made is None else made(mode, call)
    return found if found is not None and found.weight.is_floating_point() else None


def _convolution(mode: KnowsParameters, call: Call) -> LayerCall | None:
    x, weight, bias, stride, padding, dilation, transposed, out_padding, groups = (call.arg(j) for j in range(9))
    stored = mode.stored(weight)
    if stored is None or x.dim() != weight.dim():
        return None

    def function(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        made: Tensor = torch.ops.aten.convolution(
            x, weight, bias, stride, padding, dilation, transposed, out_padding, groups
        )
        return made

    pads = transposed or any(p != 0 for p in padding)
    return LayerCall(stored, mode.stored(bias), x, weight, bias, function, 1, groups, transposed, pads)


def _linear(mode: KnowsParameters, call: Call) -> LayerCall | None:
    return _product(mode, call.arg(0), call.arg(1), call.arg(2))


def _mm(mode: KnowsParameters, call: Call) -> LayerCall | None:
    return _product(mode, call.arg(0), call.arg(1).t(), None)


def _addmm(mode: KnowsParameters, call: Call) -> LayerCall | None:
    if call.kwargs.get("beta", 1) != 1 or call.kwargs.get("alpha", 1) != 1:
        return None
    return _product(mode, call.arg(1), call.arg(2).t(), call.arg(0)) if call.arg(0).dim() == 1 else None


def _bmm(mode: KnowsParameters, call: Call) -> LayerCall | None:
    weight = call.arg(1)  # a parameter may be expanded to the batch
    if not len(weight) or (len(weight) > 1 and weight.stride(0)):
        return None
    return _product(mode, call.arg(0), weight[0].t(), None)


def _product(mode: KnowsParameters, x: Tensor, weight: Tensor, bias: Tensor | None) -> LayerCall | None:
    stored = mode.stored(weight)
    if stored is None or weight.dim() != 2:
        return None
    return LayerCall(stored, mode.stored(bias), x, weight, bias, torch.nn.functional.linear)


_LAYERS = {"convolution": _convolution, "linear": _linear, "mm": _mm, "addmm": _addmm, "bmm": _bmm}
LAYER_NAMES = tuple(_LAYERS)
