"""The kernel of an online block as a differentiable function of the parameters of its branches.

Each branch is first turned into a list of steps, which depend on attributes of its layers only. One function then
computes the kernel from steps and parameters, so that a traced graph of the block has one node for it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from functools import lru_cache, partial, singledispatch
from typing import Any, TypeAlias, cast

import torch
from torch import Tensor, nn

from unbranch.algebra import ConvMap, average_pool, compose, convolution, identity, pad, scale_shift
from unbranch.algebra.frame import Frame
from unbranch.blocks.layers import BorderBatchNorm, FixedDepthwise, IdentityConv, Scale
from unbranch.blocks.parts import DilatedAvgPool
from unbranch.blocks.spec import ConvSpec
from unbranch.errors import InexactError, InputError
from unbranch.grids import (
    AVG_POOL_LAYERS,
    CONV_LAYERS,
    PAD_LAYERS,
    Ints,
    as_tuple,
    first_axis_first,
    ndim_of,
    padding_amounts,
)
from unbranch.large_kernels import LargeConv2d

Step: TypeAlias = tuple[Any, ...]
"""``(kind, number of tensors, *geometry)`` of a layer."""


def online_kernel(branches: dict[str, nn.Module], spec: ConvSpec, like: Tensor) -> Tensor:
    """Return the kernel ``(O, I/groups, *k)`` of the convolution ``spec`` that computes the sum of branches.

    Args:
        branches: sequences of convolutions, scales, average pools and zero padding.
        spec: the convolution that the block replaces.
        like: gives dtype and device for branches without weights.

    Raises:
        InputError: if a branch has a layer of another kind, or isn't part of such a convolution.
    """
    tensors: list[Tensor] = [like]
    steps: list[tuple[str, tuple[Step, ...]]] = []
    for name, branch in branches.items():
        found = []
        try:
            read = [step for layer in _layers_of(branch) for step in _steps(layer)]
        except InputError as error:
            raise InputError(f"branch {name!r} can't be trained online: {error}") from error
        for step, *parts in read:
            found.append(step)
            tensors += parts
        steps.append((name, tuple(found)))
    whole = (spec.in_channels, spec.out_channels, spec.kernel, spec.stride, spec.padding, spec.dilation, spec.groups)
    return cast(Tensor, torch.ops.unbranch.online_kernel(tensors, repr((tuple(steps), whole))))


def _layers_of(branch: nn.Module) -> Iterator[nn.Module]:
    """Yield the layers of nested sequences in order, and layers of the user's own as they are."""
    if type(branch) is not nn.Sequential:
        yield branch
        return
    _check_hooks(branch)
    for layer in branch:
        yield from _layers_of(layer)


def _check_hooks(layer: nn.Module) -> None:
    """Refuse hooks of the user's: no layer of an online block runs, so they would never be called.

    Raises:
        InputError: if there are any.
    """
    found = (layer._forward_pre_hooks, layer._forward_hooks, layer._backward_pre_hooks, layer._backward_hooks)
    for hook in (hook for hooks in found for hook in hooks.values()):
        function = hook.func if isinstance(hook, partial) else hook
        if not str(getattr(function, "__module__", "")).startswith("unbranch."):
            raise InputError(
                f"a {type(layer).__name__} has a hook, which an online block never calls: use parametrizations, or "
                "make the block with online=False"
            )


# --- from layers to steps ----------------------------------------------------------------------------

_Steps: TypeAlias = Iterable[tuple[Any, ...]]


def _steps(layer: nn.Module) -> _Steps:
    """Return the steps of a layer of exactly a known class: a subclass may compute something else.

    Raises:
        InputError: for any other layer.
    """
    _check_hooks(layer)
    known = _steps_of.registry.get(type(layer), _steps_of.registry[object])
    return known(layer)


@singledispatch
def _steps_of(layer: Any) -> _Steps:
    """Return the steps of a layer, each followed by its tensors."""
    if type(layer) in (*CONV_LAYERS.values(), LargeConv2d):
        if layer.bias is not None or layer.padding_mode != "zeros":
            raise InputError(f"a {type(layer).__name__} must have no bias, and zero padding")
        before, after = padding_amounts(layer.padding, layer.dilation, layer.kernel_size)
        around: _Steps = [] if before == after else [(("pad", 0, tuple(zip(before, after, strict=True))),)]
        own = before if before == after else (0,) * len(before)
        return [*around, (("conv", 1, layer.stride, own, layer.dilation, layer.groups), layer.weight)]
    if type(layer) is nn.Identity:
        return []
    if type(layer) in PAD_LAYERS["zeros"].values():
        return [(("pad", 0, first_axis_first(layer.padding)),)]
    if type(layer) in AVG_POOL_LAYERS.values():
        return [(_average(layer),)]
    raise InputError(f"a {type(layer).__name__} has no kernel")


@_steps_of.register
def _(layer: Scale) -> _Steps:
    return [(("scale", 1), layer.weight)]


@_steps_of.register
def _(layer: BorderBatchNorm) -> _Steps:
    return [*_steps(layer.bn), (("pad", 0, first_axis_first(layer.border)),)]


@_steps_of.register
def _(layer: IdentityConv) -> _Steps:
    one: Ints = (1,) * layer.ndim
    return [(("conv", 1, one, (0,) * layer.ndim, one, layer.groups), layer.kernel())]


@_steps_of.register
def _(layer: FixedDepthwise) -> _Steps:
    return [(("conv", 1, layer.stride, layer.padding, layer.dilation, layer.channels), layer.weight)]


