"""What maps compute, from index arithmetic and PyTorch's own functions alone."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

import torch
from torch import Tensor
from torch.nn import functional as F

from unbranch.algebra import ConvMap

CONV = (None, F.conv1d, F.conv2d, F.conv3d)
CONV_TRANSPOSE = (None, F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d)
AVG_POOL = (None, F.avg_pool1d, F.avg_pool2d, F.avg_pool3d)


def by_formula(m: ConvMap, x: Tensor) -> Tensor:
    """The formula of a map, tap by tap, from index arithmetic alone."""
    stuffed = [(n - 1) * u + 1 for n, u in zip(x.shape[2:], m.input_dilation, strict=True)]
    out = [(n + d - 1) // s + 1 for n, d, s in zip(stuffed, m.size_delta, m.stride, strict=True)]
    y = x.new_zeros(x.shape[0], m.out_channels, *out)
    wide, high = m.weight.shape[1], m.out_channels // m.groups
    gain = torch.ones(m.out_channels, dtype=x.dtype) if m.gain is None else m.gain
    for tap in product(*(range(k) for k in m.kernel_size)):
        seen = x
        for dim, (p, t) in enumerate(zip(out, tap, strict=True)):
            s, d, lo, u, n = m.stride[dim], m.dilation[dim], m.lo[dim], m.input_dilation[dim], stuffed[dim]
            index = [continued(s * j + d * t - lo, n, m.padding_mode) for j in range(p)]
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


def padded(
    y: Tensor, lo: Sequence[int], hi: Sequence[int], value: Tensor | None = None, padding_mode: str = "zeros"
) -> Tensor:
    """``F.pad`` by positive, then by negative amounts; ``value`` is one a channel."""
    for part in (max, min):
        amounts = [part(v, 0) for pair in zip(reversed(lo), reversed(hi), strict=True) for v in pair]
        if not any(amounts):
            continue
        if padding_mode != "zeros" and part is max:
            y = F.pad(y, amounts, padding_mode)
        elif value is None:
            y = F.pad(y, amounts)
        else:
            y = torch.cat([F.pad(y[:, [c]], amounts, value=v) for c, v in enumerate(value.tolist())], 1)
    return y


def stuffed(y: Tensor, up: Sequence[int]) -> Tensor:
    """Zeros between the points, as ``F.conv_transpose`` with a kernel of one tap puts them."""
    ones = torch.ones(y.shape[1], 1, *(1,) * len(up), dtype=y.dtype)
    return CONV_TRANSPOSE[len(up)](y, ones, stride=tuple(up), groups=y.shape[1])
