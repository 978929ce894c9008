"""The laws of convolutions, see ``laws``, and zero-stuffing, regrouping and conversion of matrices to kernels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import gcd
from typing import Any

import torch
from torch import Tensor

from unbranch.algebra.affine import AffineMap, is_integer, is_rounding, promoted, same_device
from unbranch.algebra.convmap import ConvMap, marked_identity
from unbranch.algebra.frame import Frame, common_frame
from unbranch.algebra.grid_laws import as_conv, checked_channels, on_one_grid
from unbranch.algebra.laws import add, concat, pad, reshape, scale_shift, select
from unbranch.errors import InexactError, InputError, NotAffineError

# --- laws of one map -----------------------------------------------------------------------------


@scale_shift.register
def _scale_shift(m: ConvMap, scale: Tensor | None = None, shift: Tensor | None = None) -> ConvMap:
    m = m.to(promoted(m.dtype, *(v.dtype for v in (scale, shift) if v is not None)))
    gain, bias = m.gain, m.bias
    if scale is not None:
        scale = scale.to(m.dtype)
        gain = scale if gain is None else torch.mul(*same_device([gain, scale]))
        bias = None if bias is None else torch.mul(*same_device([bias, scale]))
    if shift is not None:
        shift = shift.to(m.dtype)
        moved = shift if bias is None else torch.add(*same_device([bias, shift]))
        known = not moved.is_meta and not shift.is_meta
        cancelled = scale is None and (is_rounding(moved, shift) if known else shift.is_meta)
        bias = None if bias is not None and cancelled else moved
    return replace(m, gain=gain, bias=bias)


@pad.register
def _pad(
    m: ConvMap, lo: Sequence[int], hi: Sequence[int], value: Tensor | None = None, padding_mode: str = "zeros"
) -> ConvMap:
    _check_lengths(m, "lo", lo, "hi", hi)
    if value is not None and (value.shape != (m.out_channels,) or padding_mode != "zeros"):
        raise InputError(f"`value` must have shape ({m.out_channels},) and needs padding by zeros, got {value.shape}")
    if not any((*lo, *hi)):
        return m
    if any(v > 0 for v in (*lo, *hi)):
        if padding_mode != "zeros":
            if not m.pointwise:
                raise InexactError(f"{padding_mode} padding after a map that isn't pointwise")
        else:
            _check_constant_border(m, lo, hi, value)
    else:
        padding_mode = m.padding_mode
    return replace(
        m,
        lo=tuple(a + s * p for a, s, p in zip(m.lo, m.stride, lo, strict=True)),
        hi=tuple(a + s * p for a, s, p in zip(m.hi, m.stride, hi, strict=True)),
        padding_mode=padding_mode,
    )


def _check_constant_border(m: ConvMap, lo: Sequence[int], hi: Sequence[int], value: Tensor | None) -> None:
    if m.pads and m.padding_mode != "zeros":
        raise InexactError(f"zero padding after {m.padding_mode} padding")
    for before, after, span, low, high, stride in zip(lo, hi, m.span, m.lo, m.hi, m.stride, strict=True):
        if (before > 0 and span - low >= stride) or (after > 0 and high < span):
            raise NotAffineError("padding after a convolution whose kernel still reaches into its input there")
    if value is None and m.bias is not None:
        raise InexactError("zero padding after a bias: the border would get the bias instead of zero")
    if value is not None:
        own = torch.zeros_like(value) if m.bias is None else m.bias
        known = not (own.is_meta or value.is_meta)  # if not, they are assumed to agree until there are values
        if known and not is_rounding(own - value, value):
            raise InexactError("padding with a value other than the map's own bias")


@select.register
def _select(m: ConvMap, channels: Sequence[int]) -> ConvMap:
    chosen = checked_channels(channels, m.out_channels)
    per_group = m.out_channels // m.groups
    groups = [c // per_group for c in chosen]
    kept = len(set(groups))
    if kept < m.groups or groups != [j for j in range(m.groups) for _ in range(len(chosen) // kept)]:
        m = with_groups(m)
    rows = torch.tensor(chosen)

    def pick(v: Tensor | None) -> Tensor | None:
        return None if v is None else v[rows.to(v.device)]

    return replace(m, weight=m.weight[rows.to(m.device)], bias=pick(m.bias), gain=pick(m.gain))


@reshape.register
def _reshape(m: ConvMap, grid: Sequence[int]) -> ConvMap:  # noqa: ARG001
    raise NotAffineError("a reshape of a tensor whose size depends on the input")


def _check_lengths(m: ConvMap, *named: Any) -> None:
    """Check that amounts, given as name and value in turns, are integers, one per grid dimension.

    Raises:
        InputError: if they aren't.
    """
    for name, amounts in zip(named[::2], named[1::2], strict=True):
        if len(amounts) != m.ndim or any(not is_integer(v) for v in amounts):
            raise InputError(f"`{name}` must be {m.ndim} integers for {m}, got {tuple(amounts)}")


# --- laws of several maps ------------------------------------------------------------------------


@add.register
def _add(first: ConvMap, *others: AffineMap) -> AffineMap:
    maps = on_one_grid(first, *others)
    if maps is not None:
        return add(*maps)  # type: ignore[no-any-return]
    convs = _convolutions(first, *others)
    if len({m.out_channels for m in convs}) > 1:
        raise InexactError("a sum that broadcasts over channels")
    frame, mode = common_frame(convs, gcd(*(m.groups for m in convs)))
    biases = same_device([m.bias for m in convs if m.bias is not None])
    bias = torch.stack(biases).sum(0) if biases else None
    return _in_frame(frame, mode, convs, frame.filled(convs), bias)


@concat.register
def _concat(first: ConvMap, *others: AffineMap) -> AffineMap:
    maps = on_one_grid(first, *others)
    if maps is not None:
        return concat(*maps)  # type: ignore[no-any-return]
    convs = _convolutions(first, *others)
    frame, mode = common_frame(convs, 1)
    weight = torch.cat(same_device([frame.filled([m]) for m in convs]))
    return _in_frame(frame, mode, convs, weight, _concatenated_bias(convs))


def _convolutions(*maps: AffineMap) -> list[ConvMap]:
    """Return the maps in their promoted dtype."""
    convs = [as_conv(m) for m in maps]
    dtype = promoted(*(m.dtype for m in convs))
    return [m.to(dtype) for m in convs]


def _in_frame(frame: Frame, mode: str, maps: list[ConvMap], weight: Tensor, bias: Tensor | None) -> ConvMap:
    first, geometry = maps[0], frame.geometry(maps[0])
    return replace(
        first, weight=weight, bias=bias, gain=None, groups=frame.groups, padding_mode=mode,
        lo=geometry["lo"], hi=geometry["hi"], dilation=geometry["dilation"],
    )  # fmt: skip


def _concatenated_bias(maps: Sequence[ConvMap]) -> Tensor | None:
    known = next((m.bias for m in maps if m.bias is not None), None)
    if known is None:
        return None
    return torch.cat(same_device([known.new_zeros(m.out_channels) if m.bias is None else m.bias for m in maps]))


# --- other forms of one map ----------------------------------------------------------------------


def zero_stuff(m: ConvMap, step: Sequence[int]) -> ConvMap:
    """Return ``m`` followed by the insertion of ``step - 1`` zeros between output points, as a map of x.

    Raises:
        InexactError: after a bias, a stride in the same dimension, or padding other than zeros.
    """
    _check_lengths(m, "step", step)
    if all(u == 1 for u in step):
        return m
    if m.bias is not None:
        raise InexactError("a transposed convolution after a bias: the bias doesn't reach every point alike")
    if any(s != 1 and u != 1 for s, u in zip(m.stride, step, strict=True)):
        raise InexactError("a transposed convolution after a strided one")
    if m.pads and m.padding_mode != "zeros":
        raise InexactError(f"a transposed convolution after {m.padding_mode} padding")

    def times(v: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(a * u for a, u in zip(v, step, strict=True))

    wide = times(m.input_dilation)
    return replace(m, dilation=times(m.dilation), lo=times(m.lo), hi=times(m.hi), input_dilation=wide)


def as_pointwise(m: ConvMap, ndim: int) -> ConvMap:
    """Return a matrix as a kernel of one tap on a grid of ``ndim`` dimensions. Always exact.

    Raises:
        InexactError: if ``m`` is a map on a grid of another number of dimensions.
    """
    if m.ndim == ndim:
        return m
    if m.ndim:
        raise InexactError(f"a map on {m.ndim}-dimensional grids used on {ndim}-dimensional ones")
    one, zero = (1,) * ndim, (0,) * ndim
    weight = m.weight.reshape(*m.weight.shape, *one)
    weight = marked_identity(weight) if m.is_identity else weight
    return replace(m, weight=weight, stride=one, dilation=one, lo=zero, hi=zero, input_dilation=one)


def with_groups(m: ConvMap, groups: int = 1, dilation: Sequence[int] | None = None) -> ConvMap:
    """Return the same map with fewer groups, or with a smaller dilation that divides its own. Always exact.

    Raises:
        InputError: if ``groups`` doesn't divide the map's groups, or ``dilation`` the map's dilation.
    """
    spread = m.dilation if dilation is None else tuple(dilation)
    _check_lengths(m, "dilation", spread)
    if (
        groups < 1
        or min(spread, default=1) < 1
        or m.groups % groups
        or any(d % e for d, e in zip(m.dilation, spread, strict=True))
    ):
        raise InputError(
            f"`groups` and `dilation` must divide those of the map ({m.groups} and {m.dilation}), "
            f"got {groups} and {spread}"
        )
    if groups == m.groups and spread == m.dilation:
        return m
    size = tuple(r // d + 1 for r, d in zip(m.span, spread, strict=True))
    frame = Frame(m.lo, spread, size, groups)
    return replace(m, weight=frame.filled([m]), gain=None, groups=groups, dilation=spread)
