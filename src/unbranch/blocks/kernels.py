"""The kernel of a branch that only convolves, scales and averages, computed from its parameters alone.

What is computed depends on attributes of the layers and never on values, so that a graph of the block shows it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from math import prod
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unbranch.blocks.layers import BorderBatchNorm, FixedDepthwise, IdentityConv, Scale
from unbranch.blocks.parts import CONVS, PADS, POOLS, DilatedAvgPool, Ints, pairs
from unbranch.blocks.spec import ConvSpec, Frames, centre
from unbranch.errors import InputError


@dataclass(frozen=True, eq=False)
class _Taps:
    """A kernel ``(outputs, inputs/groups, *size)`` and how it goes over the input.

    It is ``weight`` times ``factor`` ``(outputs, 1, *size)``, of which at most one has several taps: multiplied late,
    they keep less for the gradient. ``spread`` is the distance of its taps, ``frames`` the padding around the input,
    ``nothing`` whether it is still the input itself.
    """

    weight: Tensor
    outputs: int
    groups: int
    inputs: int
    size: Ints
    stride: Ints
    spread: Ints
    frames: Frames
    nothing: bool = False
    factor: Tensor | None = None

    @property
    def pointwise(self) -> bool:
        return prod(self.size) == 1

    @property
    def kernel(self) -> Tensor:
        return self.weight if self.factor is None else self.weight * self.factor

    @property
    def diagonal(self) -> bool:
        return self.groups == self.inputs == self.outputs


def branch_kernel(branch: nn.Module, spec: ConvSpec, like: Tensor) -> Tensor:
    """The kernel of a branch in the frame of the whole one, ``(O, I/groups, *k)``.

    ``like`` gives dtype and device where a layer has no weight.

    Raises:
        InputError: if a layer isn't a convolution, a scale, an average or a crop, or doesn't fit into the frame.
    """
    taps = replace(_pointwise(like.new_ones(spec.in_channels), spec.in_channels, spec.ndim), nothing=True)
    for layer in _layers_of(branch):
        if type(layer) in _PADS:
            taps = _padded(taps, pairs(cast(Any, layer).padding))
        else:
            taps = _after(_taps_of(layer, taps, like), taps)
        if isinstance(layer, BorderBatchNorm):
            taps = _padded(taps, pairs(layer.border))
    return _placed(taps, spec)


def _layers_of(branch: nn.Module) -> Iterable[nn.Module]:
    """The layers of nested sequences, in order."""
    for layer in branch if isinstance(branch, nn.Sequential) else (branch,):
        yield from _layers_of(layer) if isinstance(layer, nn.Sequential) else (layer,)


# --- layers ------------------------------------------------------------------------------------------

_PADS = tuple(PADS["zeros"].values())
_CONVS, _POOLS = tuple(CONVS.values()), tuple(POOLS.values())


def _taps_of(layer: nn.Module, before: _Taps, like: Tensor) -> _Taps:
    """What one layer does to what comes before it."""
    channels, ndim, m = before.outputs, len(before.size), cast(Any, layer)
    if isinstance(layer, BorderBatchNorm):
        layer = layer.bn
    if isinstance(layer, Scale):
        return _pointwise(layer.weight, channels, ndim)
    if isinstance(layer, IdentityConv):
        one = _pointwise(like.new_ones(channels), channels, ndim)
        return replace(one, weight=layer.kernel(), outputs=layer.width, groups=layer.groups)
    if type(layer) in _CONVS and m.bias is None and m.padding_mode == "zeros":
        return _Taps(m.weight, m.out_channels, m.groups, m.in_channels, m.kernel_size, m.stride, m.dilation,
                     tuple((p, p) for p in m.padding))  # fmt: skip
    if isinstance(layer, FixedDepthwise):
        return _Taps(m.weight, channels, channels, channels, m.kernel_size, m.stride, m.dilation,
                     tuple((p, p) for p in m.padding))  # fmt: skip
    if type(layer) in _POOLS or isinstance(layer, DilatedAvgPool):
        dilated = isinstance(layer, DilatedAvgPool)
        size, dilation = (m.kernel, m.dilation) if dilated else (m.kernel_size, (1,) * ndim)
        mean = like.new_full((channels, 1, *size), 1 / prod(size))
        frames = tuple((p, p) for p in getattr(layer, "padding", (0,) * ndim))
        return _Taps(mean, channels, channels, channels, size, m.stride, dilation, frames)
    raise InputError(f"a {type(layer).__name__} has no kernel")


def _pointwise(factors: Tensor, channels: int, ndim: int) -> _Taps:
    """A factor for each channel, ``(C,)``."""
    one: Ints = (1,) * ndim
    weight = factors.view(channels, 1, *one)
    return _Taps(weight, channels, channels, channels, one, one, one, ((0, 0),) * ndim)


def _padded(taps: _Taps, frames: Frames) -> _Taps:
    if not any(any(frame) for frame in frames):
        return taps
    if not taps.pointwise or any(s != 1 for s in taps.stride):
        raise InputError("padding behind a kernel of several taps, or behind a stride, has no kernel")
    added = zip(taps.frames, frames, strict=True)
    return replace(taps, frames=tuple((a + c, b + d) for (a, b), (c, d) in added))


def _after(outer: _Taps, inner: _Taps) -> _Taps:
    """One kernel behind the other, of which at most one has several taps.

    Channels are multiplied within groups: nothing dense is made of what isn't.
    """
    inner = _padded(inner, outer.frames)
    if not outer.pointwise and (not inner.pointwise or any(s != 1 for s in inner.stride)):
        raise InputError("of two layers in a row only one may have a kernel of several taps, the last a stride")
    if inner.nothing:
        return replace(outer, frames=inner.frames)
    large = inner if outer.pointwise else outer
    groups = inner.groups if outer.diagonal else outer.groups
    weight, factor = inner.weight, None
    if outer.diagonal:
        factor = outer.kernel if inner.factor is None else inner.factor * outer.kernel
    else:
        if inner.groups % outer.groups:
            inner = _grouped(inner, outer.groups)
        weight = _multiplied(outer, inner).reshape(outer.outputs, inner.inputs // groups, *large.size)
    stride = tuple(a * b for a, b in zip(outer.stride, inner.stride, strict=True))
    return _Taps(
        weight, outer.outputs, groups, inner.inputs, large.size, stride, large.spread, inner.frames, factor=factor
    )  # fmt: skip


def _multiplied(outer: _Taps, inner: _Taps) -> Tensor:
    """The matrix product over channels, ``(g, O/g, r, I/(g·r), taps)``: r groups of ``inner`` for one of ``outer``."""
    groups, nested = outer.groups, inner.groups // outer.groups
    left = outer.kernel.reshape(groups, outer.outputs // groups, nested, inner.outputs // inner.groups, -1)
    right = inner.kernel.reshape(groups, nested, inner.outputs // inner.groups, inner.inputs // inner.groups, -1)
    if outer.pointwise:
        return torch.einsum("gorm,grmit->gorit", left[..., 0], right)
    return torch.einsum("gormt,grmi->gorit", left, right[..., 0])


# --- the frame ---------------------------------------------------------------------------------------


def _grouped(taps: _Taps, groups: int) -> _Taps:
    """The same with fewer groups: zeros between channels that didn't meet."""
    if taps.groups % groups:
        raise InputError(f"{taps.groups} groups are in a branch of a convolution of {groups}")
    nested = taps.groups // groups
    if nested == 1:
        return taps
    weight = taps.kernel.reshape(groups, nested, taps.outputs // taps.groups, 1, taps.inputs // taps.groups, -1)
    places = torch.diag_embed(taps.weight.new_ones(nested)).reshape(1, nested, 1, nested, 1, 1)
    weight = (weight * places).reshape(taps.outputs, taps.inputs // groups, *taps.size)
    return replace(taps, weight=weight, groups=groups, factor=None)


def _placed(taps: _Taps, spec: ConvSpec) -> Tensor:
    """The kernel with zeros around and between its taps, centred in the whole one."""
    steps = [s // d if k > 1 else 1 for s, d, k in zip(taps.spread, spec.dilation, taps.size, strict=True)]
    step = max(steps)
    uneven = any(s % d and k > 1 for s, d, k in zip(taps.spread, spec.dilation, taps.size, strict=True))
    uneven = uneven or any(s != step for s, k in zip(steps, taps.size, strict=True) if k > 1)
    if uneven or spec.frames(taps.size, step) != taps.frames or taps.stride != spec.stride:
        raise InputError(f"a kernel {taps.size} isn't at the centre of kernel {spec.kernel}, with its stride")
    if taps.outputs != spec.out_channels:
        raise InputError(f"a branch has {taps.outputs} channels where the block has {spec.out_channels}")
    weight = _grouped(taps, spec.groups).kernel
    amounts: list[int] = []
    for axis, (short, long) in enumerate(zip(taps.size, spec.kernel, strict=True)):
        weight = _stretched(weight, axis, taps.size, step) if step > 1 else weight
        before = centre(long) - step * centre(short)
        amounts = [before, long - 1 - step * (short - 1) - before, *amounts]
    return F.pad(weight, amounts) if any(amounts) else weight


def _stretched(weight: Tensor, axis: int, size: Ints, step: int) -> Tensor:
    """Zeros between the taps of one axis, the axes before it being stretched already."""
    done = [step * (s - 1) + 1 for s in size[:axis]]
    left = list(size[axis + 1 :])
    spread = F.pad(weight.unsqueeze(axis + 3), [0, 0] * len(left) + [0, step - 1])  # (O, I/g, …, s, step, …)
    joined = spread.flatten(axis + 2, axis + 3)
    return joined[(slice(None),) * (2 + len(done)) + (slice(0, step * (size[axis] - 1) + 1),)]
