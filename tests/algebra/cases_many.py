"""The cases of the laws on several maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.algebra.checks import Case, two
from tests.algebra.strategies import NDIMS, Draw, conv_maps, grids, per_dim, pointwise_maps, siblings, zero_beyond_maps
from unbranch.algebra import PADDING_MODES, ConvMap, select


@st.composite
def sums(draw: Draw) -> Case:
    maps = draw(siblings(same_outputs=True))
    return Case(tuple(maps), lambda x: torch.stack([m(x) for m in maps]).sum(0), maps[0].in_channels, joint(draw, maps))


@st.composite
def concats(draw: Draw) -> Case:
    maps = draw(siblings(same_outputs=False))
    return Case(tuple(maps), lambda x: torch.cat([m(x) for m in maps], 1), maps[0].in_channels, joint(draw, maps))


def joint(draw: Draw, maps: Sequence[ConvMap]) -> tuple[tuple[int, ...], ...]:
    """Grids large enough for all of the maps."""
    each = [draw(grids([m])) for m in maps]
    largest = max(max(grid, default=1) for grid in each)
    return two(tuple(largest + j for j in range(maps[0].ndim)))


@st.composite
def any_family(draw: Draw) -> list[ConvMap]:
    """Maps that may or may not go together: siblings of which one is changed, or unrelated maps."""
    first, *others = draw(siblings(same_outputs=True))
    n = first.ndim
    changes: list[dict[str, Any]] = [{}]
    if n:
        other = {
            name: tuple(v + 1 for v in getattr(others[0], name))
            for name in ("stride", "input_dilation", "lo", "hi", "dilation")
        }
        changes += [{name: value} for name, value in other.items()]
        changes += [{"padding_mode": border} for border in PADDING_MODES if border != first.padding_mode]
    changed = replace(others[0], **draw(st.sampled_from(changes)))
    if draw(st.booleans()):
        changed = select(changed, [0])
    outputs = draw(st.one_of(st.none(), st.just(first.out_channels)))
    unrelated = conv_maps(n, draw(st.sampled_from([first.in_channels, 6])), outputs)
    return [first, draw(st.one_of(st.just(changed), st.just(changed), unrelated)), *others[1:]]


@st.composite
def any_sums(draw: Draw) -> Case:
    maps = draw(any_family())

    def truth(x: Tensor) -> Tensor:
        return reduce(torch.add, [m(x) for m in maps])

    return Case(tuple(maps), truth, maps[0].in_channels, joint(draw, maps))


@st.composite
def any_concats(draw: Draw) -> Case:
    maps = draw(any_family())
    return Case(tuple(maps), lambda x: torch.cat([m(x) for m in maps], 1), maps[0].in_channels, joint(draw, maps))


@st.composite
def compositions(draw: Draw) -> Case:
    """Pairs that compose exactly, for each of the reasons there are."""
    why = draw(st.sampled_from(["pads nothing", "zeros around nothing", "border around a point", "zeros stuffed"]))
    n = draw(NDIMS)
    one = (1,) * n
    if why == "zeros stuffed":
        inner = draw(st.one_of(conv_maps(n, stride=one, padding_mode="zeros", bias=False), pointwise_maps(n, False)))
        outer = draw(conv_maps(n, inner.out_channels, padding_mode="zeros"))
        none = (0,) * n
        outer = replace(outer, lo=tuple(min(v, 0) for v in outer.lo), hi=tuple(min(v, 0) for v in outer.hi))
        outer = (
            replace(outer, input_dilation=outer.input_dilation if n == 0 else draw(per_dim(n, 1, 3)), lo=none)
            if outer.lo
            else outer
        )
    elif why == "pads nothing":
        inner = draw(conv_maps(n, inputs=draw(st.sampled_from([1, 2, 6, 12]))))
        outer = draw(conv_maps(n, inner.out_channels, input_dilation=one))
        outer = replace(outer, lo=tuple(min(v, 0) for v in outer.lo), hi=tuple(min(v, 0) for v in outer.hi))
    elif why == "zeros around nothing":
        inner = draw(st.one_of(zero_beyond_maps(n), pointwise_maps(n, False)))
        outer = draw(conv_maps(n, inner.out_channels, padding_mode="zeros", input_dilation=one))
    else:
        inner = draw(pointwise_maps(n))
        outer = draw(
            conv_maps(n, inner.out_channels, padding_mode=draw(st.sampled_from(PADDING_MODES[1:])), input_dilation=one)
        )
    return Case((outer, inner), lambda x: outer(inner(x)), inner.in_channels, two(draw(grids([inner], [outer]))))


@st.composite
def any_compositions(draw: Draw) -> Case:
    n = draw(NDIMS)
    inner = draw(
        st.one_of(
            conv_maps(n), conv_maps(n, bias=False, padding_mode="zeros", input_dilation=(1,) * n), pointwise_maps(n)
        )
    )
    outer = draw(conv_maps(n, inner.out_channels))
    return Case((outer, inner), lambda x: outer(inner(x)), inner.in_channels, two(draw(grids([inner], [outer]))))


@st.composite
def interleaved_groups(draw: Draw) -> Case:
    """Groups of which neither are multiples of the others, such as 4 and 6; the result has their gcd."""
    a, b, common = draw(st.sampled_from([(4, 6, 2), (6, 4, 2), (6, 9, 3), (2, 3, 1), (4, 2, 2), (3, 6, 3)]))
    n = draw(NDIMS)
    inner = draw(conv_maps(n, 36 if 9 in (a, b) else 12, groups=b, outputs=36 if 9 in (a, b) else 12))
    outer = draw(conv_maps(n, inner.out_channels, groups=a, input_dilation=(1,) * n))
    outer = replace(outer, lo=(0,) * n, hi=(0,) * n)

    def coarsened(result: ConvMap) -> None:
        assert result.groups == common

    grid = draw(grids([inner], [outer]))
    return Case((outer, inner), lambda x: outer(inner(x)), inner.in_channels, (grid,), also=coarsened)
