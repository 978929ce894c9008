"""The cases of each law: random arguments, and the truth in terms of PyTorch's own functions.

``formula`` and the layers (``convolutions`` … ``scales``) prove what a map computes; the later laws are
compared with what PyTorch does to the outputs of the maps they are given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import reduce
from itertools import product
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from unbranch.algebra import BORDERS, ConvMap

from .checks import Case
from .strategies import (
    CHANNELS,
    GRIDS,
    NDIMS,
    SEEDS,
    Draw,
    conv_maps,
    divisors,
    grids,
    numbers,
    per_dim,
    pointwise_maps,
    siblings,
    ups,
    zero_beyond_maps,
)

CONV = (None, F.conv1d, F.conv2d, F.conv3d)
CONV_TRANSPOSE = (None, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
AVG_POOL = (None, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


# --- truths --------------------------------------------------------------------------------------


def by_formula(m: ConvMap, x: Tensor) -> Tensor:
    """The formula of a map, tap by tap, from index arithmetic alone."""
    stuffed = [(n - 1) * u + 1 for n, u in zip(x.shape[2:], m.up, strict=True)]
    out = [(n + d - 1) // s + 1 for n, d, s in zip(stuffed, m.delta, m.stride, strict=True)]
    y = x.new_zeros(x.shape[0], m.out_channels, *out)
    wide, high = m.weight.shape[1], m.out_channels // m.groups
    gain = torch.ones(m.out_channels, dtype=x.dtype) if m.gain is None else m.gain
    for tap in product(*(range(k) for k in m.size)):
        seen = x
        for dim, (p, t) in enumerate(zip(out, tap, strict=True)):
            s, d, lo, u, n = m.stride[dim], m.dilation[dim], m.lo[dim], m.up[dim], stuffed[dim]
            index = [continued(s * j + d * t - lo, n, m.border) for j in range(p)]
            here = torch.tensor([i is not None and i % u == 0 for i in index])
            source = torch.tensor([i // u if i is not None and i % u == 0 else 0 for i in index])
            seen = seen.index_select(2 + dim, source)
            seen = seen * here.to(x.dtype).reshape(-1, *(1,) * (len(out) - 1 - dim))
        for o in range(m.out_channels):
            for i in range(wide):
                y[:, o] += gain[o] * m.weight[(o, i, *tap)] * seen[:, (o // high) * wide + i]
    return y if m.bias is None else y + along_channels(m.bias, y)


def continued(i: int, n: int, border: str) -> int | None:
    """The point of a line of n points that is seen at place i; None for zero."""
    if 0 <= i < n:
        return i
    if border == "reflect":
        return -i if i < 0 else 2 * (n - 1) - i
    return {"zeros": None, "replicate": min(max(i, 0), n - 1), "circular": i % n}[border]


def along_channels(v: Tensor, y: Tensor) -> Tensor:
    """``(C,)`` shaped to be added to or multiplied with ``(N, C, *grid)``."""
    return v.reshape(-1, *(1,) * (y.dim() - 2))


def padded(y: Tensor, lo: Sequence[int], hi: Sequence[int], value: Tensor | None = None, border: str = "zeros") -> Tensor:
    """``F.pad`` by positive, then by negative amounts; ``value`` is one a channel."""
    for part in (max, min):
        amounts = [part(v, 0) for pair in zip(reversed(lo), reversed(hi), strict=True) for v in pair]
        if not any(amounts):
            continue
        if border != "zeros" and part is max:
            y = F.pad(y, amounts, border)
        elif value is None:
            y = F.pad(y, amounts)
        else:
            y = torch.cat([F.pad(y[:, [c]], amounts, value=v) for c, v in enumerate(value.tolist())], 1)
    return y


def stuffed(y: Tensor, up: Sequence[int]) -> Tensor:
    """Zeros between the points, as ``F.conv_transpose`` with a kernel of one tap puts them."""
    ones = torch.ones(y.shape[1], 1, *(1,) * len(up), dtype=y.dtype)
    return CONV_TRANSPOSE[len(up)](y, ones, stride=tuple(up), groups=y.shape[1])


def two(grid: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """A grid and one that is a point larger in each dimension: strides treat them differently."""
    return (grid, tuple(n + 1 for n in grid)) if grid else (grid,)


def on_map(m: ConvMap, grid: tuple[int, ...], truth: Any, *args: Any, **more: Any) -> Case:
    return Case((m, *args), truth, m.in_channels, two(grid), **more)


# --- maps that stand for one layer ---------------------------------------------------------------


@st.composite
def formula(draw: Draw) -> Case:
    m = draw(conv_maps(draw(NDIMS)))
    return on_map(m, draw(grids([m])), lambda x: by_formula(m, x))


@st.composite
def identities(draw: Draw) -> Case:
    channels, ndim = draw(CHANNELS), draw(NDIMS)
    grid = tuple(range(2, 2 + ndim))
    return Case((channels, ndim), lambda x: x, channels, two(grid))


@st.composite
def convolutions(draw: Draw) -> Case:
    m, same = draw(layers()), draw(st.booleans())
    hi = m.lo if same else m.hi
    m = replace(m, hi=hi)

    def truth(x: Tensor) -> Tensor:
        if m.ndim == 0:
            parts = zip(x.chunk(m.groups, 1), m.weight.chunk(m.groups), strict=True)
            y = torch.cat([F.linear(part, weight) for part, weight in parts], 1)
            return y if m.bias is None else y + m.bias
        if same and m.border == "zeros":
            return CONV[m.ndim](x, m.weight, m.bias, m.stride, m.lo, m.dilation, m.groups)
        x = padded(x, m.lo, hi, border=m.border)
        return CONV[m.ndim](x, m.weight, m.bias, m.stride, 0, m.dilation, m.groups)

    kwargs = {"border": m.border} | ({} if same else {"padding_after": hi})
    args = (m.bias, m.stride, m.lo, m.dilation, m.groups)
    return Case((m.weight, *args), truth, m.in_channels, two(draw(grids([m]))), kwargs)


@st.composite
def layers(draw: Draw) -> ConvMap:
    """A map that one convolution layer of PyTorch computes."""
    ndim = draw(NDIMS)
    return replace(draw(conv_maps(ndim, up=(1,) * ndim, crops=False)), gain=None)


@st.composite
def transposed(draw: Draw) -> Case:
    n, groups = draw(GRIDS), draw(st.integers(1, 3))
    inputs, outputs, seed = groups * draw(st.integers(1, 2)), draw(st.integers(1, 3)), draw(SEEDS)
    size, stride, dilation = draw(per_dim(n, 1, 3)), draw(per_dim(n, 1, 3)), draw(per_dim(n, 1, 2))
    padding = draw(per_dim(n, 0, 3))
    extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
    weight = numbers(seed, inputs, outputs, *size)
    bias = numbers(seed + 1, groups * outputs) if draw(st.booleans()) else None
    args = (weight, bias, stride, padding, extra, groups, dilation)
    grid = tuple(draw(st.permutations(range(7, 7 + n))))
    return Case(args, lambda x: CONV_TRANSPOSE[n](x, *args), inputs, two(grid))


@st.composite
def pools(draw: Draw) -> Case:
    n, channels = draw(GRIDS), draw(CHANNELS)
    size, stride = draw(per_dim(n, 1, 4)), draw(per_dim(n, 1, 3))
    padding = tuple(draw(st.integers(0, k // 2)) for k in size)
    divisor = draw(st.one_of(st.none(), st.integers(1, 7))) if n > 1 else None
    more = (divisor,) if n > 1 else ()
    grid = tuple(draw(st.permutations(range(4, 4 + n))))

    def truth(x: Tensor) -> Tensor:
        return AVG_POOL[n](x, size, stride, padding, False, True, *more)

    return Case((channels, size, stride, padding), truth, channels, two(grid), {"divisor": divisor})


@st.composite
def batch_norms(draw: Draw) -> Case:
    channels, seed, n = draw(CHANNELS), draw(SEEDS), draw(NDIMS)
    mean, variance = numbers(seed, channels), numbers(seed + 1, channels).square()
    weight, bias = (numbers(seed + j, channels) if draw(st.booleans()) else None for j in (2, 3))
    eps = draw(st.sampled_from([1e-5, 1e-3, 0.1]))
    return Case(
        (mean, variance, weight, bias, eps),
        lambda x: F.batch_norm(x, mean, variance, weight, bias, False, 0.0, eps),
        channels,
        two(tuple(range(2, 2 + n))),
        apply=lambda pair, x: along_channels(pair[0], x) * x + along_channels(pair[1], x),
    )


# --- laws on one map -----------------------------------------------------------------------------


@st.composite
def scales(draw: Draw) -> Case:
    m = draw(conv_maps(draw(NDIMS)))
    seed = draw(SEEDS)
    scale, shift = (numbers(seed + j, m.out_channels) if draw(st.booleans()) else None for j in range(2))

    def truth(x: Tensor) -> Tensor:
        y = m(x)
        y = y if scale is None else y * along_channels(scale, y)
        return y if shift is None else y + along_channels(shift, y)

    return on_map(m, draw(grids([m])), truth, scale, shift)


@st.composite
def unbiasing_shifts(draw: Draw) -> Case:
    m = draw(conv_maps(draw(NDIMS), bias=True))

    def no_bias(result: ConvMap) -> None:
        assert result.bias is None

    return on_map(m, draw(grids([m])), replace(m, bias=None), None, -m.bias, also=no_bias)


@st.composite
def amounts(draw: Draw, ndim: int, low: int = -1) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return draw(per_dim(ndim, low, 3)), draw(per_dim(ndim, low, 3))


@st.composite
def pads_by_constant(draw: Draw) -> Case:
    """Zeros around a map without bias, its own bias around one that has some."""
    n = draw(GRIDS)
    biased = draw(st.booleans())
    m = draw(st.one_of(zero_beyond_maps(n, biased), pointwise_maps(n, biased)))
    lo, hi = draw(amounts(n))
    return on_map(m, draw(grids([m], at_least=4)), lambda x: padded(m(x), lo, hi, m.bias), lo, hi, m.bias)


@st.composite
def pads_by_border(draw: Draw) -> Case:
    n = draw(GRIDS)
    m = draw(pointwise_maps(n))
    border = draw(st.sampled_from(BORDERS[1:]))
    lo, hi = draw(amounts(n))
    grid = draw(grids([m], at_least=4))
    return on_map(m, grid, lambda x: padded(m(x), lo, hi, border=border), lo, hi, None, border)


@st.composite
def crops(draw: Draw) -> Case:
    n = draw(GRIDS)
    m = draw(conv_maps(n))
    lo, hi = (tuple(-v for v in draw(per_dim(n, 0, 2))) for _ in range(2))
    after = ConvMap(torch.ones(1, 1, *(1,) * n), None, (1,) * n, (1,) * n, lo, hi)
    return on_map(m, draw(grids([m], [after])), lambda x: padded(m(x), lo, hi), lo, hi)


@st.composite
def any_pads(draw: Draw) -> Case:
    """Any map, amounts, value and border: mostly to be refused."""
    n = draw(GRIDS)
    m = draw(st.one_of(conv_maps(n), conv_maps(n, border="zeros", bias=False), zero_beyond_maps(n, True)))
    m = draw(st.one_of(st.just(m), pointwise_maps(n)))
    border = draw(st.sampled_from(("zeros", *BORDERS)))
    values = [None, None, m.bias, torch.zeros(m.out_channels, dtype=torch.float64), numbers(5, m.out_channels)]
    value = draw(st.sampled_from(values)) if border == "zeros" else None
    lo, hi = draw(amounts(n))
    after = ConvMap(torch.ones(1, 1, *(1,) * n), None, (1,) * n, (1,) * n, lo, hi)
    grid = draw(grids([m], [after]))
    return on_map(m, grid, lambda x: padded(m(x), lo, hi, value, border), lo, hi, value, border)


@st.composite
def upsamplings(draw: Draw) -> Case:
    n = draw(GRIDS)
    up = draw(per_dim(n, 1, 3))
    stride = tuple(1 if u > 1 else draw(st.integers(1, 3)) for u in up)
    m = draw(conv_maps(n, border="zeros", bias=False, stride=stride))
    return on_map(m, draw(grids([m])), lambda x: stuffed(m(x), up), up)


@st.composite
def any_upsamplings(draw: Draw) -> Case:
    n = draw(GRIDS)
    m, up = draw(conv_maps(n)), draw(per_dim(n, 1, 3))
    return on_map(m, draw(grids([m])), lambda x: stuffed(m(x), up), up)


@st.composite
def lifts(draw: Draw) -> Case:
    m, n = draw(conv_maps(0)), draw(NDIMS)

    def truth(x: Tensor) -> Tensor:
        return m(x.movedim(1, -1).reshape(-1, m.in_channels)).unflatten(0, (len(x), *x.shape[2:])).movedim(-1, 1)

    return on_map(m, tuple(range(2, 2 + n)), truth, n)


@st.composite
def choices(draw: Draw, count: int) -> list[int] | None:
    """Some of the channels in any order, all of them (None), or a regular part of them."""
    every = list(range(count))
    step = draw(st.sampled_from(divisors(count)))
    some = st.lists(st.sampled_from(every), min_size=1, max_size=count, unique=True)
    return draw(st.one_of(some, some.map(sorted), st.none(), st.just(every[::step]), st.just(every[:step])))


def with_zeros(x: Tensor, places: list[int] | None, count: int) -> Tensor:
    """The input whose other channels are zero."""
    if places is None:
        return x
    full = x.new_zeros(len(x), count, *x.shape[2:])
    full[:, places] = x
    return full


@st.composite
def selections(draw: Draw) -> Case:
    m = draw(conv_maps(draw(NDIMS)))
    outs, ins = draw(choices(m.out_channels)), draw(choices(m.in_channels))

    def truth(x: Tensor) -> Tensor:
        y = m(with_zeros(x, ins, m.in_channels))
        return y if outs is None else y[:, outs]

    count = m.in_channels if ins is None else len(ins)
    return Case((m, outs, ins), truth, count, two(draw(grids([m]))))


@st.composite
def group_selections(draw: Draw) -> Case:
    """The same channels, in any order, of some groups: the result has as many groups, and no zeros."""
    m = draw(conv_maps(draw(NDIMS), groups=draw(st.integers(2, 4)), inputs=12))
    rows, columns = m.out_channels // m.groups, m.in_channels // m.groups
    kept = draw(st.lists(st.sampled_from(range(m.groups)), min_size=1, unique=True).map(sorted))
    sizes = draw(st.integers(1, rows)), draw(st.integers(1, columns))
    outs, ins = (
        [g * width + j for g in kept for j in draw(st.permutations(range(width)))[:size]]
        for width, size in zip((rows, columns), sizes, strict=True)
    )

    def stays_grouped(result: ConvMap) -> None:
        assert (result.groups, result.weight.shape[1]) == (len(kept), sizes[1])

    return Case(
        (m, outs, ins),
        lambda x: m(with_zeros(x, ins, m.in_channels))[:, outs],
        len(ins),
        two(draw(grids([m]))),
        also=stays_grouped,
    )


@st.composite
def densifications(draw: Draw) -> Case:
    m = draw(conv_maps(draw(NDIMS)))
    groups = draw(st.sampled_from(divisors(m.groups)))
    dilation = tuple(draw(st.sampled_from(divisors(d))) for d in m.dilation)
    chosen = draw(st.sampled_from([dilation, None]))

    def as_asked(result: ConvMap) -> None:
        assert (result.groups, result.dilation) == (groups, m.dilation if chosen is None else chosen)

    return on_map(m, draw(grids([m])), m, groups, chosen, also=as_asked)


# --- laws on several maps ------------------------------------------------------------------------


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
        changes += [
            {"stride": draw(per_dim(n, 1, 3))},
            {"lo": draw(per_dim(n, 0, 3))},
            {"hi": draw(per_dim(n, 0, 3))},
            {"up": draw(ups(n))},
            {"border": draw(st.sampled_from(BORDERS))},
            {"dilation": draw(per_dim(n, 1, 3))},
        ]
    changed = replace(others[0], **draw(st.sampled_from(changes)))
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
