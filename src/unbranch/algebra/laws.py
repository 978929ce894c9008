"""The laws of affine maps: each is one function of frozen values, exact or refused, dispatched on the kind of map.

    compose      outer(inner(x))             pad          F.pad of m(x)
    add          Σ mⱼ(x)                     select       m(x)[:, channels]
    concat       torch.cat of mⱼ(x)          reshape      m(x).reshape(N, -1, *grid)
    scale_shift  scale·m(x) + shift

A law that can't be applied without changing the function somewhere raises ``InexactError`` with a reason. Kernels may
be on the meta device: the laws then give shapes, at no cost, and the planner uses them so. ``conv_laws`` and
``grid_laws`` have the implementations; a sum, concatenation or composition of both kinds is one of grid maps.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch
from typing import Any

from torch import Tensor

from unbranch.algebra.affine import AffineMap


@singledispatch
def compose(outer: AffineMap, inner: AffineMap) -> Any:
    """Return ``outer(inner(x))``: kernels are convolved, strides multiplied, groups coarsened to their gcd.

    Exact if ``outer`` pads nothing, or what it pads is what ``inner``'s formula gives there (see ``pad``). Maps on a
    fixed grid have no border, so that theirs is always exact.

    Raises:
        InexactError: mostly zero padding after a bias; maps that don't fit one after the other.
    """
    raise _unknown(outer)


@singledispatch
def add(first: AffineMap, *others: AffineMap) -> Any:
    """Return the sum of maps of one input; groups are coarsened to their gcd.

    Kernels are aligned at their origin and embedded into the union of their supports. Exact if strides, channels and
    ``size_delta`` agree, so that all give the same size for every input; grid maps need the same grids.

    Raises:
        InexactError: if they don't agree, or if they continue the input beyond its edges in different ways.
    """
    raise _unknown(first)


@singledispatch
def concat(first: AffineMap, *others: AffineMap) -> Any:
    """Return the outputs of maps of one input, one after the other along the channels; grouped maps become dense.

    Raises:
        InexactError: as ``add``, but for the output channels.
    """
    raise _unknown(first)


@singledispatch
def scale_shift(m: AffineMap, scale: Tensor | None = None, shift: Tensor | None = None) -> Any:
    """Return ``scale·m(x) + shift``, per output channel, each ``(O,)``. Always exact.

    A shift alone that cancels the map's own bias leaves a map without bias, which may be zero-padded. A shift on the
    meta device is assumed to do so, as ``pad`` assumes that a value there is the bias.
    """
    raise _unknown(m)


@singledispatch
def pad(
    m: AffineMap, lo: Sequence[int], hi: Sequence[int], value: Tensor | None = None, padding_mode: str = "zeros"
) -> Any:
    """Return ``m(x)`` padded by ``lo`` before and ``hi`` after (negative: cropped), as a map of x.

    Exact if what is padded equals what m's formula gives beyond its output: for a constant ``value`` ``(O,)`` (default
    zero) m must see only zeros there and have that value as its bias; reflect, replicate and circular padding needs a
    pointwise map. Cropping is always exact.

    Raises:
        InexactError: zero padding after a bias; padding after a kernel that reaches back into the input.
    """
    raise _unknown(m)


@singledispatch
def select(m: AffineMap, channels: Sequence[int]) -> Any:
    """Return some of the output channels, in that order. Always exact.

    A grouped map stays grouped where every group that remains keeps equally many channels, in order.

    Raises:
        InputError: if no channel is selected.
    """
    raise _unknown(m)


@singledispatch
def reshape(m: AffineMap, grid: Sequence[int]) -> Any:
    """Return the same numbers seen as channels on another grid, in the order of their memory. Always exact.

    Raises:
        NotAffineError: for a map on grids of any size, whose numbers have no fixed order.
        InexactError: if the numbers don't divide into such grids.
    """
    raise _unknown(m)


def _unknown(m: Any) -> TypeError:
    return TypeError(f"expected an affine map (ConvMap or GridMap), got {type(m).__name__}")