@_steps_of.register
def _(layer: DilatedAvgPool) -> _Steps:
    return [(("average", 0, layer.kernel, layer.stride, (0,) * len(layer.kernel), layer.dilation),)]


def _average(pool: Any) -> Step:
    sizes = (pool.kernel_size, pool.stride, pool.padding)
    plain = not pool.ceil_mode and (pool.count_include_pad or not any(as_tuple(pool.padding, 1)))
    if not plain or getattr(pool, "divisor_override", None) is not None:
        raise InputError(f"a {type(pool).__name__} must have the same divisor everywhere")
    ndim = cast(int, ndim_of(pool, AVG_POOL_LAYERS))
    return ("average", 0, *(as_tuple(size, ndim) for size in sizes), (1,) * ndim)


# --- from steps to the kernel ------------------------------------------------------------------------


def _merged_kernel(tensors: list[Tensor], plan: str) -> Tensor:
    """Return the kernel of a sum of branches.

    Args:
        tensors: one for dtype and device, then those of all steps in order.
        plan: ``repr`` of name and steps of each branch, and of ``(in_channels, out_channels, kernel_size, stride,
            padding, dilation, groups)`` of the convolution.

    Raises:
        InputError: if a branch isn't part of such a convolution.
    """
    branches, whole = _parsed(plan)
    like, *rest = tensors
    left = iter(rest)
    inputs, outputs, size, stride, padding, dilation, groups = whole
    frame = Frame(padding, dilation, size, groups)
    maps = []
    for name, steps in branches:
        try:
            m = _folded(steps, left, inputs, len(size), like)
            _check_fit(m, frame, outputs, stride, name)
        except InexactError as error:
            raise InputError(f"branch {name!r} can't be trained online: {error}") from error
        maps.append(m)
    kernel = frame.filled(maps)
    return kernel.clone() if any(kernel is tensor for tensor in tensors) else kernel


# An operator of PyTorch's: one node in graphs of torch.fx and torch.compile, made of others for everything behind.
_LIBRARY = torch.library.Library("unbranch", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define("online_kernel(Tensor[] tensors, str plan) -> Tensor")  # type: ignore[no-untyped-call]
_LIBRARY.impl("online_kernel", _merged_kernel, "CompositeImplicitAutograd")  # type: ignore[no-untyped-call]


@lru_cache(maxsize=1024)
def _parsed(plan: str) -> tuple[Any, Any]:
    branches, whole = ast.literal_eval(plan)
    return branches, whole


def _folded(steps: tuple[Step, ...], tensors: Iterator[Tensor], channels: int, ndim: int, like: Tensor) -> ConvMap:
    """Return the composition of the maps of the steps."""
    m: ConvMap = identity(channels, ndim, device=like.device, dtype=like.dtype)
    for j, (kind, count, *geometry) in enumerate(steps):
        own = [next(tensors) for _ in range(count)]
        if kind == "pad":
            lo, hi = zip(*geometry[0], strict=True)
            m = pad(m, lo, hi)
        elif kind == "scale":
            m = scale_shift(m, own[0])
        else:
            m = _then(m, _layer(kind, own, geometry, m), first=j == 0)
    return m


def _layer(kind: str, tensors: list[Tensor], geometry: list[Any], m: ConvMap) -> ConvMap:
    if kind == "conv":
        stride, padding, dilation, groups = geometry
        return convolution(tensors[0], None, stride, padding, dilation, groups)
    size, stride, padding, dilation = geometry
    return average_pool(m.out_channels, size, stride, padding, dilation=dilation, device=m.device, dtype=m.dtype)


def _then(m: ConvMap, outer: ConvMap, *, first: bool) -> ConvMap:
    """Return ``outer(m)``, or ``outer`` itself if ``m`` is the identity."""
    return outer if first and outer.in_channels == m.out_channels else compose(outer, m)


def _check_fit(m: ConvMap, frame: Frame, outputs: int, stride: Ints, name: str) -> None:
    """Check that a branch is part of the full convolution.

    Raises:
        InputError: if its channels, strides, groups or padding differ, or it has taps outside the full kernel.
    """
    low = [(a - b) / d for a, b, d in zip(frame.lo, m.lo, frame.dilation, strict=True)]  # of the first tap, in taps
    high = [at + s / d for at, s, d in zip(low, m.span, frame.dilation, strict=True)]
    inside = all(at >= 0 and end < k for at, end, k in zip(low, high, frame.kernel_size, strict=True))
    on_lattice = all(v == int(v) for v in (*low, *high)) and all(
        k == 1 or not d % e for k, d, e in zip(m.kernel_size, m.dilation, frame.dilation, strict=True)
    )
    span = [d * (k - 1) for d, k in zip(frame.dilation, frame.kernel_size, strict=True)]
    sized = all(2 * a - r == d for a, r, d in zip(frame.lo, span, m.size_delta, strict=True))
    alike = m.out_channels == outputs and m.stride == stride and not m.groups % frame.groups and m.bias is None
    if not (inside and on_lattice and sized and alike):
        whole = f"{outputs} channels, kernel {frame.kernel_size}, stride {stride}, padding {frame.lo}"
        raise InputError(
            f"branch {name!r} can't be trained online: it must be a part of a convolution with {whole}, dilation "
            f"{frame.dilation} and {frame.groups} groups, got {m.out_channels} channels, kernel {m.kernel_size}, "
            f"stride {m.stride}, padding {m.lo}, dilation {m.dilation} and {m.groups} groups"
        )
