"""One map after another: the law that makes most merges, and where most converters are wrong at the border."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import gcd, prod

import torch
from torch import Tensor

from unbranch.algebra.convmap import ConvMap, on_grid
from unbranch.algebra.frame import coarsened
from unbranch.algebra.laws import pad, upsampled
from unbranch.errors import Inexact


def compose(outer: ConvMap, inner: ConvMap) -> ConvMap:
    """``outer(inner(x))``: kernels convolved, strides multiplied, groups coarsened to their gcd.

    Exact if ``outer`` pads nothing, or what it pads is what ``inner``'s formula gives there (see ``pad``).

    Raises:
        Inexact: mostly zero padding after a bias.
    """
    if outer.in_channels != inner.out_channels:
        raise Inexact(f"{inner.out_channels} channels meet a map of {outer.in_channels}")
    if _is_identity(inner):
        return outer
    inner = pad(upsampled(inner, outer.up), outer.lo, outer.hi, border=outer.border)
    outer = replace(outer, lo=(0,) * outer.ndim, hi=(0,) * outer.ndim, up=(1,) * outer.ndim)
    steps = [s * d for s, d in zip(inner.stride, outer.dilation, strict=True)]  # of outer's taps, in x
    dilation = tuple(
        gcd(*(v for v, k in ((a, ka), (b, kb)) if k > 1)) or 1
        for a, ka, b, kb in zip(steps, outer.size, inner.dilation, inner.size, strict=True)
    )
    reach = [a * (k - 1) + r for a, k, r in zip(steps, outer.size, inner.reach, strict=True)]
    size = tuple(r // d + 1 for r, d in zip(reach, dilation, strict=True))
    delta = [di + s * do for di, s, do in zip(inner.delta, inner.stride, outer.delta, strict=True)]
    return replace(
        inner,
        weight=_convolved(outer, inner, size, [a // d for a, d in zip(steps, dilation, strict=True)],
                          [a // d for a, d in zip(inner.dilation, dilation, strict=True)]),
        gain=outer.gain,
        bias=_composed_bias(outer, inner.bias),
        groups=gcd(outer.groups, inner.groups),
        stride=tuple(a * b for a, b in zip(inner.stride, outer.stride, strict=True)),
        dilation=dilation,
        hi=tuple(d - a + r for d, a, r in zip(delta, inner.lo, reach, strict=True)),
    )  # fmt: skip


def _convolved(outer: ConvMap, inner: ConvMap, size: Sequence[int], step_out: list[int], step_in: list[int]) -> Tensor:
    """Kernel of the composition ``(O, I/g, *size)``; loops over the taps of the smaller of the two."""
    groups = gcd(outer.groups, inner.groups)
    weight_out, weight_in = outer.weight.double(), inner.kernel
    if weight_out.is_meta != weight_in.is_meta:
        weight_out, weight_in = weight_out.to("meta"), weight_in.to("meta")
    total = weight_in.new_zeros(outer.out_channels, inner.in_channels // groups, *size)
    if total.is_meta:
        return total
    loop_out = prod(outer.size) <= prod(inner.size)
    looped, step, other, other_step = (
        (outer.size, step_out, inner.size, step_in) if loop_out else (inner.size, step_in, outer.size, step_out)
    )
    for tap in product(*(range(k) for k in looped)):
        a = weight_out[on_grid(tap)].unsqueeze(-1) if loop_out else _flat(weight_out)
        b = _flat(weight_in) if loop_out else weight_in[on_grid(tap)].unsqueeze(-1)
        part = _channels_multiplied(a, b, outer.groups, inner.groups).reshape(*total.shape[:2], *other)
        place = [
            slice(t * s, t * s + (k - 1) * o + 1, max(o, 1))
            for t, s, k, o in zip(tap, step, other, other_step, strict=True)
        ]
        total[on_grid(place)].add_(part)
    return total


def _channels_multiplied(a: Tensor, b: Tensor, groups_a: int, groups_b: int) -> Tensor:
    """Matrix product over channels: ``a (O, M/ga, u)`` after ``b (M, I/gb, t)`` gives ``(O, I/g, u·t)``.

    One of u, t is 1. Blocks are multiplied as they are; nothing is expanded to a dense matrix.
    """
    groups = gcd(groups_a, groups_b)
    blocks_a, blocks_b = groups_a // groups, groups_b // groups
    if blocks_a > 1 and blocks_b > 1:  # neither nests in the other: make one dense within the common groups
        a, blocks_a = coarsened(a, groups_a, groups), 1
    u, t = a.shape[2], b.shape[2]
    if blocks_a == 1:
        left = a.reshape(groups, -1, blocks_b, b.shape[0] // (groups * blocks_b), u)
        right = b.reshape(groups, blocks_b, -1, b.shape[1], t)
        result = torch.einsum("gormu,grmit->goriut", left, right)
    else:
        left = a.reshape(groups, blocks_a, -1, a.shape[1], u)
        right = b.reshape(groups, blocks_a, -1, b.shape[1], t)
        result = torch.einsum("gromu,grmit->groiut", left, right)
    return result.reshape(a.shape[0], -1, u * t)


def _composed_bias(outer: ConvMap, bias: Tensor | None) -> Tensor | None:
    if bias is None:
        return outer.bias
    if bias.is_meta or outer.weight.is_meta:
        return torch.empty(outer.out_channels, dtype=torch.float64, device="meta")
    taps = _flat(outer.kernel).sum(2).reshape(outer.groups, -1, outer.weight.shape[1])
    carried = torch.einsum("gom,gm->go", taps, bias.reshape(outer.groups, -1)).flatten()
    return carried if outer.bias is None else carried + outer.bias


def _is_identity(m: ConvMap) -> bool:
    plain = m.diagonal and m.bias is None and m.gain is None and not m.weight.is_meta
    return plain and bool((m.weight == 1).all())


def _flat(weight: Tensor) -> Tensor:
    """``(O, I/groups, *k)`` with its taps in one dimension, ``(O, I/groups, taps)``."""
    return weight.reshape(*weight.shape[:2], -1)
