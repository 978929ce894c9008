"""The laws of operators: each one function from frozen values to a frozen value, exact or refused.

A law that can't be applied without changing the function somewhere raises ``Inexact`` with a reason.
Kernels may be on the meta device: then the laws give shapes, at no cost, and the planner uses them so.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import product
from math import gcd, prod

import torch
from torch import Tensor

from ..errors import Inexact, InputError, NotAffine
from .convmap import ConvMap, on_grid

_CANCELLED = 1e-12  # relative: below it, a bias minus itself is rounding
_CHUNK = 1 << 21  # kernel entries that a law copies at a time


# --- maps that stand for one layer ---------------------------------------------------------------


def identity(channels: int, ndim: int, *, device: torch.device | str | None = None) -> ConvMap:
    """The map that changes nothing, as a depthwise kernel of one tap."""
    weight = torch.ones(channels, 1, *(1,) * ndim, dtype=torch.float64, device=device)
    return ConvMap(weight, None, (1,) * ndim, (1,) * ndim, (0,) * ndim, (0,) * ndim, channels)


def convolution(
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] | int = 1,
    padding: Sequence[int] | int = 0,
    dilation: Sequence[int] | int = 1,
    groups: int = 1,
    *,
    padding_after: Sequence[int] | int | None = None,
    border: str = "zeros",
) -> ConvMap:
    """``F.conv{1,2,3}d`` with its weight ``(O, I/groups, *k)``, or ``F.linear`` with ``(O, I)``."""
    n = weight.dim() - 2
    lo = _tuple(padding, n)
    hi = lo if padding_after is None else _tuple(padding_after, n)
    return ConvMap(
        weight.detach(), _float64(bias), _tuple(stride, n), _tuple(dilation, n), lo, hi, groups, border=border
    )


def transposed_convolution(
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Sequence[int] | int = 1,
    padding: Sequence[int] | int = 0,
    output_padding: Sequence[int] | int = 0,
    groups: int = 1,
    dilation: Sequence[int] | int = 1,
) -> ConvMap:
    """``F.conv_transpose{1,2,3}d`` with its weight ``(I, O/groups, *k)``: a flipped kernel on a zero-stuffed grid."""
    n = weight.dim() - 2
    inputs, outputs, *size = weight.shape
    kernel = weight.detach().reshape(groups, inputs // groups, outputs, *size).transpose(1, 2)
    kernel = kernel.reshape(groups * outputs, inputs // groups, *size).flip(tuple(range(2, 2 + n)))
    spread, pad, extra = _tuple(dilation, n), _tuple(padding, n), _tuple(output_padding, n)
    lo = tuple(d * (k - 1) - p for d, k, p in zip(spread, size, pad, strict=True))
    hi = tuple(a + e for a, e in zip(lo, extra, strict=True))
    return ConvMap(kernel, _float64(bias), (1,) * n, spread, lo, hi, groups, _tuple(stride, n))


def average_pool(
    channels: int,
    size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    *,
    divisor: float | None = None,
    device: torch.device | str | None = None,
) -> ConvMap:
    """Average pooling that counts its padding: a depthwise kernel of ``1/divisor`` (default: its taps)."""
    weight = torch.full((channels, 1, *size), 1 / (divisor or prod(size)), dtype=torch.float64, device=device)
    return convolution(weight, None, stride, padding, groups=channels)


def batch_norm_scale_shift(
    mean: Tensor, variance: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """Scale ``γ/√(σ²+ε)`` and shift ``β - μγ/√(σ²+ε)`` of a batch norm in evaluation, each ``(C,)`` in float64."""
    scale = (variance.detach().double() + eps).rsqrt()
    if weight is not None:
        scale = scale * weight.detach().double()
    shift = -mean.detach().double() * scale
    return scale, shift if bias is None else shift + bias.detach().double()


# --- laws on one map -----------------------------------------------------------------------------


def scale_shift(m: ConvMap, scale: Tensor | None = None, shift: Tensor | None = None) -> ConvMap:
    """``scale·m(x) + shift``, per output channel, each ``(O,)``. Always exact.

    A shift that takes the map's own bias away leaves a map without bias, which may be zero-padded.
    """
    gain, bias = m.gain, m.bias
    if scale is not None:
        scale = scale.detach().double()
        gain = scale if gain is None else gain * scale
        bias = None if bias is None else bias * scale.to(bias.device)
    if shift is not None:
        shift = shift.detach().double()
        moved = shift if bias is None else bias + shift.to(bias.device)
        taken_away = bias is not None and not moved.is_meta and _cancelled(moved, shift)
        bias = None if taken_away else moved
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
    frame = _Frame(m.lo, spread, size, groups)
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
    frame, border = _common_frame(maps, gcd(*(m.groups for m in maps)))
    biases = _same_device([m.bias for m in maps if m.bias is not None])
    bias = torch.stack(biases).sum(0) if biases else None
    return replace(
        first, weight=frame.filled(maps), bias=bias, gain=None, groups=frame.groups, border=border, **frame.place(first)
    )


def concat(*maps: ConvMap) -> ConvMap:
    """The outputs of maps of one input, one after the other; grouped maps become dense."""
    frame, border = _common_frame(maps, 1)
    weight = torch.cat(_same_device([frame.filled([m]) for m in maps]))
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
    frames = [_common_frame(maps, m.groups, one_input=False) for m in maps]
    weight = torch.cat(_same_device([frame.filled([m]) for (frame, _), m in zip(frames, maps, strict=True)]))
    frame, border = frames[0]
    groups = sum(m.groups for m in maps)
    place = frame.place(maps[0])
    return replace(maps[0], weight=weight, bias=_joined_bias(maps), gain=None, groups=groups, border=border, **place)


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
        total[on_grid(place)] += part
    return total


def _channels_multiplied(a: Tensor, b: Tensor, groups_a: int, groups_b: int) -> Tensor:
    """Matrix product over channels: ``a (O, M/ga, u)`` after ``b (M, I/gb, t)`` gives ``(O, I/g, u·t)``.

    One of u, t is 1. Blocks are multiplied as they are; nothing is expanded to a dense matrix.
    """
    groups = gcd(groups_a, groups_b)
    blocks_a, blocks_b = groups_a // groups, groups_b // groups
    if blocks_a > 1 and blocks_b > 1:  # neither nests in the other: make one dense within the common groups
        a, blocks_a = _coarsened(a, groups_a, groups), 1
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


def _coarsened(weight: Tensor, groups: int, fewer: int) -> Tensor:
    """A block-diagonal kernel ``(O, I/groups, …)`` written with fewer groups."""
    out = weight.new_zeros(weight.shape[0], weight.shape[1] * (groups // fewer), *weight.shape[2:])
    _diagonal_blocks(out, fewer, groups).add_(weight.reshape(fewer, groups // fewer, -1, *weight.shape[1:]))
    return out


def _diagonal_blocks(weight: Tensor, groups: int, finer: int) -> Tensor:
    """View of the blocks of ``weight (O, I/groups, *k)`` that a map of ``finer`` groups may fill.

    Shape ``(groups, r, O/finer, I/finer, *k)``, writable, with ``r = finer/groups``.
    """
    r = finer // groups
    rows, columns, *size = weight.shape
    blocks = weight.view(groups, r, rows // finer, r, columns // r, *size)
    return blocks.diagonal(dim1=1, dim2=3).movedim(-1, 1)


def _composed_bias(outer: ConvMap, bias: Tensor | None) -> Tensor | None:
    if bias is None:
        return outer.bias
    if bias.is_meta or outer.weight.is_meta:
        return torch.empty(outer.out_channels, dtype=torch.float64, device="meta")
    taps = _flat(outer.kernel).sum(2).reshape(outer.groups, -1, outer.weight.shape[1])
    carried = torch.einsum("gom,gm->go", taps, bias.reshape(outer.groups, -1)).flatten()
    return carried if outer.bias is None else carried + outer.bias


# --- common ground of several maps -----------------------------------------------------------------


class _Frame:
    """The smallest lattice of taps that holds the kernels of several maps."""

    def __init__(self, lo: Sequence[int], dilation: Sequence[int], size: Sequence[int], groups: int) -> None:
        self.lo, self.dilation, self.size, self.groups = tuple(lo), tuple(dilation), tuple(size), groups

    def place(self, like: ConvMap) -> dict[str, tuple[int, ...]]:
        """Geometry of a map that has this frame and the output size of ``like``."""
        reach = [d * (k - 1) for d, k in zip(self.dilation, self.size, strict=True)]
        hi = tuple(d - a + r for d, a, r in zip(like.delta, self.lo, reach, strict=True))
        return {"lo": self.lo, "hi": hi, "dilation": self.dilation}

    def filled(self, maps: Iterable[ConvMap]) -> Tensor:
        """The sum of the kernels in this frame, ``(O, I/groups, *size)`` in float64."""
        maps = list(maps)
        if len(maps) == 1 and maps[0].groups == self.groups and maps[0].size == self.size:
            return maps[0].kernel
        first = maps[0]
        device = "meta" if any(m.weight.is_meta for m in maps) else first.weight.device
        shape = (first.out_channels, first.in_channels // self.groups, *self.size)
        total = torch.zeros(shape, dtype=torch.float64, device=device)
        if not total.is_meta:
            for m in maps:
                self._fill(total, m)
        return total

    def _fill(self, total: Tensor, m: ConvMap) -> None:
        place = []
        for low, spread, m_lo, m_spread, k in zip(self.lo, self.dilation, m.lo, m.dilation, m.size, strict=True):
            start, step = (low - m_lo) // spread, max(m_spread // spread, 1)
            place.append(slice(start, start + (k - 1) * step + 1, step))
        inside = total[on_grid(place)]
        if m.groups == self.groups:
            step = max(1, _CHUNK // max(1, m.weight[0].numel()))
            for row in range(0, m.out_channels, step):
                rows = slice(row, row + step)
                inside[rows] += m.rows(rows)
        else:
            r = m.groups // self.groups
            blocks = _diagonal_blocks(total, self.groups, m.groups)[on_grid(place)]
            blocks += m.kernel.reshape(self.groups, r, -1, *m.weight.shape[1:])


_AGREE = {"ndim": "dimensions", "stride": "strides", "up": "upsampling", "delta": "output sizes"}


def _common_frame(maps: Sequence[ConvMap], groups: int, *, one_input: bool = True) -> tuple[_Frame, str]:
    first = maps[0]
    for name, word in (_AGREE | ({"in_channels": "input channels"} if one_input else {})).items():
        values = {getattr(m, name) for m in maps}
        if len(values) > 1:
            raise Inexact(f"maps of different {word}: {', '.join(map(str, sorted(values)))}")
    borders = {m.border for m in maps if m.pads}
    if len(borders) > 1:
        raise Inexact(f"maps with different borders: {', '.join(sorted(borders))}")
    lo, dilation, size = [], [], []
    for j in range(first.ndim):
        starts = [-m.lo[j] for m in maps]
        ends = [-m.lo[j] + m.reach[j] for m in maps]
        steps = [s - min(starts) for s in starts] + [m.dilation[j] for m in maps if m.size[j] > 1]
        step = gcd(*steps) or 1
        lo.append(-min(starts))
        dilation.append(step)
        size.append((max(ends) - min(starts)) // step + 1)
    return _Frame(lo, dilation, size, groups), borders.pop() if borders else "zeros"


# --- small helpers -------------------------------------------------------------------------------


def _tuple(value: Sequence[int] | int, n: int) -> tuple[int, ...]:
    return (value,) * n if isinstance(value, int) else tuple(value)


def _float64(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.detach().double()


def _flat(weight: Tensor) -> Tensor:
    """``(O, I/groups, *k)`` with its taps in one dimension, ``(O, I/groups, taps)``."""
    return weight.reshape(*weight.shape[:2], -1)


def _is_identity(m: ConvMap) -> bool:
    plain = m.diagonal and m.bias is None and m.gain is None and not m.weight.is_meta
    return plain and bool((m.weight == 1).all())


def _cancelled(difference: Tensor, whole: Tensor) -> bool:
    """Whether a difference is zero up to rounding."""
    return bool((difference.abs() <= _CANCELLED * whole.abs().max()).all())


def _same_device(vectors: Sequence[Tensor]) -> list[Tensor]:
    """All on the meta device if one of them is."""
    return [v.to("meta") for v in vectors] if any(v.is_meta for v in vectors) else list(vectors)


def _joined_bias(maps: Sequence[ConvMap]) -> Tensor | None:
    known = next((m.bias for m in maps if m.bias is not None), None)
    if known is None:
        return None
    return torch.cat(_same_device([known.new_zeros(m.out_channels) if m.bias is None else m.bias for m in maps]))
