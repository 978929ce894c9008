"""The affine map of a convolution: shift-equivariant, on grids with 0, 1, 2 or 3 dimensions.

    y[o, p] = bias[o] + sum_{i, t} kernel[o, i, t] · x↑[i, stride·p + dilation·t - lo]

``x↑`` is the input with ``input_dilation - 1`` zeros between its points (1: the input itself; transposed convolutions
have more), continued beyond its edges by ``padding_mode``: zeros, or one of PyTorch's reflect, replicate and circular.
Without a grid dimension the kernel is a matrix: ``nn.Linear``.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from unbranch.algebra.affine import AffineMap, promoted
from unbranch.algebra.evaluate import convolve
from unbranch.deprecation import RenamedAttribute, renamed_arguments
from unbranch.errors import InputError
from unbranch.grids import last_axis_first

PADDING_MODES = ("zeros", "reflect", "replicate", "circular")


@dataclass(frozen=True, eq=False)
class ConvMap(AffineMap):
    """Immutable affine map with a kernel; the module's docstring has the formula.

    Args:
        weight: ``(O, I/groups, *k)``, any floating dtype.
        bias: ``(O,)``, or None. A map can be zero-padded if it has no bias, but not if the values of its bias are zero,
            because a bias can change.
        stride, dilation, lo, hi, input_dilation: one integer per grid dimension. ``lo`` and ``hi`` are the padding
            before and after; negative values crop.
        groups: blocks of the kernel; block ``j`` maps the ``j``-th slice of inputs to that of outputs.
        padding_mode: values of the input beyond its edges, one of ``PADDING_MODES``.
        gain: ``(O,)``, a factor for each row of the kernel, or None. It is multiplied in lazily, so scaling a map
            copies no kernel.
        dtype: dtype of computations, at least the promoted dtype of the tensors; ``weight`` is cast lazily, so
            converting a map to float64 copies no kernel.

    Raises:
        InputError: if shapes or arguments are inconsistent.
    """

    weight: Tensor
    bias: Tensor | None
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    lo: tuple[int, ...]
    hi: tuple[int, ...]
    groups: int = 1
    input_dilation: tuple[int, ...] = ()
    padding_mode: str = "zeros"
    gain: Tensor | None = None
    dtype: torch.dtype = field(default=None, kw_only=True)  # type: ignore[assignment]

    size = RenamedAttribute("kernel_size")
    reach = RenamedAttribute("span")
    delta = RenamedAttribute("size_delta")
    numbers = RenamedAttribute("numel")
    up = RenamedAttribute("input_dilation")
    border = RenamedAttribute("padding_mode")

    def __post_init__(self) -> None:
        n = self.weight.dim() - 2
        for name in ("stride", "dilation", "lo", "hi", "input_dilation"):
            if type(getattr(self, name)) is not tuple:
                object.__setattr__(self, name, tuple(getattr(self, name)))
        if not self.input_dilation:
            object.__setattr__(self, "input_dilation", (1,) * n)
        given = {t.dtype for t in (self.weight, self.bias, self.gain) if t is not None}
        if self.dtype is not None:
            given.add(self.dtype)
        object.__setattr__(self, "dtype", promoted(*given))
        self._check(n)

    def _check(self, n: int) -> None:
        lengths = {len(self.stride), len(self.dilation), len(self.lo), len(self.hi), len(self.input_dilation)}
        shape = tuple(self.weight.shape)
        if lengths != {n} or not 0 <= n <= 3:
            raise InputError(
                f"`weight` of shape {shape} needs `stride`, `dilation`, `lo`, `hi` and `input_dilation` of length {n}"
            )
        if min(self.stride + self.dilation + self.input_dilation, default=1) < 1 or min(shape) < 1:
            raise InputError(
                f"`stride`, `dilation`, `input_dilation` and the dimensions of `weight` must be at least 1, got "
                f"{self.stride}, {self.dilation}, {self.input_dilation} and {shape}"
            )
        if self.groups < 1 or self.out_channels % self.groups:
            raise InputError(f"`groups` must divide the {self.out_channels} output channels, got {self.groups}")
        if self.padding_mode not in PADDING_MODES:
            raise InputError(f"`padding_mode` must be one of {', '.join(PADDING_MODES)}, got {self.padding_mode!r}")
        for name, vector in (("bias", self.bias), ("gain", self.gain)):
            if vector is not None and vector.shape != (shape[0],):
                raise InputError(f"`{name}` must have shape ({shape[0]},), got {tuple(vector.shape)}")

    @property
    def ndim(self) -> int:
        """Number of grid dimensions."""
        return self.weight.dim() - 2

    @property
    def out_ndim(self) -> int:
        """Number of grid dimensions."""
        return self.ndim

    @property
    def out_channels(self) -> int:
        return int(self.weight.shape[0])

    @property
    def in_channels(self) -> int:
        return int(self.weight.shape[1]) * self.groups

    @property
    def kernel_size(self) -> tuple[int, ...]:
        """Taps per grid dimension."""
        return tuple(self.weight.shape[2:])

    @property
    def span(self) -> tuple[int, ...]:
        """Distance between the first and the last tap, ``dilation·(kernel_size - 1)``."""
        return tuple(d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True))

    @property
    def size_delta(self) -> tuple[int, ...]:
        """``lo + hi - span``: an input of N points gives ``⌊(N + size_delta - 1)/stride⌋ + 1``."""
        return tuple(a + b - r for a, b, r in zip(self.lo, self.hi, self.span, strict=True))

    @property
    def device(self) -> torch.device:
        return self.weight.device

    @property
    def is_meta(self) -> bool:
        return self.weight.is_meta

    @property
    def kernel(self) -> Tensor:
        """The kernel with its gain, ``(O, I/groups, *k)``, in the map's dtype."""
        return self.rows(slice(None))

    def rows(self, index: slice) -> Tensor:
        """Return some output rows of the kernel, ``(rows, I/groups, *k)``."""
        weight = self.weight if index == slice(None) else self.weight[index]
        if self.gain is None or weight.is_meta:
            return weight.to(self.dtype)
        if weight.dtype != self.dtype != self.gain.dtype:
            weight = weight.to(self.dtype)
        return weight * self.gain[index].reshape(-1, *(1,) * (weight.dim() - 1))

    @property
    def pads(self) -> bool:
        """Whether the map reads beyond the edges of its input."""
        return any(v > 0 for v in self.lo + self.hi)

    @property
    def pointwise(self) -> bool:
        """Whether each output point depends on the input point at the same place only."""
        one = (1,) * self.ndim
        return self.kernel_size == self.stride == self.input_dilation == one and not any(self.lo + self.hi)

    @property
    def depthwise(self) -> bool:
        """Whether each output channel depends on the input channel of the same number only."""
        return self.groups == self.out_channels == self.in_channels

    @property
    def diagonal(self) -> bool:
        """Whether the map only scales and shifts each channel."""
        return self.pointwise and self.depthwise

    @property
    def is_identity(self) -> bool:
        """Whether this is the map of ``identity``; known by its origin, never by values."""
        plain = self.diagonal and self.bias is None and self.gain is None
        return plain and not self.is_meta and _IDENTITY in vars(self.weight)

    def output_size(self, grid: Iterable[int]) -> tuple[int, ...]:
        """Return the size of the output grid for an input grid."""
        wide = tuple((n - 1) * u + 1 for n, u in zip(grid, self.input_dilation, strict=True))
        return tuple((n + d - 1) // s + 1 for n, d, s in zip(wide, self.size_delta, self.stride, strict=True))

    def macs(self, positions: float = 1.0) -> float:
        """Return the multiply-accumulates for that many output positions (one image)."""
        return self.weight.numel() * positions / prod(self.input_dilation)

    @property
    def numel(self) -> int:
        """Numbers that a layer stores for this map: kernel and bias."""
        return self.weight.numel() + (0 if self.bias is None else self.out_channels)

    def meta(self) -> ConvMap:
        """Return the same map on the meta device."""
        return self if self.weight.is_meta else replace(self, weight=self.weight.to("meta"))

    def to(self, dtype: torch.dtype) -> ConvMap:
        """Return the same map for laws that compute in ``dtype`` at least; the kernel isn't copied."""
        if promoted(self.dtype, dtype) == self.dtype:
            return self
        bias, gain = (None if v is None else v.to(dtype) for v in (self.bias, self.gain))
        return replace(self, bias=bias, gain=gain, dtype=dtype)

    def __call__(self, x: Tensor) -> Tensor:
        """Apply to ``x`` of shape ``(N, I, *grid)`` in the dtype of ``x``; gives ``(N, O, *grid')``."""
        if x.dim() != self.ndim + 2 or x.shape[1] != self.in_channels:
            raise InputError(
                f"`x` must have shape (N, {self.in_channels}) and {self.ndim} grid dimensions, got {tuple(x.shape)}"
            )
        if self.ndim == 0:
            return self._with_an_axis()(x.unsqueeze(-1)).squeeze(-1)
        if max(self.input_dilation) > 1:
            x = _zero_stuffed(x, self.input_dilation)
        x = _continued(x, [max(v, 0) for v in self.lo], [max(v, 0) for v in self.hi], self.padding_mode)
        x = _continued(x, [min(v, 0) for v in self.lo], [min(v, 0) for v in self.hi], "zeros")
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return convolve(x, self.kernel.to(x.dtype), bias, self.stride, self.dilation, self.groups)

    def _with_an_axis(self) -> ConvMap:
        weight = self.weight.unsqueeze(-1)
        return replace(self, weight=weight, stride=(1,), dilation=(1,), lo=(0,), hi=(0,), input_dilation=(1,))

    def __repr__(self) -> str:
        kernel = "x".join(map(str, self.kernel_size)) or "matrix"
        return f"ConvMap({self.in_channels}→{self.out_channels}, {kernel}, stride {self.stride}, groups {self.groups})"


ConvMap.__init__ = renamed_arguments(  # type: ignore[method-assign]
    up="input_dilation", border="padding_mode"
)(ConvMap.__init__)


def marked_identity(weight: Tensor) -> Tensor:
    """Mark a kernel as that of ``identity``; no other kernel counts as one, whatever its values are at the moment."""
    vars(weight)[_IDENTITY] = True
    return weight


_IDENTITY = "unbranch_identity"


def on_grid(place: Iterable[int | slice]) -> tuple[Any, ...]:
    """Return the index of a place on the grid, for tensors with any dimensions before the grid."""
    return (..., *place)


def _zero_stuffed(x: Tensor, step: tuple[int, ...]) -> Tensor:
    wide = x.new_zeros(*x.shape[:2], *((s - 1) * u + 1 for s, u in zip(x.shape[2:], step, strict=True)))
    wide[on_grid(slice(None, None, u) for u in step)] = x
    return wide


def _continued(x: Tensor, lo: list[int], hi: list[int], mode: str) -> Tensor:
    amounts = last_axis_first(zip(lo, hi, strict=True))
    if not any(amounts):
        return x
    return F.pad(x, amounts, "constant" if mode == "zeros" else mode)
