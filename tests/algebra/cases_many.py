"""The cases of the laws on several maps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor

from tests.algebra.checks import Case, on_map, two
from tests.algebra.strategies import NDIMS, Draw, conv_maps, grids, per_dim, pointwise_maps, siblings, zero_beyond_maps
from unbranch.algebra import BORDERS, ConvMap, select


@st.composite
def sums(draw: Draw) -> Case:
    maps = draw(siblings(same_outputs=True))
    return Case(tuple(maps), lambda x: torch.stack([m(x) for m in maps]).sum(0), maps[0].in_channels, joint(draw, maps))


@st.composite
def concats(draw: Draw) -> Case:
    maps = draw(siblings(same_outputs=False))
    return Case(tuple(maps), lambda x: torch.cat([m(x) for m in maps], 1), maps[0].in_channels, joint(draw, maps))


@st.composite
def side_by_side(draw: Draw) -> Case:
    maps = draw(siblings(same_outputs=False, same_group_width=True))
    return Case(tuple(maps), *apart(maps), joint(draw, maps))


def apart(maps: Sequence[ConvMap]) -> tuple[Any, int]:
    """Maps on their own parts of the input's channels, and the number of all of these channels."""
    widths = [m.in_channels for m in maps]

    def truth(x: Tensor) -> Tensor:
        return torch.cat([m(part) for m, part in zip(maps, x.split(widths, 1), strict=True)], 1)

    return truth, sum(widths)


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
            name: tuple(v + 1 for v in getattr(others[0], name)) for name in ("stride", "up", "lo", "hi", "dilation")
        }
        changes += [{name: value} for name, value in other.items()]
        changes += [{"border": border} for border in BORDERS if border != first.border]
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
def any_side_by_side(draw: Draw) -> Case:
    maps = draw(any_family())
    return Case(tuple(maps), *apart(maps), joint(draw, maps))


@st.composite
def splits(draw: Draw) -> Case:
    m = draw(conv_maps(draw(NDIMS)))
    sizes = []
    while sum(sizes) < m.out_channels:
        sizes.append(draw(st.integers(1, m.out_channels - sum(sizes))))

    def right_sizes(parts: list[ConvMap]) -> None:
        assert [part.out_channels for part in parts] == sizes

    def side_by_side(parts: list[ConvMap], x: Tensor) -> Tensor:
        return torch.cat([part(x) for part in parts], 1)

    return on_map(m, draw(grids([m])), m, sizes, apply=side_by_side, also=right_sizes)


@st.composite
def compositions(draw: Draw) -> Case:
    """Pairs that compose exactly, for each of the reasons there are."""
    why = draw(st.sampled_from(["pads nothing", "zeros around nothing", "border around a point", "upsampled"]))
    n = draw(NDIMS)
    one = (1,) * n
    if why == "upsampled":
        inner = draw(st.one_of(conv_maps(n, stride=one, border="zeros", bias=False), pointwise_maps(n, False)))
        outer = draw(conv_maps(n, inner.out_channels, border="zeros"))
        none = (0,) * n
        outer = replace(outer, lo=tuple(min(v, 0) for v in outer.lo), hi=tuple(min(v, 0) for v in outer.hi))
        outer = replace(outer, up=outer.up if n == 0 else draw(per_dim(n, 1, 3)), lo=none) if outer.lo else outer
    elif why == "pads nothing":
        inner = draw(conv_maps(n, inputs=draw(st.sampled_from([1, 2, 6, 12]))))
        outer = draw(conv_maps(n, inner.out_channels, up=one))
        outer = replace(outer, lo=tuple(min(v, 0) for v in outer.lo), hi=tuple(min(v, 0) for v in outer.hi))
    elif why == "zeros around nothing":
        inner = draw(st.one_of(zero_beyond_maps(n), pointwise_maps(n, False)))
        outer = draw(conv_maps(n, inner.out_channels, border="zeros", up=one))
    else:
        inner = draw(pointwise_maps(n))
        outer = draw(conv_maps(n, inner.out_channels, border=draw(st.sampled_from(BORDERS[1:])), up=one))
    return Case((outer, inner), lambda x: outer(inner(x)), inner.in_channels, two(draw(grids([inner], [outer]))))


@st.composite
def any_compositions(draw: Draw) -> Case:
    n = draw(NDIMS)
    inner = draw(st.one_of(conv_maps(n), conv_maps(n, bias=False, border="zeros", up=(1,) * n), pointwise_maps(n)))
    outer = draw(conv_maps(n, inner.out_channels))
    return Case((outer, inner), lambda x: outer(inner(x)), inner.in_channels, two(draw(grids([inner], [outer]))))


@st.composite
def interleaved_groups(draw: Draw) -> Case:
    """Groups of which neither are multiples of the others, such as 4 and 6; the result has their gcd."""
    a, b, common = draw(st.sampled_from([(4, 6, 2), (6, 4, 2), (6, 9, 3), (2, 3, 1), (4, 2, 2), (3, 6, 3)]))
    n = draw(NDIMS)
    inner = draw(conv_maps(n, 36 if 9 in (a, b) else 12, groups=b, outputs=36 if 9 in (a, b) else 12))
    outer = draw(conv_maps(n, inner.out_channels, groups=a, up=(1,) * n))
    outer = replace(outer, lo=(0,) * n, hi=(0,) * n)

    def coarsened(result: ConvMap) -> None:
        assert result.groups == common

    grid = draw(grids([inner], [outer]))
    return Case((outer, inner), lambda x: outer(inner(x)), inner.in_channels, (grid,), also=coarsened)
