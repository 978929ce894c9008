"""Rules of functions, operators and tensor methods."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unbranch.algebra import batch_norm_scale_shift, convolution, identity, transposed_convolution
from unbranch.errors import InexactError, NotAffineError
from unbranch.grids import CONV_FUNCTIONS, as_tuple, padding_amounts
from unbranch.rules.layers import padded, pooled
from unbranch.rules.registry import register_method, register_rule
from unbranch.rules.value import Affine, TupleValue

Value = Affine | Tensor | float | int


# --- arithmetic ------------------------------------------------------------------------------------


def _add(a: Value, b: Value, alpha: float = 1.0) -> Affine:
    if isinstance(b, Affine):
        b = b.times(alpha)
        return a.plus(b) if isinstance(a, Affine) else _shift(b, a)
    if not isinstance(a, Affine):
        raise NotAffineError("an addition of unknown operands")
    return _shift(a, b * alpha if isinstance(b, Tensor | int | float) and alpha != 1 else b)


def _subtract(a: Value, b: Value, alpha: float = 1.0) -> Affine:
    return _add(a, b, alpha=-alpha)


def _shift(x: Affine, amount: Any) -> Affine:
    vector = _per_channel(x, amount)
    return x.shifted(vector) if isinstance(vector, float) else x.scaled(shift=vector)


def _multiply(a: Value, b: Value) -> Affine:
    if not isinstance(a, Affine):
        a, b = b, a
    if not isinstance(a, Affine) or isinstance(b, Affine):
        raise NotAffineError("a product of two values that depend on the input")
    vector = _per_channel(a, b)
    return a.times(vector) if isinstance(vector, float) else a.scaled(vector)


def _divide(a: Value, b: Value, rounding_mode: str | None = None) -> Affine:
    if not isinstance(a, Affine) or isinstance(b, Affine) or rounding_mode is not None:
        raise NotAffineError("a division by a value that depends on the input")
    vector = _per_channel(a, b)
    return a.times(1 / vector) if isinstance(vector, float) else a.scaled(1 / vector)


def _per_channel(x: Affine, constant: Any) -> float | Tensor:
    """Return a constant operand as one number, or as one number per channel ``(C,)``."""
    if isinstance(constant, bool | int | float):
        return float(constant)
    if not isinstance(constant, Tensor):
        raise NotAffineError("an operand that isn't a number or a tensor")
    if constant.numel() == 1 and constant.dim() <= x.axes:
        return constant.to(x.dtype).reshape(1).expand(x.channels)
    position = x.channel_axis_from_right()
    shape = list(constant.shape)
    if x.arrangement is not None and len(shape) > x.axes:
        raise NotAffineError("a constant of higher rank")
    if len(shape) < position or shape[-position] != x.channels or constant.numel() != x.channels:
        raise NotAffineError(f"a constant of shape {tuple(shape)}, which isn't one number per channel")
    return constant.to(x.dtype).flatten()


register_rule(operator.add, operator.iadd, torch.add, arranged=True)(_add)
register_rule(operator.sub, operator.isub, torch.sub, torch.subtract, arranged=True)(_subtract)
register_rule(operator.mul, operator.imul, torch.mul, torch.multiply, arranged=True)(_multiply)
register_rule(operator.truediv, operator.itruediv, torch.div, torch.divide, torch.true_divide, arranged=True)(_divide)
register_rule(operator.neg, torch.neg, torch.negative, arranged=True)(lambda x: x.times(-1.0))
register_rule(operator.pos, torch.positive, kind="view", arranged=True)(lambda x: x)
register_method("add", "add_", arranged=True)(_add)
register_method("sub", "sub_", "subtract", "subtract_", arranged=True)(_subtract)
register_method("mul", "mul_", "multiply", "multiply_", arranged=True)(_multiply)
register_method("div", "div_", "divide", "divide_", "true_divide", arranged=True)(_divide)
register_method("neg", "neg_", "negative", arranged=True)(lambda x: x.times(-1.0))


@register_method("contiguous", "clone", kind="view", arranged=True)
def _same(x: Affine, **_kwargs: Any) -> Affine:
    return x


# --- layers as functions -----------------------------------------------------------------------------


def _convolution(
    x: Affine, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Affine:  # fmt: skip
    _constant(x, weight, bias)
    n = weight.dim() - 2
    spread, size = as_tuple(dilation, n), tuple(weight.shape[2:])
    lo, hi = padding_amounts(padding, spread, size)
    return x.then(convolution(weight, bias, as_tuple(stride, n), lo, spread, groups, padding_after=hi))


def _transposed(
    x: Affine, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    output_padding: Any = 0, groups: int = 1, dilation: Any = 1,
) -> Affine:  # fmt: skip
    _constant(x, weight, bias)
    n = weight.dim() - 2
    stride, padding, output_padding, dilation = (as_tuple(v, n) for v in (stride, padding, output_padding, dilation))
    return x.then(transposed_convolution(weight, bias, stride, padding, output_padding, groups, dilation))


def _constant(x: Any, weight: Any, bias: Any = None) -> None:
    if not isinstance(x, Affine) or not isinstance(weight, Tensor) or not isinstance(bias, Tensor | None):
        raise NotAffineError("a kernel or bias that depends on the input")


def _linear(x: Affine, weight: Tensor, bias: Tensor | None = None) -> Affine:
    _constant(x, weight, bias)
    return x.then(convolution(weight, bias), channel_axis=-1)


def _batch_norm(
    x: Affine, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,  # noqa: ARG001
) -> Affine:  # fmt: skip
    if training or running_mean is None or running_var is None:
        raise InexactError("a batch norm that uses the statistics of the batch")
    _constant(x, running_mean, running_var)
    x.expect_channels(1)
    return x.scaled(*batch_norm_scale_shift(running_mean, running_var, weight, bias, eps, dtype=x.dtype))


register_rule(*CONV_FUNCTIONS.values(), kind="linear", arranged=True)(_convolution)
register_rule(F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d, kind="linear")(_transposed)
register_rule(F.linear, kind="linear", arranged=True)(_linear)
register_rule(F.batch_norm, arranged=True)(_batch_norm)


def _pool_rule(ndim: int) -> Any:
    def rule(
        input: Affine, kernel_size: Any, stride: Any = None, padding: Any = 0, ceil_mode: bool = False,
        count_include_pad: bool = True, divisor_override: int | None = None,
    ) -> Affine:  # fmt: skip
        return pooled(input, ndim, kernel_size, stride, padding, ceil_mode, count_include_pad, divisor_override)

    return rule


register_rule(F.avg_pool1d)(_pool_rule(1))
register_rule(F.avg_pool2d)(_pool_rule(2))
register_rule(F.avg_pool3d)(_pool_rule(3))


@register_rule(F.pad)
def _pad(x: Affine, pad: Sequence[int], mode: str = "constant", value: float | None = None) -> Affine:
    return padded(x, tuple(pad), "zeros" if mode == "constant" else mode, value or 0.0)


@register_rule(
    F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout, torch.dropout,
    kind="view", arranged=True,
)  # fmt: skip
def _dropout(x: Affine, p: float = 0.5, training: bool = True, inplace: bool = False) -> Affine:  # noqa: ARG001
    if training and p:
        raise InexactError("a dropout that is on in evaluation too")
    return x


# --- channels and slices -----------------------------------------------------------------------------


def _is_channel_axis(x: Affine, dim: int) -> bool:
    if x.arrangement is not None:
        return x.arrangement.channel_axis == dim % x.arrangement.rank
    if x.channel_axis == -1:
        return dim == -1 or (x.rank is not None and dim == x.rank - 1)
    return dim in (1, -(x.ndim + 1))


@register_rule(torch.cat, torch.concat, torch.concatenate, arranged=True)
def _concatenate(tensors: Sequence[Affine], dim: int = 0) -> Affine:
    if not all(isinstance(t, Affine) for t in tensors):
        raise NotAffineError("a concatenation with something that isn't linear in one input")
    if not _is_channel_axis(tensors[0], dim):
        raise NotAffineError("a concatenation along another axis than the channels")
    return tensors[0].concat(*tensors[1:])


def _chunk(x: Affine, chunks: int, dim: int = 0) -> TupleValue:
    size = -(-x.channels // chunks)
    return _split(x, size, dim)


def _split(x: Affine, split_size: int | Sequence[int], dim: int = 0) -> TupleValue:
    if not _is_channel_axis(x, dim):
        raise NotAffineError("a split along another axis than the channels")
    if isinstance(split_size, int):
        whole, left = divmod(x.channels, split_size)
        split_size = [split_size] * whole + [left] * (left > 0)
    ends = [sum(split_size[: j + 1]) for j in range(len(split_size))]
    return TupleValue(tuple(x.selected(range(e - s, e)) for e, s in zip(ends, split_size, strict=True)))


register_rule(torch.chunk, kind="view", arranged=True)(_chunk)
register_method("chunk", kind="view", arranged=True)(_chunk)
register_rule(torch.split, kind="view", arranged=True)(_split)
register_method("split", kind="view", arranged=True)(_split)


@register_rule(torch.stack)
def _stack(tensors: Sequence[Affine], dim: int = 0) -> TupleValue:
    if dim != 0 or not all(isinstance(t, Affine) for t in tensors):
        raise NotAffineError("a stack along another axis than the first, or of unrelated values")
    return TupleValue(tuple(tensors), stacked=True)


def _sum(x: TupleValue, dim: Any = None, keepdim: bool = False) -> Affine:
    if not isinstance(x, TupleValue) or not x.stacked or dim not in (0, [0], (0,)) or keepdim:
        raise NotAffineError("a sum over an axis of the tensor")
    return x.parts[0].plus(*x.parts[1:])


def _mean(x: TupleValue, dim: Any = None, keepdim: bool = False) -> Affine:
    return _sum(x, dim, keepdim).times(1 / len(x.parts))


register_rule(torch.sum)(_sum)
register_method("sum")(_sum)
register_rule(torch.mean)(_mean)
register_method("mean")(_mean)


@register_rule(operator.getitem, kind="view", arranged=True)
def _getitem(x: Affine | TupleValue, index: Any) -> Affine:
    if isinstance(x, TupleValue):
        if not isinstance(index, int):
            raise InexactError("an index into a list of values that isn't a number")
        return x.parts[index]
    return _sliced(x, index if isinstance(index, tuple) else (index,))


def _sliced(x: Affine, index: tuple[Any, ...]) -> Affine:
    rank = x.ndim + 2
    if (
        x.channel_axis == -1
        or x.arrangement is not None
        or Ellipsis in index[:-1]
        or any(not isinstance(i, slice) and i is not Ellipsis for i in index)
    ):
        raise NotAffineError("indexing other than by plain slices")
    parts = [i for i in index if i is not Ellipsis]
    parts += [slice(None)] * (rank - len(parts))
    if parts[0] != slice(None) or len(parts) > rank:
        raise NotAffineError("a slice of the batch")
    if parts[1] != slice(None):
        x = x.selected(range(*parts[1].indices(x.channels)))
    lo, hi, step = zip(*(_crop(s) for s in parts[2:]), strict=True) if parts[2:] else ((), (), ())
    if any(lo) or any(hi):
        x = x.padded([-v for v in lo], [-v for v in hi])
    if any(s > 1 for s in step):
        x = x.then(replace(identity(x.channels, len(step), device=x.device, dtype=x.dtype), stride=step))
    return x


def _crop(part: slice) -> tuple[int, int, int]:
    start, stop, step = part.start or 0, part.stop, part.step or 1
    if not all(isinstance(v, int) for v in (start, step)) or start < 0 or step < 1:
        raise NotAffineError("a slice that depends on the input's size")
    if stop is not None and (not isinstance(stop, int) or stop >= 0):
        raise NotAffineError("a slice to a fixed end, which depends on the input's size")
    return start, 0 if stop is None else -stop, step
