"""The laws of affine maps: functions of immutable maps, dispatched on their kind, exact or raising ``InexactError``.

    compose      outer(inner(x))             pad          F.pad of m(x)
    add          Σ mⱼ(x)                     select       m(x)[:, channels]
    concat       torch.cat of mⱼ(x)          reshape      m(x).reshape(N, -1, *grid)
    scale_shift  scale·m(x) + shift

A law raises ``InexactError`` with a reason if its result would differ from the function for some input. Kernels may be
on the meta device; the laws then compute shapes only, which the planner uses. ``conv_laws``, ``conv_compose`` and
``grid_laws`` have the implementations; a sum, concatenation or composition of both kinds of maps is a grid map.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import Any

from torch import Tensor

from unbranch.algebra.affine import AffineMap
from unbranch.errors import InputError


@singledispatch
def compose(outer: AffineMap, inner: AffineMap) -> Any:
    """Return ``outer(inner(x))``: kernels are convolved, strides multiplied, groups coarsened to their gcd.

    Exact if ``outer`` doesn't pad, or if its padding equals ``inner``'s formula there (see ``pad``). Always exact for
    maps on a fixed grid.

    Raises:
        InexactError: for inexact padding, mostly zero padding after a bias; if the channels of the maps don't match.
    """
    raise _unknown(outer)


@singledispatch
def add(first: AffineMap, *others: AffineMap) -> Any:
    """Return the sum of maps of one input; groups are coarsened to their gcd.

    Kernels are aligned at their origin and embedded into the union of their supports. Exact if strides, channels and
    ``size_delta`` agree, so that all give the same size for every input; grid maps need the same grids.

    Raises:
        InexactError: if they don't agree, or if maps that pad have different padding modes.
    """
    raise _unknown(first)


@singledispatch
def concat(first: AffineMap, *others: AffineMap) -> Any:
    """Return the concatenation of maps of one input along the output channels; grouped maps become dense.

    Raises:
        InexactError: as ``add``, but for the output channels.
    """
    raise _unknown(first)


@singledispatch
def scale_shift(m: AffineMap, scale: Tensor | None = None, shift: Tensor | None = None) -> Any:
    """Return ``scale·m(x) + shift``, per output channel, each ``(O,)``. Always exact.

    If only a shift is given and it cancels the map's bias, the result has no bias and can be zero-padded. A shift on
    the meta device is assumed to cancel, as ``pad`` assumes that a value on the meta device equals the bias.
    """
    raise _unknown(m)


@singledispatch
def pad(
    m: AffineMap, lo: Sequence[int], hi: Sequence[int], value: Tensor | None = None, padding_mode: str = "zeros"
) -> Any:
    """Return ``m(x)`` padded by ``lo`` before and ``hi`` after (negative: cropped), as a map of x.

    Exact if the padding equals m's formula beyond its output: for a constant ``value`` ``(O,)`` (default zero), m must
    read only zeros there and have this value as its bias; reflect, replicate and circular padding needs a pointwise
    map. Cropping is always exact.

    Raises:
        InexactError: zero padding after a bias; padding after a kernel that reaches back into the input.
    """
    raise _unknown(m)


@singledispatch
def select(m: AffineMap, channels: Sequence[int]) -> Any:
    """Return some of the output channels, in that order. Always exact.

    A grouped map stays grouped if the same number of channels is selected from each remaining group, in order.

    Raises:
        InputError: if no channel is selected.
    """
    raise _unknown(m)


@singledispatch
def reshape(m: AffineMap, grid: Sequence[int]) -> Any:
    """Return the same numbers as channels on another grid, in memory order. Always exact.

    Raises:
        NotAffineError: for a ``ConvMap``, whose order of numbers depends on the grid's size.
        InexactError: if the numbers don't divide into such grids.
    """
    raise _unknown(m)


def _unknown(m: Any) -> InputError:
    return InputError(f"expected an affine map (ConvMap or GridMap), got {type(m).__name__}")
