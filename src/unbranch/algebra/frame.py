"""The common lattice of taps, groups and output size of several kernels."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor

from unbranch.algebra.affine import promoted
from unbranch.algebra.convmap import ConvMap, on_grid
from unbranch.errors import InexactError

_CHUNK = 1 << 21  # kernel entries that a sum copies at a time


@dataclass(frozen=True)
class Frame:
    """Lattice of taps that contains the kernels of several maps.

    Args:
        lo: distance of the first tap before the origin, per grid dimension.
        dilation, kernel_size: of the lattice, per grid dimension.
        groups: of the kernel in the frame.
    """

    lo: tuple[int, ...]
    dilation: tuple[int, ...]
    kernel_size: tuple[int, ...]
    groups: int

    def geometry(self, like: ConvMap) -> dict[str, tuple[int, ...]]:
        """Return ``lo``, ``hi`` and ``dilation`` of a map that has this frame and the output size of ``like``."""
        span = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
        hi = tuple(d - a + r for d, a, r in zip(like.size_delta, self.lo, span, strict=True))
        return {"lo": self.lo, "hi": hi, "dilation": self.dilation}

    def filled(self, maps: Iterable[ConvMap]) -> Tensor:
        """Return the sum of the kernels in this frame, ``(O, I/groups, *kernel_size)``."""
        maps = list(maps)
        if len(maps) == 1 and maps[0].groups == self.groups and maps[0].kernel_size == self.kernel_size:
            return maps[0].kernel
        first, dtype = maps[0], promoted(*(m.dtype for m in maps))
        device = "meta" if any(m.is_meta for m in maps) else first.device
        shape = (first.out_channels, first.in_channels // self.groups, *self.kernel_size)
        total = torch.zeros(shape, dtype=dtype, device=device)
        if not total.is_meta:
            for m in maps:
                self._fill(total, m)
        return total

    def _fill(self, total: Tensor, m: ConvMap) -> None:
        place = []
        for low, spread, m_lo, m_spread, k in zip(self.lo, self.dilation, m.lo, m.dilation, m.kernel_size, strict=True):
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


_AGREE = {
    "ndim": "dimensions",
    "stride": "strides",
    "input_dilation": "input dilations",
    "size_delta": "output sizes",
    "in_channels": "input channels",
}


def common_frame(maps: Sequence[ConvMap], groups: int) -> tuple[Frame, str]:
    """Return the smallest frame that contains the kernels of maps of one input, and their padding mode.

    Raises:
        InexactError: if the maps differ in dimensions, strides, input channels, output size or padding mode.
    """
    for name, word in _AGREE.items():
        values = {getattr(m, name) for m in maps}
        if len(values) > 1:
            raise InexactError(f"maps of different {word}: {', '.join(map(str, sorted(values)))}")
    modes = {m.padding_mode for m in maps if m.pads}
    if len(modes) > 1:
        raise InexactError(f"maps of different padding modes: {', '.join(sorted(modes))}")
    lo, dilation, size = [], [], []
    for j in range(maps[0].ndim):
        starts = [-m.lo[j] for m in maps]
        ends = [-m.lo[j] + m.span[j] for m in maps]
        steps = [s - min(starts) for s in starts] + [m.dilation[j] for m in maps if m.kernel_size[j] > 1]
        step = gcd(*steps) or 1
        lo.append(-min(starts))
        dilation.append(step)
        size.append((max(ends) - min(starts)) // step + 1)
    return Frame(tuple(lo), tuple(dilation), tuple(size), groups), modes.pop() if modes else "zeros"


def with_fewer_groups(weight: Tensor, groups: int, fewer: int) -> Tensor:
    """Return a block-diagonal kernel ``(O, I/groups, …)`` written with fewer groups, ``(O, I/fewer, …)``."""
    out = weight.new_zeros(weight.shape[0], weight.shape[1] * (groups // fewer), *weight.shape[2:])
    diagonal_blocks(out, fewer, groups).add_(weight.reshape(fewer, groups // fewer, -1, *weight.shape[1:]))
    return out


def diagonal_blocks(weight: Tensor, groups: int, finer: int) -> Tensor:
    """Return a view of the blocks of ``weight (O, I/groups, *k)`` that a map of ``finer`` groups may fill.

    Shape ``(groups, r, O/finer, I/finer, *k)``, writable, with ``r = finer/groups``.
    """
    r = finer // groups
    rows, columns, *size = weight.shape
    blocks = weight.view(groups, r, rows // finer, r, columns // r, *size)
    return blocks.diagonal(dim1=1, dim2=3).movedim(-1, 1)
