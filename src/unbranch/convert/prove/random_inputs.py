"""Random inputs for operators."""

from __future__ import annotations

import torch
from torch import Tensor

from unbranch.rules.arrangement import Shapes
from unbranch.rules.value import Affine

_FAR = 256


def random_inputs(value: Affine, device: torch.device, known: Shapes | None = None) -> list[Tensor]:
    """Return seeded normal noise for the root of a value, ``(2, channels, *grid)``.

    If the graph fixes the grid of the root, the noise has it; otherwise its sizes differ and exceed the kernel's span.
    With channels on the last axis there are two candidates, of rank 3 and of rank 2. If ``known`` has shapes for inputs
    of two sizes, the first candidate has the sizes that are equal in both, and small sizes elsewhere.
    """
    channels = value.map.in_channels
    if value.root_grid is not None:
        shapes = [(2, channels, *value.root_grid)]
    elif value.channel_axis == -1:
        both: list[tuple[int, ...]] = [(2, 3, channels), (6, channels)]
        shapes = [shape for shape in both if value.rank in (None, len(shape))] or both
    else:
        m = value.conv
        smallest = [_side(s, a, b) for s, a, b in zip(m.span, m.lo, m.hi, strict=True)]
        shapes = [(2, channels, *(max(4, s) + 1 + j for j, s in enumerate(smallest)))]
    if known is not None and value.root_grid is None:
        small = shapes[0] if len(shapes[0]) == len(known[0]) else range(2, 2 + len(known[0]))
        shapes.insert(0, tuple(n if n == m else s for n, m, s in zip(*known, small, strict=True)))
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(device) for shape in shapes]


def _side(span: int, lo: int, hi: int) -> int:
    """Return a size at which the whole kernel takes effect; for very large kernels, one that leaves some output."""
    if span > _FAR:
        return max(1, span + 1 - lo - hi)
    return span + 1 + max(0, -lo) + max(0, -hi)
