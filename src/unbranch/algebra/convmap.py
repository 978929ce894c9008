"""The operator value: an affine, shift-equivariant map on grids with 0, 1, 2 or 3 dimensions.

    y[o, p] = bias[o] + sum_{i, t} kernel[o, i, t] · x↑[i, stride·p + dilation·t - lo]

``x↑`` is the input with ``up - 1`` zeros between its points (1: the input itself; transposed
convolutions have more), continued beyond its edges by ``border``: zeros, or one of PyTorch's
reflect, replicate and circular. With no grid dimension it is a matrix: ``nn.Linear``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from torch import Tensor
from torch.nn import functional as F

from unbranch.algebra.evaluate import convolve
from unbranch.errors import InputError

BORDERS = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True, eq=False)
class ConvMap:
    """A frozen affine map; see the module's formula.

    Args:
        weight: ``(O, I/groups, *k)``, any floating dtype; the laws compute in float64.
        bias: ``(O,)`` in float64, or None where the map has none *by structure*: such a map may be
            zero-padded, a map whose bias merely happens to be zero may not.
        stride, dilation, lo, hi, up: one integer per grid dimension. ``lo`` and ``hi`` are the
            padding before and after; negative values crop.
        groups: blocks of the kernel; block ``j`` maps the ``j``-th slice of inputs to that of outputs.
        border: how the input is continued beyond its edges.
        gain: ``(O,)`` in float64, a factor on the kernel's rows that isn't multiplied out yet, so that
            scaling costs nothing and the source's float32 kernel needn't be copied.

    Raises:
        InputError: if shapes or numbers don't fit together.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    lo: tuple[int, ...]
    hi: tuple[int, ...]
    groups: int = 1
    up: tuple[int, ...] = ()
    border: str = "zeros"
    gain: Tensor | None = None

    def __post_init__(self) -> None:
        n = self.weight.dim() - 2
        if not self.up:
            object.__setattr__(self, "up", (1,) * n)
        lengths = {len(v) for v in (self.stride, self.dilation, self.lo, self.hi, self.up)}
        if lengths != {n} or not 0 <= n <= 3:
            raise InputError(f"a kernel of shape {tuple(self.weight.shape)} needs {n} strides, dilations, paddings")
        if min(self.stride + self.dilation + self.up, default=1) < 1 or min(self.weight.shape) < 1:
            raise InputError("stride, dilation, upsampling and every dimension of the kernel must be at least 1")
        if self.groups < 1 or self.out_channels % self.groups:
            raise InputError(f"{self.out_channels} outputs don't divide into {self.groups} groups")
        if self.border not in BORDERS:
            raise InputError(f"border must be one of {', '.join(BORDERS)}, not {self.border!r}")
        for name in ("bias", "gain"):
            vector = getattr(self, name)
            if vector is not None and vector.shape != (self.out_channels,):
                raise InputError(f"{name} has shape {tuple(vector.shape)}, expected ({self.out_channels},)")

    @property
    def ndim(self) -> int:
        """Number of grid dimensions."""
        return self.weight.dim() - 2

    @property
    def out_channels(self) -> int:
        return int(self.weight.shape[0])

    @property
    def in_channels(self) -> int:
        return int(self.weight.shape[1]) * self.groups

    @property
    def size(self) -> tuple[int, ...]:
        """Taps per grid dimension."""
        return tuple(self.weight.shape[2:])

    @property
    def reach(self) -> tuple[int, ...]:
        """Distance between the first and the last tap, ``dilation·(size - 1)``."""
        return tuple(d * (k - 1) for d, k in zip(self.dilation, self.size, strict=True))

    @property
    def delta(self) -> tuple[int, ...]:
        """``lo + hi - reach``: an input of N points gives ``⌊(N + delta - 1)/stride⌋ + 1``."""
        return tuple(a + b - r for a, b, r in zip(self.lo, self.hi, self.reach, strict=True))

    @property
    def kernel(self) -> Tensor:
        """The kernel in float64 with its gain, ``(O, I/groups, *k)``."""
        return self.rows(slice(None))

    def rows(self, index: slice) -> Tensor:
        """Some output rows of the float64 kernel, ``(rows, I/groups, *k)``."""
        weight = self.weight[index]
        if self.gain is None or weight.is_meta:
            return weight.double()
        return weight * self.gain[index].reshape(-1, *(1,) * (weight.dim() - 1))

    @property
    def pads(self) -> bool:
        """Whether the map reads beyond the edges of its input."""
        return any(v > 0 for v in self.lo + self.hi)

    @property
    def pointwise(self) -> bool:
        """Whether each output point depends on the input point at the same place only."""
        return self.size == self.stride == self.up == (1,) * self.ndim and not any(self.lo + self.hi)

    @property
    def diagonal(self) -> bool:
        """Whether the map only scales and shifts each channel."""
        return self.pointwise and self.groups == self.out_channels == self.in_channels

    def output_size(self, grid: Iterable[int]) -> tuple[int, ...]:
        """Size of the output grid for an input grid."""
        up = tuple((n - 1) * u + 1 for n, u in zip(grid, self.up, strict=True))
        return tuple((n + d - 1) // s + 1 for n, d, s in zip(up, self.delta, self.stride, strict=True))

    def macs(self, positions: float = 1.0) -> float:
        """Multiply-accumulates for that many output positions (one image)."""
        return self.weight.numel() * positions / prod(self.up)

    @property
    def numbers(self) -> int:
        """Numbers a layer stores for this map: kernel and bias."""
        return self.weight.numel() + (0 if self.bias is None else self.out_channels)

    def meta(self) -> ConvMap:
        """The same map without the kernel's values: enough to plan with."""
        return self if self.weight.is_meta else replace(self, weight=self.weight.to("meta"))

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to ``x`` of shape ``(N, I, *grid)`` in x's dtype; gives ``(N, O, *grid')``."""
        n = self.ndim
        if n == 0:
            return self._lifted()(x.unsqueeze(-1)).squeeze(-1)
        if max(self.up) > 1:
            wide = x.new_zeros(*x.shape[:2], *((s - 1) * u + 1 for s, u in zip(x.shape[2:], self.up, strict=True)))
            wide[on_grid(slice(None, None, u) for u in self.up)] = x
            x = wide
        x = _continued(x, [max(v, 0) for v in self.lo], [max(v, 0) for v in self.hi], self.border)
        x = _continued(x, [min(v, 0) for v in self.lo], [min(v, 0) for v in self.hi], "zeros")
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return convolve(x, self.kernel.to(x.dtype), bias, self.stride, self.dilation, self.groups)

    def _lifted(self) -> ConvMap:
        return replace(self, weight=self.weight.unsqueeze(-1), stride=(1,), dilation=(1,), lo=(0,), hi=(0,), up=(1,))

    def __repr__(self) -> str:
        kernel = "x".join(map(str, self.size)) or "matrix"
        return f"ConvMap({self.in_channels}→{self.out_channels}, {kernel}, stride {self.stride}, groups {self.groups})"


def on_grid(place: Iterable[int | slice]) -> tuple[Any, ...]:
    """Index of that place on the grid, the dimensions before it kept."""
    return (..., *place)


def _continued(x: Tensor, lo: list[int], hi: list[int], border: str) -> Tensor:
    amounts = [v for pair in zip(reversed(lo), reversed(hi), strict=True) for v in pair]
    if not any(amounts):
        return x
    return F.pad(x, amounts, "constant" if border == "zeros" else border)
