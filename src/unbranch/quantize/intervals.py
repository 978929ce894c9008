"""Which numbers of a network are the same for every input: bounds of all values, found by interval arithmetic.

The shadow of a value is its lower and upper bound over all inputs. A number whose bounds are equal is constant. Bounds
are widened by the rounding errors of float64, so that of sums only those without any term are constant zeros: rows of
zeros, channels that ReLU sets to zero because their upper bound isn't positive, and what is computed from these.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from unbranch.quantize.calls import Call, base_name, tensors_in
from unbranch.quantize.layers import LAYER_NAMES, LayerCall, layer_call
from unbranch.quantize.shadows import ShadowMode

Bounds = tuple[Tensor, Tensor]
_MARGIN = 1e-13  # of the sum of the absolute values of the terms
_RISING = (
    "relu", "clamp", "clamp_min", "clamp_max", "hardtanh", "sigmoid", "hardsigmoid", "tanh", "leaky_relu", "elu",
    "softplus", "clone", "_unsafe_view", "cat", "stack", "index_select", "gather", "roll", "flip", "repeat",
    "pixel_shuffle", "pixel_unshuffle", "channel_shuffle", "native_channel_shuffle", "constant_pad_nd", "index",
    "reflection_pad1d", "reflection_pad2d", "reflection_pad3d", "replication_pad1d", "replication_pad2d",
    "replication_pad3d", "maximum", "minimum", "amax", "amin", "mean", "avg_pool1d", "avg_pool2d", "avg_pool3d",
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "max_pool2d_with_indices", "max_pool3d_with_indices",
    "upsample_nearest2d", "upsample_bilinear2d",
)  # fmt: skip
_ELEMENTWISE = ("silu", "gelu", "hardswish", "mish", "abs", "neg", "_prelu_kernel", "threshold", "pow", "exp", "sqrt")
_FACTORIES = ("zeros", "zeros_like", "new_zeros", "ones", "ones_like", "new_ones", "full", "full_like", "new_full",
              "zero", "fill", "scalar_tensor", "arange")  # fmt: skip


class IntervalMode(ShadowMode):  # type: ignore[no-untyped-call]
    """Computes bounds of all values while a network runs, and of the inputs of its layers.

    Args:
        see_layer: receives each call of a layer with the bounds of its input.
    """

    planes = 2

    def __init__(self, see_layer: Callable[[LayerCall, Bounds], None]) -> None:
        super().__init__()
        self._see_layer = see_layer
        self.reads_numbers = False  # in Python, where they may become constants that depend on the input

    def unknown(self, tensor: Tensor) -> tuple[Tensor, ...]:  # noqa: ARG002
        """Return -∞ and ∞."""
        infinity = torch.tensor(math.inf, dtype=torch.float64)
        return -infinity, infinity

    def initial(self, tensor: Tensor, size: int) -> tuple[Tensor, ...]:
        """Return the values of parameters and buffers; other memory is unknown."""
        stored = self.owner_of(tensor)
        if stored is None or not tensor.is_floating_point():
            return self.unknown(tensor)
        like, planes = stored.tensor, tuple(p.expand(size).clone() for p in self.unknown(tensor))
        for plane in planes:
            plane.as_strided(like.shape, like.stride(), like.storage_offset()).copy_(like)
        return planes

    def reinterpreted(self, planes: tuple[Tensor, ...]) -> None:
        """Forget the bounds of memory that may be written as numbers of another type."""
        planes[0].fill_(-math.inf)
        planes[1].fill_(math.inf)

    def left(self, value: Any) -> None:
        """Forget the bounds of memory that code outside of PyTorch may write to."""
        self.reads_numbers = True
        for tensor in tensors_in(value):
            self.write(tensor, self.unknown(tensor))

    def rule(self, name: str) -> Callable[[Call], Any] | None:
        """Return the rule of an operation."""
        found = _RULES.get(name, _constant)
        return functools.partial(found, self)

    def bounds(self, value: Any) -> Bounds:
        """Return the bounds of a tensor or number."""
        if isinstance(value, Tensor):
            lower, upper = self.read(value)
            return lower, upper
        number = torch.tensor(float(value), dtype=torch.float64)
        return number, number

    def is_constant(self, value: Any) -> bool:
        """Whether all tensors of a nested value are known."""
        return all(bool((low == high).all()) for low, high in map(self.read, tensors_in(value)))


def constant_channels(bounds: Bounds, axis: int) -> tuple[Tensor, Tensor]:
    """Return which channels are one number at all positions, for every input, and these numbers, ``(C,)`` each."""
    low, high = (b.movedim(axis, 0).flatten(1) for b in bounds)
    least, most = low.amin(1), high.amax(1)
    width = 1e-10 * torch.maximum(least.abs(), most.abs())
    constant = least.isfinite() & most.isfinite() & (most - least <= width)
    return constant, torch.where(constant, (least + most) / 2, 0.0)


def _known(bounds: Bounds) -> list[Bounds]:
    low, high = bounds
    return [(low.nan_to_num(-math.inf, math.inf, -math.inf), high.nan_to_num(math.inf, math.inf, -math.inf))]


def _constant(mode: IntervalMode, call: Call) -> Any:
    """What is computed from constants is constant; everything else that has no rule is unknown."""
    tensors = list(tensors_in((call.args, call.kwargs)))
    if not tensors or call.func._schema.is_mutable or not mode.is_constant(tensors):
        return NotImplemented
    return _value(mode, call)


def _made(mode: IntervalMode, call: Call) -> Any:
    """New memory of known values; ``fill`` may be given a tensor."""
    given = [v for v in call.args[1:] if isinstance(v, Tensor)]
    return _value(mode, call) if mode.is_constant(given) else NotImplemented


def _value(mode: IntervalMode, call: Call) -> Any:  # noqa: ARG001
    return [(t.double(), t.double()) if t.is_floating_point() else None for t in tensors_in(call.result)]


def _rising(mode: IntervalMode, call: Call) -> Any:
    """Functions that rise with each of their inputs have the bounds of their values at the bounds."""
    if not call.result_is_floating or any(isinstance(v, float) and v < 0 for v in call.args if _is_slope(call)):
        return _constant(mode, call)
    return _known(mode.moved(call)[0])  # type: ignore[arg-type]


def _is_slope(call: Call) -> bool:
    return base_name(call.func) in ("leaky_relu", "elu")


def _elementwise(mode: IntervalMode, call: Call) -> Any:
    """Other functions of each number: only constants stay known."""
    low, high = mode.moved(call)[0]
    same = functools.reduce(torch.logical_and, ((a == b) for a, b in map(mode.read, tensors_in(call.args))))
    return _known((torch.where(same, low, -math.inf), torch.where(same, high, math.inf)))


def _sum(mode: IntervalMode, call: Call, sign: float = 1.0) -> Any:
    (a, b), (c, d) = mode.bounds(call.arg(0)), mode.bounds(call.arg(1))
    factor = sign * float(call.kwargs.get("alpha", 1))
    low, high = (a + factor * c, b + factor * d) if factor >= 0 else (a + factor * d, b + factor * c)
    return _known((low, high))


def _product(mode: IntervalMode, call: Call) -> Any:
    """Zero times anything is zero."""
    first, second = mode.bounds(call.arg(0)), mode.bounds(call.arg(1))
    ends = torch.stack([(a * b).nan_to_num(0.0, math.inf, -math.inf) for a in first for b in second])
    return [(ends.amin(0), ends.amax(0))]


def _quotient(mode: IntervalMode, call: Call) -> Any:
    number = call.arg(1)
    if isinstance(number, Tensor) or number == 0 or call.kwargs:
        return _constant(mode, call)
    return _product(mode, Call(call.func, (call.arg(0), 1 / number), {}, call.result))


def _copy(mode: IntervalMode, call: Call) -> Any:
    return [mode.bounds(call.arg(1))]


def _cast(mode: IntervalMode, call: Call) -> Any:
    return [mode.bounds(call.arg(0))] if call.result_is_floating else NotImplemented


def _number(mode: IntervalMode, call: Call) -> Any:
    """A number that depends on the input leaves the graph, or decides how large a result is."""
    mode.reads_numbers |= not mode.is_constant(call.args)
    return NotImplemented


def _batch_norm(mode: IntervalMode, call: Call) -> Any:
    x, weight, bias, mean, variance = (call.arg(j) for j in range(5))
    legit = "no_training" in call.func._schema.name
    if mean is None or (not legit and call.arg(5)):
        return NotImplemented
    given = [t for t in (weight, bias, mean, variance) if t is not None]
    if not mode.is_constant(given):
        return NotImplemented
    scale = (mode.read(variance)[0] + call.arg(6 if legit else 7)).rsqrt()
    scale = scale if weight is None else scale * mode.read(weight)[0]
    shift = -mode.read(mean)[0] * scale + (0.0 if bias is None else mode.read(bias)[0])
    shape = (-1, *(1,) * (x.dim() - 2))
    ends = torch.stack([(b * scale.reshape(shape)).nan_to_num(0.0, math.inf, -math.inf) for b in mode.read(x)])
    low, high = ends.amin(0) + shift.reshape(shape), ends.amax(0) + shift.reshape(shape)
    return [(low, high)]


def _layer(mode: IntervalMode, call: Call) -> Any:
    layer = layer_call(mode, call)
    if layer is None:
        return _constant(mode, call)
    bounds = mode.bounds(layer.x)
    mode._see_layer(layer, bounds)
    if not mode.is_constant([t for t in (layer.weight, layer.bias) if t is not None]):
        return NotImplemented
    weight, bias = mode.read(layer.weight)[0], None if layer.bias is None else mode.read(layer.bias)[0]
    return [_affine(layer, bounds, weight, bias)]


def _affine(layer: LayerCall, bounds: Bounds, weight: Tensor, bias: Tensor | None) -> Bounds:
    """``Wx + b`` of bounds: positive weights take the bounds as they are, negative ones exchange them."""
    rising, falling = weight.clamp_min(0), weight.clamp_max(0)
    low, high = (b.nan_to_num(0.0, 0.0, 0.0) for b in bounds)
    open_low, open_high = ((b.isinf()).double() for b in bounds)
    run = layer.function
    margin = _MARGIN * run(torch.maximum(low.abs(), high.abs()), weight.abs(), None)
    up, down = (rising > 0).double(), (falling < 0).double()
    found = []
    for mine, other, is_open, other_open, end in (
        (low, high, open_low, open_high, -1.0), (high, low, open_high, open_low, 1.0),
    ):  # fmt: skip
        finite = run(mine, rising, bias) + run(other, falling, None) + end * margin
        unbounded = run(is_open, up, None) + run(other_open, down, None) > 0.5
        found.append(torch.where(unbounded, end * math.inf, finite))
    return found[0], found[1]


_RULES: dict[str, Callable[[IntervalMode, Call], Any]] = {
    **dict.fromkeys(_RISING, _rising),
    **dict.fromkeys(_ELEMENTWISE, _elementwise),
    **dict.fromkeys(_FACTORIES, _made),
    **dict.fromkeys(LAYER_NAMES, _layer),
    **dict.fromkeys(("native_batch_norm", "cudnn_batch_norm", "_native_batch_norm_legit_no_training"), _batch_norm),
    "add": _sum,
    "sub": functools.partial(_sum, sign=-1.0),
    "mul": _product,
    "div": _quotient,
    "copy": _copy,
    "_to_copy": _cast,
    **dict.fromkeys(("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal"), _number),
}
