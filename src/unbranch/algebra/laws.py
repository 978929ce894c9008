"""The laws of operators: each one function from frozen values to a frozen value, exact or refused.

A law that can't be applied without changing the function somewhere raises ``Inexact`` with a reason.
Kernels may be on the meta device: then the laws give shapes, at no cost, and the planner uses them so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import gcd

import torch
from torch import Tensor

from unbranch.algebra.convmap import ConvMap
from unbranch.algebra.frame import Frame, common_frame, same_device
from unbranch.errors import Inexact, InputError, NotAffine

_CANCELLED = 1e-12  # relative: below it, a bias minus itself is rounding


# --- laws on one map -----------------------------------------------------------------------------


def scale_shift(m: ConvMap, scale: Tensor | None = None, shift: Tensor | None = None) -> ConvMap:
    """``scale·m(x) + shift``, per output channel, each ``(O,)``. Always exact.

    A shift alone that takes the map's own bias away leaves a map without bias, which may be zero-padded; one whose
    values are on the meta device is taken to do so, as ``pad`` takes a value there to be the bias.
    """
    gain, bias = m.gain, m.bias
    if scale is not None:
        scale = scale.double()
        gain = scale if gain is None else torch.mul(*same_device([gain, scale]))
        bias = None if bias is None else torch.mul(*same_device([bias, scale]))
    if shift is not None:
        shift = shift.double()
        moved = shift if bias is None else torch.add(*same_device([bias, shift]))
        known = not moved.is_meta and not shift.is_meta
        taken_away = scale is None and (_cancelled(moved, shift) if known else shift.is_meta)
        bias = None if bias is not None and taken_away else moved
    return replace(m, gain=gain, bias=bias)


def pad(
    m: ConvMap, lo: Sequence[int], hi: Sequence[int], value: Tensor | None = None, border: str = "zeros"
) -> ConvMap:
    """``m(x)`` padded by ``lo`` before and ``hi`` after (negative: cropped), as a map of x.

    Exact if what is padded equals what m's formula gives beyond its output: for a constant ``value``
    ``(O,)`` (default zero) m must see only zeros there and have that value as its bias; a reflecting,
    replicating or circular border must meet a pointwise map. Cropping is always exact.

    Raises:
        Inexact: zero padding after a bias; padding after a kernel that reaches back into the input.
    """
    if any(v > 0 for v in (*lo, *hi)):
        if border != "zeros":
            if not m.pointwise:
                raise Inexact(f"{border} padding after a map that isn't pointwise")
        else:
            _check_constant_border(m, lo, hi, value)
    else:
        border = m.border
    return replace(
        m,
        lo=tuple(a + s * p for a, s, p in zip(m.lo, m.stride, lo, strict=True)),
        hi=tuple(a + s * p for a, s, p in zip(m.hi, m.stride, hi, strict=True)),
        border=border,
    )


def _check_constant_border(m: ConvMap, lo: Sequence[int], hi: Sequence[int], value: Tensor | None) -> None:
    if m.pads and m.border != "zeros":
        raise Inexact(f"zero padding after {m.border} padding")
    for before, after, reach, low, high, stride in zip(lo, hi, m.reach, m.lo, m.hi, m.stride, strict=True):
        if (before > 0 and reach - low >= stride) or (after > 0 and high < reach):
            raise NotAffine("padding after a convolution whose kernel still reaches into its input there")
    if value is None and m.bias is not None:
        raise Inexact("zero padding after a bias: the border would get the bias instead of zero")
    if value is not None:
        own = torch.zeros_like(value) if m.bias is None else m.bias
        known = not (own.is_meta or value.is_meta)  # if not, they are taken to agree until there are values
        if known and not _cancelled(own - value, value):
            raise Inexact("padding with a value other than the map's own bias")


def upsampled(m: ConvMap, up: Sequence[int]) -> ConvMap:
    """``m`` followed by putting ``up - 1`` zeros between the points of its output, as a map of x."""
    if all(u == 1 for u in up):
        return m
    if m.bias is not None:
        raise Inexact("a transposed convolution after a bias: the bias doesn't reach every point alike")
    if any(s != 1 and u != 1 for s, u in zip(m.stride, up, strict=True)):
        raise Inexact("a transposed convolution after a strided one")
    if m.pads and m.border != "zeros":
        raise Inexact(f"a transposed convolution after {m.border} padding")

    def times(v: tuple[int, ...]) -> tuple[int, ...]:
        return tuple(a * u for a, u in zip(v, up, strict=True))

    return replace(m, dilation=times(m.dilation), lo=times(m.lo), hi=times(m.hi), up=times(m.up))


def lifted(m: ConvMap, ndim: int) -> ConvMap:
    """A matrix as a kernel of one tap on a grid of ``ndim`` dimensions. Always exact."""
    if m.ndim == ndim:
        return m
    if m.ndim:
        raise Inexact(f"a map on {m.ndim}-dimensional grids used on {ndim}-dimensional ones")
    one, zero = (1,) * ndim, (0,) * ndim
    weight = m.weight.reshape(*m.weight.shape, *one)
    return replace(m, weight=weight, stride=one, dilation=one, lo=zero, hi=zero, up=one)


def select(m: ConvMap, outputs: Sequence[int] | None = None, inputs: Sequence[int] | None = None) -> ConvMap:
    """Only some output channels, and only some input channels (the others being zero). Always exact.

    A grouped map stays grouped where every group that remains keeps equally many channels, in order.
    """
    outs = list(range(m.out_channels)) if outputs is None else list(outputs)
    ins = list(range(m.in_channels)) if inputs is None else list(inputs)
    if not outs or not ins:
        raise InputError("a map needs at least one output and one input channel")
    groups = _groups_after_select(m, outs, ins)
    m = m if groups else densified(m)
    rows = torch.tensor(outs)
    weight = m.weight[rows.to(m.weight.device)]
    if not groups:
        weight = weight[:, torch.tensor(ins, device=weight.device)]
    elif inputs is not None:
        width = m.in_channels // m.groups
        local = torch.tensor(ins, device=weight.device).remainder(width).reshape(groups, -1)
        index = local.repeat_interleave(len(outs) // groups, 0)  # (outputs, inputs a group)
        weight = weight.gather(1, index.reshape(*index.shape, *(1,) * m.ndim).expand(*index.shape, *m.size))

    def pick(v: Tensor | None) -> Tensor | None:
        return None if v is None else v[rows.to(v.device)]

    return replace(m, weight=weight, bias=pick(m.bias), gain=pick(m.gain), groups=groups or 1)


def _groups_after_select(m: ConvMap, outs: list[int], ins: list[int]) -> int:
    """Number of groups that remain, 0 if the selection can't be grouped."""
    out_width, in_width = m.out_channels // m.groups, m.in_channels // m.groups
    out_groups = [o // out_width for o in outs]
    in_groups = [i // in_width for i in ins]
    left = sorted(set(in_groups))
    per_out, per_in = len(outs) // len(left), len(ins) // len(left)
    grouped = [j for j in left for _ in range(per_out)], [j for j in left for _ in range(per_in)]
    return len(left) if (out_groups, in_groups) == grouped else 0


def densified(m: ConvMap, groups: int = 1, dilation: Sequence[int] | None = None) -> ConvMap:
    """The same map with fewer groups, or with a smaller dilation that divides its own. Always exact."""
    spread = m.dilation if dilation is None else tuple(dilation)
    if m.groups % groups or any(d % e for d, e in zip(m.dilation, spread, strict=True)):
        raise InputError(f"{m} can't be written with {groups} groups and dilation {spread}")
    if groups == m.groups and spread == m.dilation:
        return m
    size = tuple(r // d + 1 for r, d in zip(m.reach, spread, strict=True))
    frame = Frame(m.lo, spread, size, groups)
    return replace(m, weight=frame.filled([m]), gain=None, groups=groups, dilation=spread)


# --- laws on several maps ------------------------------------------------------------------------


def add(*maps: ConvMap) -> ConvMap:
    """The sum of maps of one input: kernels aligned at their origin, embedded into the union of supports.

    Exact if strides, channels and ``delta`` agree, so that all give the same size for every input.

    Raises:
        Inexact: if they don't, or if they continue the input beyond its edges in different ways.
    """
    first = maps[0]
    if len({m.out_channels for m in maps}) > 1:
        raise Inexact("a sum that broadcasts over channels")
    frame, border = common_frame(maps, gcd(*(m.groups for m in maps)))
    biases = same_device([m.bias for m in maps if m.bias is not None])
    bias = torch.stack(biases).sum(0) if biases else None
    return replace(
        first, weight=frame.filled(maps), bias=bias, gain=None, groups=frame.groups, border=border, **frame.place(first)
    )


def concat(*maps: ConvMap) -> ConvMap:
    """The outputs of maps of one input, one after the other; grouped maps become dense."""
    frame, border = common_frame(maps, 1)
    weight = torch.cat(same_device([frame.filled([m]) for m in maps]))
    return replace(
        maps[0], weight=weight, bias=_joined_bias(maps), gain=None, groups=1, border=border, **frame.place(maps[0])
    )


def split(m: ConvMap, sizes: Sequence[int]) -> list[ConvMap]:
    """The map of each part of the output channels, in order."""
    if sum(sizes) != m.out_channels:
        raise InputError(f"parts {list(sizes)} don't add up to {m.out_channels} channels")
    ends = [sum(sizes[: j + 1]) for j in range(len(sizes))]
    return [select(m, range(end - size, end)) for end, size in zip(ends, sizes, strict=True)]


def block_diagonal(*maps: ConvMap) -> ConvMap:
    """Maps of different inputs side by side: inputs and outputs are concatenated, groups add up.

    Raises:
        Inexact: if the groups of the maps differ in width, or strides or sizes differ.
    """
    if len({(m.out_channels // m.groups, m.in_channels // m.groups) for m in maps}) > 1:
        raise Inexact("maps whose groups differ in width side by side")
    frames = [common_frame(maps, m.groups, one_input=False) for m in maps]
    weight = torch.cat(same_device([frame.filled([m]) for (frame, _), m in zip(frames, maps, strict=True)]))
    frame, border = frames[0]
    groups = sum(m.groups for m in maps)
    place = frame.place(maps[0])
    return replace(maps[0], weight=weight, bias=_joined_bias(maps), gain=None, groups=groups, border=border, **place)


def _cancelled(difference: Tensor, whole: Tensor) -> bool:
    """Whether a difference is zero up to rounding."""
    return bool((difference.abs() <= _CANCELLED * whole.abs().max()).all())


def _joined_bias(maps: Sequence[ConvMap]) -> Tensor | None:
    known = next((m.bias for m in maps if m.bias is not None), None)
    if known is None:
        return None
    return torch.cat(same_device([known.new_zeros(m.out_channels) if m.bias is None else m.bias for m in maps]))
