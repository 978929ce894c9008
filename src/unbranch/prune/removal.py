"""Remove constant channels from a plain network without changing its function.

A channel whose kernel is zero is constant, and so is the output of a depthwise convolution, a norm or an activation on
it. A consumer adds the same to its outputs at every position: that goes into its bias, unless it pads with zeros, in
which case it adds less at the border.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from unbranch.graph.float64 import Float64
from unbranch.prune.dependencies import Dependencies, Member

FLAT = 1e-12  # of the largest magnitude: constant up to rounding in float64


@torch.no_grad()
def remove_channels(
    dependencies: Dependencies, inputs: tuple[Any, ...], chosen: Iterable[tuple[str, Sequence[Sequence[int]]]],
    depthwise: Collection[str] = (),
) -> dict[str, list[int]]:  # fmt: skip
    """Set output channels of convolutions to zero and remove them, with all that depends on them.

    Args:
        dependencies: of the plain network, which is changed.
        inputs: arguments of its forward.
        chosen: paths of convolutions, and which of their channels, in parts that are removed together or not at all.
            No two of the convolutions are added to the same channels. A path may occur several times.
        depthwise: paths of depthwise convolutions that are set to zero as well in these channels.

    Returns:
        Channels, by path, that are zero but had to be kept, because their constant isn't 0 where a consumer pads.
    """
    network = dependencies.network
    groups, gates = [], []
    for path, parts in chosen:
        layer = network.get_submodule(path)
        members = dependencies.members(layer, [c for part in parts for c in part]) if parts else []
        gates += [m.module for m in members if m.role == "producer" and dependencies.scales_only(m.module)]
        zero_channels(network, dependencies, members, depthwise)
        groups.append((path, parts, [m for m in members if m.role == "consumer"]))
    consumers = {m.path: m.module for *_, members in groups for m in members}
    constants = _constants(network, inputs, consumers, gates)
    zero_but_kept: dict[str, list[int]] = {}
    removed: dict[str, list[int]] = {}
    for path, parts, members in groups:
        inexact = {root for m in members for root in _inexact(m, constants[m.path])}
        kept = {c for part in parts if inexact.intersection(part) for c in part}
        if kept:
            zero_but_kept[path] = sorted({*zero_but_kept.get(path, ()), *kept})
        removed.setdefault(path, []).extend(c for part in parts for c in part if c not in kept)
        for member in members:
            _fold(member, constants[member.path], kept)
    for path, channels in removed.items():
        if channels:
            dependencies.remove(network.get_submodule(path), sorted(channels))
    return zero_but_kept


def zero_channels(
    network: nn.Module, dependencies: Dependencies, members: Iterable[Member], depthwise: Collection[str]
) -> None:  # fmt: skip
    """Set channels to zero, in this or an equal network, in their producers and in these depthwise convolutions."""
    for member in members:
        produces = member.role == "producer" and not dependencies.scales_only(member.module)
        if produces or member.path in depthwise:
            layer: Any = network.get_submodule(member.path)
            channels = list(member.channels)
            layer.weight[channels] = 0
            if layer.bias is not None:
                layer.bias[channels] = 0


def _constants(
    network: nn.Module, inputs: tuple[Any, ...], consumers: dict[str, nn.Module], gates: Sequence[nn.Module]
) -> dict[str, Tensor]:
    """Return for each consumer, by path, the constant of each input channel, NaN if it isn't constant; in float64.

    Gates, which channels are multiplied with, may be saturated on the given inputs, so they are tried with random
    values of both signs as well.
    """
    lows: dict[str, Tensor] = {}
    highs: dict[str, Tensor] = {}

    def watch(path: str, module: nn.Module) -> Any:
        def hook(_: nn.Module, given: tuple[Any, ...]) -> None:
            x = given[0]
            axis = x.dim() - 1 if isinstance(module, nn.Linear) else 1
            flat = x.movedim(axis, 0).flatten(1).double()
            low, high = flat.amin(1), flat.amax(1)
            lows[path] = torch.minimum(lows[path], low) if path in lows else low
            highs[path] = torch.maximum(highs[path], high) if path in highs else high

        return module.register_forward_pre_hook(hook)

    signs = [0.0]

    def replace(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(output.numel())
        numbers = 0.1 + torch.rand(output.shape, generator=generator, dtype=torch.float64)
        return signs[-1] * numbers.to(output.device) if signs[-1] else output

    handles = [watch(path, module) for path, module in consumers.items()]
    handles += [gate.register_forward_hook(replace) for gate in gates]
    other = random_like(inputs)
    runs = [(inputs, 0.0), (other, 0.0), *((other, sign) for sign in (1.0, -1.0) if gates)]
    try:
        for given, sign in runs:
            signs.append(sign)
            with Float64():
                network(*given)
    finally:
        for handle in handles:
            handle.remove()
    values = {}
    for path, low in lows.items():
        size = torch.maximum(low.abs(), highs[path].abs())
        values[path] = torch.where(highs[path] - low <= FLAT * size, low, torch.nan)
    return values


def random_like(inputs: tuple[Any, ...], seed: int = 1) -> tuple[Any, ...]:
    """Return the inputs with normal random values in place of floating tensors."""
    generator = torch.Generator().manual_seed(seed)

    def other(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return torch.randn(value.shape, generator=generator, dtype=value.dtype).to(value.device)

    return tuple(other(value) for value in inputs)


def _inexact(consumer: Member, constants: Tensor) -> list[int]:
    """Return channels of the convolution that can't be removed before this consumer."""
    values = constants[list(consumer.channels)].cpu()
    pads = isinstance(consumer.module, _ConvNd) and _pads_zeros(consumer.module)
    inexact = values.isnan() | (values != 0) if pads else values.isnan()
    return [root for root, wrong in zip(consumer.roots, inexact.tolist(), strict=True) if wrong]


def _pads_zeros(conv: _ConvNd) -> bool:
    if conv.padding_mode != "zeros" or conv.padding == "valid":
        return False
    return isinstance(conv.padding, str) or any(conv.padding)


def _fold(consumer: Member, constants: Tensor, kept: set[int]) -> None:
    """Add what the removed channels contribute to the bias of a consumer."""
    layer = consumer.module
    pairs = zip(consumer.channels, consumer.roots, strict=True)
    channels = [channel for channel, root in pairs if root not in kept and constants[channel] != 0]
    if not channels:
        return
    weight, groups = layer.weight.detach().double(), getattr(layer, "groups", 1)
    sums = weight.flatten(2).sum(2) if weight.dim() > 2 else weight  # (O, I/groups)
    dense = torch.zeros(len(sums), sums.shape[1] * groups, dtype=sums.dtype, device=sums.device)
    for group, (rows, columns) in enumerate(zip(dense.chunk(groups, 0), sums.chunk(groups, 0), strict=True)):
        rows[:, group * sums.shape[1] : (group + 1) * sums.shape[1]] = columns
    shift = dense[:, channels] @ constants[channels]
    if layer.bias is None:
        layer.bias = nn.Parameter(torch.zeros_like(layer.weight[:, 0].flatten(1)[:, 0]))
        layer.bias.requires_grad_(layer.weight.requires_grad)
    layer.bias.copy_((layer.bias.double() + shift).to(layer.bias.dtype))
