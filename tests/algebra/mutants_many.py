"""Broken twins of the laws on several maps; see ``mutants.py``."""

from __future__ import annotations

from dataclasses import replace

import torch

from tests.algebra.checks import Law
from tests.algebra.mutant_tools import (
    MUTANTS,
    breaks,
    flipped,
    interleaved,
    moved,
    unbiased,
    undilated,
    unpadded,
    widened,
)
from unbranch.algebra import (
    ConvMap,
    add,
    compose,
    concat,
    scale_shift,
    with_groups,
)
from unbranch.errors import InexactError

ADD = "add sums outputs"
ANY_ADD = "add is exact or refuses"
MUTANTS[ADD, "aligned by the first tap"] = lambda *maps: add(*(moved(m, maps[0].lo) for m in maps))
MUTANTS[ADD, "aligned by the middle of the kernel"] = lambda *maps: add(
    *(moved(m, [r // 2 for r in m.span]) for m in maps)
)
MUTANTS[ADD, "dilation ignored"] = lambda *maps: add(*map(undilated, maps))
MUTANTS[ADD, "only the first bias"] = lambda *maps: add(maps[0], *map(unbiased, maps[1:]))
MUTANTS[ADD, "biases added for each tap"] = lambda *maps: scale_shift(add(*maps), None, add(*maps).bias)
MUTANTS[ADD, "gain lost"] = lambda *maps: add(*(replace(m, gain=None) for m in maps))
MUTANTS[ADD, "last map lost"] = lambda *maps: add(*maps[:-1])
MUTANTS[ADD, "border lost"] = lambda *maps: replace(add(*maps), padding_mode="zeros")
MUTANTS[ANY_ADD, "different borders accepted"] = lambda *maps: add(
    *(replace(m, padding_mode=maps[0].padding_mode) for m in maps)
)
MUTANTS[ANY_ADD, "different strides accepted"] = lambda *maps: add(*(replace(m, stride=maps[0].stride) for m in maps))
MUTANTS[ANY_ADD, "different upsampling accepted"] = lambda *maps: add(
    *(replace(m, input_dilation=maps[0].input_dilation) for m in maps)
)
MUTANTS[ANY_ADD, "different sizes accepted"] = lambda *maps: add(*(resized(m, maps[0]) for m in maps))


def resized(m: ConvMap, like: ConvMap) -> ConvMap:
    """Padded after its end until the output has the other's size."""
    return replace(m, hi=tuple(d - a + r for d, a, r in zip(like.size_delta, m.lo, m.span, strict=True)))


@breaks(ANY_ADD, "fewer channels added to the first ones")
def add_fewer(*maps: ConvMap) -> ConvMap:
    most = max(m.out_channels for m in maps)
    return add(*(m if m.out_channels == most else with_zero_outputs(m, most) for m in maps))


def with_zero_outputs(m: ConvMap, count: int) -> ConvMap:
    dense = with_groups(m)
    more = count - m.out_channels
    bias = None if m.bias is None else torch.cat([m.bias, m.bias.new_zeros(more)])
    weight = torch.cat([dense.kernel, dense.kernel.new_zeros(more, *dense.weight.shape[1:])])
    return replace(dense, weight=weight, bias=bias, gain=None)


def refuse_unless_equal(name: str) -> Law:
    """A sum that refuses more than it has to."""

    def law(*maps: ConvMap) -> ConvMap:
        if len({getattr(m, name) for m in maps}) > 1:
            raise InexactError(name)
        return add(*maps)

    return law


for part in ("kernel_size", "dilation", "groups", "lo"):
    MUTANTS[ADD, f"different {part} refused"] = refuse_unless_equal(part)


CONCAT = "concat is torch.cat"
ANY_CONCAT = "concat is exact or refuses"
MUTANTS[CONCAT, "order reversed"] = lambda *maps: concat(*maps[::-1])
MUTANTS[CONCAT, "bias dropped where one map has none"] = lambda *maps: (
    unbiased(concat(*maps)) if any(m.bias is None for m in maps) else concat(*maps)
)
MUTANTS[CONCAT, "kernels not aligned"] = lambda *maps: concat(*(moved(m, maps[0].lo) for m in maps))
MUTANTS[CONCAT, "groups kept"] = lambda *maps: concat(
    *(replace(m, groups=1, weight=m.weight.repeat(1, m.groups, *(1,) * m.ndim)) for m in maps)
)
MUTANTS[ANY_CONCAT, "different sizes accepted"] = lambda *maps: concat(*(resized(m, maps[0]) for m in maps))
MUTANTS[ANY_CONCAT, "different strides accepted"] = lambda *maps: concat(
    *(replace(m, stride=maps[0].stride) for m in maps)
)

COMPOSE = "compose is one map after the other"
ANY_COMPOSE = "compose is exact or refuses"
GROUPED_COMPOSE = "compose coarsens groups to their gcd"
MUTANTS[COMPOSE, "outer kernel flipped"] = lambda outer, inner: compose(flipped(outer), inner)
MUTANTS[COMPOSE, "inner kernel flipped"] = lambda outer, inner: compose(outer, flipped(inner))
MUTANTS[COMPOSE, "outer dilation ignored"] = lambda outer, inner: compose(undilated(outer), inner)
MUTANTS[COMPOSE, "outer bias forgotten"] = lambda outer, inner: compose(unbiased(outer), inner)
MUTANTS[COMPOSE, "outer gain forgotten"] = lambda outer, inner: compose(replace(outer, gain=None), inner)
MUTANTS[COMPOSE, "inner gain forgotten"] = lambda outer, inner: compose(outer, replace(inner, gain=None))
MUTANTS[COMPOSE, "outer border ignored"] = lambda outer, inner: replace(
    compose(outer, inner), padding_mode=inner.padding_mode
)
MUTANTS[COMPOSE, "zero-stuffing ignored"] = lambda outer, inner: compose(
    replace(outer, input_dilation=(1,) * outer.ndim), inner
)
MUTANTS[COMPOSE, "order swapped"] = lambda outer, inner: compose(inner, outer)
MUTANTS[COMPOSE, "bias carried by one tap only"] = lambda outer, inner: replace(
    compose(outer, inner), bias=compose(one_tap(outer), inner).bias
)
MUTANTS[COMPOSE, "inner bias added as it is"] = lambda outer, inner: (
    replace(compose(outer, unbiased(inner)), bias=inner.bias)
    if inner.bias is not None and outer.out_channels == inner.out_channels
    else compose(outer, inner)
)


def one_tap(m: ConvMap) -> ConvMap:
    return replace(unpadded(m), weight=m.weight[(..., *(slice(1) for _ in m.kernel_size))])


@breaks(COMPOSE, "steps of the taps not multiplied by stride")
def compose_tap_steps(outer: ConvMap, inner: ConvMap) -> ConvMap:
    result = compose(outer, replace(inner, stride=(1,) * inner.ndim))
    return replace(result, stride=compose(outer, inner).stride)


@breaks(COMPOSE, "steps of the taps not multiplied by stride, size corrected")
def compose_tap_steps_of_right_size(outer: ConvMap, inner: ConvMap) -> ConvMap:
    return resized(compose_tap_steps(outer, inner), compose(outer, inner))


@breaks(COMPOSE, "padding not multiplied by stride")
def compose_padding(outer: ConvMap, inner: ConvMap) -> ConvMap:
    result = compose(unpadded(outer), inner)
    lo, hi = ([a + b for a, b in zip(v, w, strict=True)] for v, w in ((result.lo, outer.lo), (result.hi, outer.hi)))
    return replace(result, lo=tuple(lo), hi=tuple(hi), padding_mode=compose(outer, inner).padding_mode)


@breaks(COMPOSE, "strides not multiplied")
def compose_strides(outer: ConvMap, inner: ConvMap) -> ConvMap:
    stride = tuple(map(max, zip(outer.stride, inner.stride, strict=True)))
    return replace(compose(outer, inner), stride=stride)


@breaks(COMPOSE, "reflection after a bias refused")
def compose_unbiased(outer: ConvMap, inner: ConvMap) -> ConvMap:
    if inner.bias is not None and outer.pads:
        raise InexactError("bias")
    return compose(outer, inner)


@breaks(ANY_COMPOSE, "zero padding after a bias accepted")
def compose_after_bias(outer: ConvMap, inner: ConvMap) -> ConvMap:
    compose(outer, unbiased(inner))  # all other conditions hold
    padded = widened(inner, outer.lo, outer.hi)
    return compose(unpadded(outer), padded)


@breaks(ANY_COMPOSE, "padding after a kernel that reaches back accepted")
def compose_after_reach(outer: ConvMap, inner: ConvMap) -> ConvMap:
    if inner.bias is not None or inner.padding_mode != outer.padding_mode or max(outer.input_dilation, default=1) > 1:
        raise InexactError("not this bug")
    return compose(unpadded(outer), widened(inner, outer.lo, outer.hi))


MUTANTS[GROUPED_COMPOSE, "output channels interleaved"] = lambda outer, inner: compose(interleaved(outer), inner)
MUTANTS[GROUPED_COMPOSE, "middle channels interleaved"] = lambda outer, inner: compose(outer, interleaved(inner))
MUTANTS[GROUPED_COMPOSE, "always dense"] = lambda outer, inner: with_groups(compose(outer, inner))
