"""Broken twins of the laws on one map; see ``mutants.py``."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from tests.algebra.mutant_tools import MUTANTS, breaks, interleaved, moved, unbiased, undilated, widened
from unbranch.algebra import ConvMap, as_pointwise, pad, scale_shift, select, with_groups, zero_stuff
from unbranch.errors import InexactError

SCALE = "scale_shift scales and shifts"
MUTANTS[SCALE, "bias not scaled"] = lambda m, scale, shift: replace(
    scale_shift(unbiased(m), scale, shift), bias=scale_shift(m, None, shift).bias
)
MUTANTS[SCALE, "shift scaled"] = lambda m, scale, shift: scale_shift(scale_shift(m, None, shift), scale)
MUTANTS[SCALE, "earlier gain lost"] = lambda m, scale, shift: scale_shift(replace(m, gain=None), scale, shift)

MUTANTS["scale_shift takes a map's bias away", "bias of zeros left"] = lambda m, scale, shift: replace(
    m, bias=m.bias + shift
)

PAD = "pad is F.pad with zeros or the map's bias"
ANY_PAD = "pad is exact or refuses"
BORDER_PAD = "pad is F.pad with a border after a pointwise map"
MUTANTS[PAD, "stride not multiplied in"] = lambda m, lo, hi, v: replace(
    widened(replace(m, stride=(1,) * m.ndim), lo, hi, "zeros"), stride=m.stride
)
MUTANTS[PAD, "stride not multiplied into lo"] = lambda m, lo, hi, v: moved(
    pad(m, lo, hi, v), [a + b for a, b in zip(m.lo, lo, strict=True)]
)
MUTANTS[PAD, "hi forgotten"] = lambda m, lo, hi, v: pad(m, lo, lo, v)
MUTANTS[PAD, "axes reversed"] = lambda m, lo, hi, v: pad(m, lo[::-1], hi[::-1], v)
MUTANTS[PAD, "border of a map that doesn't pad kept"] = lambda m, lo, hi, v: replace(
    pad(m, lo, hi, v), padding_mode=m.padding_mode
)
MUTANTS[BORDER_PAD, "border ignored"] = lambda m, lo, hi, v, border: widened(m, lo, hi, "zeros")
MUTANTS[BORDER_PAD, "lo and hi swapped"] = lambda m, lo, hi, v, border: pad(m, hi, lo, v, border)
MUTANTS["pad by negative amounts crops", "stride not multiplied in"] = lambda m, lo, hi: replace(
    pad(replace(m, stride=(1,) * m.ndim), lo, hi), stride=m.stride
)


@breaks(BORDER_PAD, "reflection after a bias refused")
def pad_without_bias(m: ConvMap, lo: Any, hi: Any, value: Tensor | None, border: str) -> ConvMap:
    if m.bias is not None:
        raise InexactError("bias")
    return pad(m, lo, hi, value, border)


@breaks(PAD, "the map's own bias refused")
def pad_with_zeros_only(m: ConvMap, lo: Any, hi: Any, value: Tensor | None) -> ConvMap:
    if value is not None:
        raise InexactError("value")
    return pad(m, lo, hi)


@breaks(ANY_PAD, "zeros after a bias accepted")
def pad_after_bias(m: ConvMap, lo: Any, hi: Any, value: Tensor | None = None, border: str = "zeros") -> ConvMap:
    return replace(pad(unbiased(m), lo, hi, value if m.bias is None else None, border), bias=m.bias)


@breaks(ANY_PAD, "kernel that reaches back accepted")
def pad_after_reach(m: ConvMap, lo: Any, hi: Any, value: Tensor | None = None, border: str = "zeros") -> ConvMap:
    if border != "zeros" or m.padding_mode != "zeros" or m.bias is not None or value is not None:
        raise InexactError("not this bug")
    return widened(m, lo, hi)


@breaks(ANY_PAD, "kernel that reaches back after the end accepted")
def pad_after_end(m: ConvMap, lo: Any, hi: Any, value: Tensor | None = None, border: str = "zeros") -> ConvMap:
    before = pad(m, lo, tuple(min(v, 0) for v in hi), value, border)
    return widened(before, (0,) * m.ndim, tuple(max(v, 0) for v in hi))


@breaks(ANY_PAD, "any border after any map accepted")
def pad_any_border(m: ConvMap, lo: Any, hi: Any, value: Tensor | None = None, border: str = "zeros") -> ConvMap:
    return pad(m, lo, hi, value) if border == "zeros" else widened(m, lo, hi, border)


@breaks(ANY_PAD, "zeros after a reflection accepted")
def pad_after_border(m: ConvMap, lo: Any, hi: Any, value: Tensor | None = None, border: str = "zeros") -> ConvMap:
    return replace(pad(replace(m, padding_mode="zeros"), lo, hi, value, border), padding_mode=m.padding_mode)


UPSAMPLED = "zero_stuff puts zeros between"
ANY_UPSAMPLED = "zero_stuff is exact or refuses"
MUTANTS[UPSAMPLED, "dilation not multiplied"] = lambda m, up: replace(zero_stuff(m, up), dilation=m.dilation)
MUTANTS[UPSAMPLED, "padding not multiplied"] = lambda m, up: replace(zero_stuff(m, up), lo=m.lo)
MUTANTS[UPSAMPLED, "earlier upsampling lost"] = lambda m, up: replace(zero_stuff(m, up), input_dilation=tuple(up))
MUTANTS[ANY_UPSAMPLED, "bias accepted"] = lambda m, up: replace(zero_stuff(unbiased(m), up), bias=m.bias)
MUTANTS[ANY_UPSAMPLED, "stride accepted"] = lambda m, up: replace(
    zero_stuff(replace(m, stride=(1,) * m.ndim), up), stride=m.stride
)
MUTANTS[ANY_UPSAMPLED, "reflection accepted"] = lambda m, up: replace(
    zero_stuff(replace(m, padding_mode="zeros"), up), padding_mode=m.padding_mode
)

LIFTED = "as_pointwise applies a matrix at every point"
MUTANTS[LIFTED, "bias dropped"] = lambda m, n: unbiased(as_pointwise(m, n))
MUTANTS[LIFTED, "groups lost"] = lambda m, n: replace(interleaved(as_pointwise(m, n)))

SELECT = "select slices channels"
MUTANTS[SELECT, "order lost"] = lambda m, channels: select(m, sorted(channels))
MUTANTS[SELECT, "bias not selected"] = lambda m, channels: replace(
    select(unbiased(m), channels), bias=None if m.bias is None else m.bias[: len(channels)]
)


@breaks(SELECT, "gain applied twice")
def select_gained(m: ConvMap, channels: list[int]) -> ConvMap:
    result = select(m, channels)
    twice = m.gain is not None and m.groups > 1 and result.groups == 1
    return scale_shift(result, m.gain[channels]) if twice else result


@breaks(SELECT, "groups kept where some are gone")
def select_in_groups(m: ConvMap, channels: list[int]) -> ConvMap:
    right = select(m, channels)
    if m.groups == 1 or len(channels) % m.groups:
        return right
    return replace(m, weight=m.weight[channels], bias=right.bias, gain=None if m.gain is None else m.gain[channels])


KEEPS_GROUPS = "select keeps groups"
MUTANTS[KEEPS_GROUPS, "becomes dense"] = lambda m, channels: select(with_groups(m), channels)


DENSIFIED = "with_groups is the same map"
MUTANTS[DENSIFIED, "nothing done"] = lambda m, groups, dilation: m
MUTANTS[DENSIFIED, "taps not spread"] = lambda m, groups, dilation: undilated(with_groups(m, groups, dilation))
MUTANTS[DENSIFIED, "groups interleaved"] = lambda m, groups, dilation: with_groups(interleaved(m), groups, dilation)
MUTANTS[DENSIFIED, "gain lost"] = lambda m, groups, dilation: with_groups(replace(m, gain=None), groups, dilation)
MUTANTS[DENSIFIED, "groups copied instead of placed"] = lambda m, groups, dilation: replace(
    with_groups(replace(m, gain=None), m.groups, dilation),
    weight=with_groups(m, m.groups, dilation).kernel.repeat(1, m.groups // groups, *(1,) * m.ndim),
    groups=groups,
)
