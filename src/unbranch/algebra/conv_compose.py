"""The composition of two convolutions, exact at the border."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from math import gcd, prod

import torch
from torch import Tensor

from unbranch.algebra.affine import AffineMap, promoted
from unbranch.algebra.conv_laws import zero_stuff
from unbranch.algebra.convmap import ConvMap, on_grid
from unbranch.algebra.frame import with_fewer_groups
from unbranch.algebra.grid_laws import as_conv, to_grid
from unbranch.algebra.gridmap import GridMap
from unbranch.algebra.laws import compose, pad
from unbranch.errors import InexactError


@compose.register
def _compose(outer: ConvMap, inner: AffineMap) -> AffineMap:
    if isinstance(inner, GridMap):
        if outer.ndim != inner.out_ndim:
            raise InexactError(
                f"a map on {outer.ndim}-dimensional grids after one on {inner.out_ndim}-dimensional ones"
            )
        return compose(to_grid(outer, inner.grid_out), inner)  # type: ignore[no-any-return]
    inner = as_conv(inner)
    if outer.ndim != inner.ndim:
        raise InexactError(f"a map on {outer.ndim}-dimensional grids after one on {inner.ndim}-dimensional ones")
    if outer.in_channels != inner.out_channels:
        raise InexactError(
            f"a map of {outer.in_channels} input channels after one of {inner.out_channels} output channels"
        )
    dtype = promoted(outer.dtype, inner.dtype)
    outer, inner = outer.to(dtype), inner.to(dtype)
    if inner.is_identity:
        return outer
    inner = as_conv(pad(zero_stuff(inner, outer.input_dilation), outer.lo, outer.hi, padding_mode=outer.padding_mode))
    return _unpadded(outer, inner)


def _unpadded(outer: ConvMap, inner: ConvMap) -> ConvMap:
    """Return ``outer(inner(x))`` for an ``outer`` whose padding and zero-stuffing ``inner`` already includes."""
    steps = [s * d for s, d in zip(inner.stride, outer.dilation, strict=True)]  # of outer's taps, in x
    dilation = tuple(
        gcd(*(v for v, k in ((a, ka), (b, kb)) if k > 1)) or 1
        for a, ka, b, kb in zip(steps, outer.kernel_size, inner.dilation, inner.kernel_size, strict=True)
    )
    span = [a * (k - 1) + r for a, k, r in zip(steps, outer.kernel_size, inner.span, strict=True)]
    size = tuple(r // d + 1 for r, d in zip(span, dilation, strict=True))
    delta = [di - s * r for di, s, r in zip(inner.size_delta, inner.stride, outer.span, strict=True)]
    step_out = [a // d for a, d in zip(steps, dilation, strict=True)]
    step_in = [a // d for a, d in zip(inner.dilation, dilation, strict=True)]
    return replace(
        inner,
        weight=_convolved(outer, inner, size, step_out, step_in),
        gain=outer.gain,
        bias=_composed_bias(outer, inner.bias),
        groups=gcd(outer.groups, inner.groups),
        stride=tuple(a * b for a, b in zip(inner.stride, outer.stride, strict=True)),
        dilation=dilation,
        hi=tuple(d - a + r for d, a, r in zip(delta, inner.lo, span, strict=True)),
    )


def _convolved(outer: ConvMap, inner: ConvMap, size: Sequence[int], step_out: list[int], step_in: list[int]) -> Tensor:
    """Return the kernel of the composition without the outer gain, ``(O, I/g, *size)``.

    Loops over the taps of the smaller of the two kernels.
    """
    groups = gcd(outer.groups, inner.groups)
    weight_out, weight_in = outer.weight.to(outer.dtype), inner.kernel
    if weight_out.is_meta != weight_in.is_meta:
        weight_out, weight_in = weight_out.to("meta"), weight_in.to("meta")
    shape = (outer.out_channels, inner.in_channels // groups, *size)
    if weight_in.is_meta:
        return weight_in.new_zeros(shape)
    loop_out = prod(outer.kernel_size) <= prod(inner.kernel_size)
    looped, step, other, other_step = (
        (outer.kernel_size, step_out, inner.kernel_size, step_in)
        if loop_out
        else (inner.kernel_size, step_in, outer.kernel_size, step_out)
    )

    def part(tap: tuple[int, ...]) -> Tensor:
        a = weight_out[on_grid(tap)].unsqueeze(-1) if loop_out else _flat(weight_out)
        b = _flat(weight_in) if loop_out else weight_in[on_grid(tap)].unsqueeze(-1)
        return _channels_multiplied(a, b, outer.groups, inner.groups).reshape(*shape[:2], *other)

    if prod(looped) == 1 and tuple(other) == tuple(size):
        return part((0,) * len(size))
    total = weight_in.new_zeros(shape)
    for tap in product(*(range(k) for k in looped)):
        place = [
            slice(t * s, t * s + (k - 1) * o + 1, max(o, 1))
            for t, s, k, o in zip(tap, step, other, other_step, strict=True)
        ]
        total[on_grid(place)].add_(part(tap))
    return total


def _channels_multiplied(a: Tensor, b: Tensor, groups_a: int, groups_b: int) -> Tensor:
    """Return the matrix product over channels of ``a (O, M/ga, u)`` and ``b (M, I/gb, t)``, ``(O, I/g, u·t)``.

    One of u, t is 1. Blocks are multiplied without expanding them to a dense matrix.
    """
    groups = gcd(groups_a, groups_b)
    blocks_a, blocks_b = groups_a // groups, groups_b // groups
    if blocks_a > 1 and blocks_b > 1:  # neither nests in the other: make one dense within the common groups
        a, blocks_a = with_fewer_groups(a, groups_a, groups), 1
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
    if bias.is_meta or outer.is_meta:
        return torch.empty(outer.out_channels, dtype=outer.dtype, device="meta")
    taps = _flat(outer.kernel).sum(2).reshape(outer.groups, -1, outer.weight.shape[1])
    carried = torch.einsum("gom,gm->go", taps, bias.reshape(outer.groups, -1)).flatten()
    return carried if outer.bias is None else carried + outer.bias


def _flat(weight: Tensor) -> Tensor:
    """Flatten the taps of a kernel: ``(O, I/groups, *k)`` to ``(O, I/groups, taps)``."""
    return weight.reshape(*weight.shape[:2], -1)
