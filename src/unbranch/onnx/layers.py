"""Operators of ONNX as modules and functions of PyTorch, with their rules.

They are used where PyTorch has no layer of the same meaning: padding that differs before and after an axis, sums of any
number of values, channels by index.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

from unbranch.algebra import average_pool, convolution, transposed_convolution
from unbranch.errors import NotAffineError
from unbranch.grids import CONV_FUNCTIONS, last_axis_first
from unbranch.rules import LayerInput, register_rule
from unbranch.rules.value import Affine

POOLS = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}
TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


class Opaque(nn.Module):
    """An operator that isn't interpreted; it is written back as it is.

    Args:
        kind: its name, for messages.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind

    def forward(self, *_inputs: Any) -> Any:
        raise NotImplementedError(f"{self.kind} isn't run in PyTorch")


class Conv(nn.Module):
    """``Conv``.

    Args:
        weight: ``(O, I/groups, *k)``.
        bias: ``(O,)``, or None.
        stride, dilation: per dimension.
        lo, hi: zeros before and after each dimension; negative ones crop.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, stride: Sequence[int], lo: Sequence[int], hi: Sequence[int],
        dilation: Sequence[int], groups: int,
    ) -> None:  # fmt: skip
        super().__init__()
        self.weight, self.bias = _parameter(weight), _parameter(bias)
        self.stride, self.dilation, self.groups = tuple(stride), tuple(dilation), groups
        self.lo, self.hi = tuple(lo), tuple(hi)

    @property
    def ndim(self) -> int:
        return int(self.weight.dim()) - 2

    def forward(self, x: Tensor) -> Tensor:
        x = _zero_padded(x, self.lo, self.hi)
        return CONV_FUNCTIONS[self.ndim](x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class ConvTranspose(nn.Module):
    """``ConvTranspose`` with equal padding before and after each dimension.

    Args:
        weight: ``(I, O/groups, *k)``.
        bias: ``(O,)``, or None.
    """

    def __init__(
        self, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int],
        output_padding: Sequence[int], groups: int, dilation: Sequence[int],
    ) -> None:  # fmt: skip
        super().__init__()
        self.weight, self.bias = _parameter(weight), _parameter(bias)
        self.stride, self.padding, self.output_padding = tuple(stride), tuple(padding), tuple(output_padding)
        self.groups, self.dilation = groups, tuple(dilation)

    def forward(self, x: Tensor) -> Tensor:
        return TRANSPOSED[self.weight.dim() - 2](
            x, self.weight, self.bias, self.stride, self.padding, self.output_padding, self.groups, self.dilation
        )


class AveragePool(nn.Module):
    """``AveragePool`` that counts its padding, or has none.

    Args:
        channels: of the input.
        size, stride: of the window, per dimension.
        lo, hi: zeros before and after each dimension.
    """

    def __init__(
        self, channels: int, size: Sequence[int], stride: Sequence[int], lo: Sequence[int], hi: Sequence[int]
    ) -> None:
        super().__init__()
        self.channels, self.size, self.stride = channels, tuple(size), tuple(stride)
        self.lo, self.hi = tuple(lo), tuple(hi)

    def forward(self, x: Tensor) -> Tensor:
        return POOLS[len(self.size)](_zero_padded(x, self.lo, self.hi), self.size, self.stride)


@register_rule(Conv, kind="linear", layer_input=lambda m: LayerInput(m.weight.shape[1] * m.groups, m.ndim))
def _conv(module: Conv, x: Affine) -> Affine:
    m = module
    return x.then(convolution(m.weight, m.bias, m.stride, m.lo, m.dilation, m.groups, padding_after=m.hi))


@register_rule(ConvTranspose, kind="linear", layer_input=lambda m: LayerInput(m.weight.shape[0], m.weight.dim() - 2))
def _conv_transpose(module: ConvTranspose, x: Affine) -> Affine:
    m = module
    return x.then(
        transposed_convolution(m.weight, m.bias, m.stride, m.padding, m.output_padding, m.groups, m.dilation)
    )  # fmt: skip


@register_rule(AveragePool, layer_input=lambda m: LayerInput(m.channels, len(m.size)))
def _average_pool(module: AveragePool, x: Affine) -> Affine:
    x = x.padded(module.lo, module.hi) if any((*module.lo, *module.hi)) else x
    zero = (0,) * len(module.size)
    return x.then(average_pool(x.channels, module.size, module.stride, zero, device=x.device, dtype=x.dtype))


def total(*values: Tensor) -> Tensor:
    """Return the sum of tensors of one shape."""
    found = values[0]
    for value in values[1:]:
        found = found + value
    return found


def channels_at(x: Tensor, indices: Sequence[int]) -> Tensor:
    """Return the channels of ``x`` ``(B, C, *grid)`` at some indices."""
    return x[:, list(indices)]


def output_of(values: Sequence[Any], index: int) -> Any:
    """Return one of the outputs of an operator that isn't interpreted."""
    return values[index]


@register_rule(total, arranged=True)
def _total(*values: Any) -> Affine:
    if not all(isinstance(v, Affine) for v in values):
        raise NotAffineError("a sum with something that isn't linear in the input")
    first: Affine = values[0]
    return first.plus(*values[1:]) if len(values) > 1 else first


@register_rule(channels_at, kind="view")
def _channels_at(x: Affine, indices: Sequence[int]) -> Affine:
    if not isinstance(x, Affine) or x.is_grid or x.channel_axis == -1:
        raise NotAffineError("channels of something that isn't linear in the input, or on another axis")
    return x.selected([int(j) % x.channels for j in indices])


def _parameter(value: Tensor | None) -> Any:
    return None if value is None else nn.Parameter(value, requires_grad=False)


def _zero_padded(x: Tensor, lo: Sequence[int], hi: Sequence[int]) -> Tensor:
    return F.pad(x, last_axis_first(zip(lo, hi, strict=True))) if any((*lo, *hi)) else x
