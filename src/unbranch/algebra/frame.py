"""Common ground of several kernels: one lattice of taps, one grouping, one output size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import gcd

import torch
from torch import Tensor

from unbranch.algebra.convmap import ConvMap, on_grid
from unbranch.errors import Inexact

_CHUNK = 1 << 21  # kernel entries that a sum copies at a time


class Frame:
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
                inside[rows].add_(m.rows(rows))
        else:
            r = m.groups // self.groups
            blocks = diagonal_blocks(total, self.groups, m.groups)[on_grid(place)]
            blocks += m.kernel.reshape(self.groups, r, -1, *m.weight.shape[1:])


_AGREE = {"ndim": "dimensions", "stride": "strides", "up": "upsampling", "delta": "output sizes"}


def common_frame(maps: Sequence[ConvMap], groups: int, *, one_input: bool = True) -> tuple[Frame, str]:
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
    return Frame(lo, dilation, size, groups), borders.pop() if borders else "zeros"


def coarsened(weight: Tensor, groups: int, fewer: int) -> Tensor:
    """A block-diagonal kernel ``(O, I/groups, …)`` written with fewer groups."""
    out = weight.new_zeros(weight.shape[0], weight.shape[1] * (groups // fewer), *weight.shape[2:])
    diagonal_blocks(out, fewer, groups).add_(weight.reshape(fewer, groups // fewer, -1, *weight.shape[1:]))
    return out


def diagonal_blocks(weight: Tensor, groups: int, finer: int) -> Tensor:
    """View of the blocks of ``weight (O, I/groups, *k)`` that a map of ``finer`` groups may fill.

    Shape ``(groups, r, O/finer, I/finer, *k)``, writable, with ``r = finer/groups``.
    """
    r = finer // groups
    rows, columns, *size = weight.shape
    blocks = weight.view(groups, r, rows // finer, r, columns // r, *size)
    return blocks.diagonal(dim1=1, dim2=3).movedim(-1, 1)


def same_device(vectors: Sequence[Tensor]) -> list[Tensor]:
    """All on one device: the meta device if one of them is there, else that of the first that isn't on the CPU."""
    devices = [v.device for v in vectors]
    kinds = {d.type: d for d in reversed(devices)}
    device = kinds.get("meta") or next((d for d in devices if d.type != "cpu"), torch.device("cpu"))
    return [v.to(device) for v in vectors]
