"""Taking channels that are constant out of a plain network, so that what it computes stays the same.

A channel whose kernel is zero is constant, and so is what a depthwise convolution, a norm or an activation makes of
it. Whoever reads it adds the same to all its outputs everywhere: that goes into the bias of the reader, unless the
reader pads with zeros, since then it adds less at the border.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from unbranch.graph.float64 import Float64
from unbranch.prune.dependencies import Dependencies, Member

FLAT = 1e-12  # of the greatest magnitude: constant up to rounding in float64


@torch.no_grad()
def remove_channels(
    dependencies: Dependencies, inputs: tuple[Any, ...], chosen: Iterable[tuple[str, Sequence[Sequence[int]]]],
    along: Collection[str] = (),
) -> dict[str, list[int]]:  # fmt: skip
    """Set output channels of convolutions to zero and take them out, with all that belongs to them.

    Args:
        dependencies: of the plain network, which is changed.
        inputs: arguments of its forward.
        chosen: paths of convolutions, and which of their channels, in parts that go together or not at all; no two
            of the convolutions give to the same channels. A path may come several times.
        along: paths of depthwise convolutions that are set to zero as well in these channels.

    Returns:
        The channels, by path, that had to stay, as zeros: because their constant isn't 0 where a reader pads.
    """
    network = dependencies.network
    groups, gates = [], []
    for path, parts in chosen:
        layer = network.get_submodule(path)
        members = dependencies.members(layer, [c for part in parts for c in part]) if parts else []
        gates += [m.module for m in members if m.role == "gives" and dependencies.scales_only(m.module)]
        silence(network, dependencies, members, along)
        groups.append((path, parts, [m for m in members if m.role == "reads"]))
    readers = {m.path: m.module for *_, reading in groups for m in reading}
    constants = _constants(network, inputs, readers, gates)
    stayed: dict[str, list[int]] = {}
    going: dict[str, list[int]] = {}
    for path, parts, reading in groups:
        inexact = {root for m in reading for root in _inexact(m, constants[m.path])}
        stays = {c for part in parts if inexact.intersection(part) for c in part}
        if stays:
            stayed[path] = sorted({*stayed.get(path, ()), *stays})
        going.setdefault(path, []).extend(c for part in parts for c in part if c not in stays)
        for member in reading:
            _fold(member, constants[member.path], stays)
    for path, channels in going.items():
        if channels:
            dependencies.remove(network.get_submodule(path), sorted(channels))
    return stayed


def silence(
    network: nn.Module, dependencies: Dependencies, members: Iterable[Member], along: Collection[str]
) -> None:  # fmt: skip
    """Make channels zero, in this or a network like it, where layers give them and these depthwise ones pass them."""
    for member in members:
        gives = member.role == "gives" and not dependencies.scales_only(member.module)
        if gives or member.path in along:
            layer: Any = network.get_submodule(member.path)
            channels = list(member.channels)
            layer.weight[channels] = 0
            if layer.bias is not None:
                layer.bias[channels] = 0


def _constants(
    network: nn.Module, inputs: tuple[Any, ...], readers: dict[str, nn.Module], gates: Sequence[nn.Module]
) -> dict[str, Tensor]:
    """By reader, what it reads in each channel if that is everywhere the same, NaN where it isn't; in float64.

    Gates, which channels are multiplied with, may be saturated on the inputs that are at hand, so they are tried with
    numbers of both signs in place of what they compute.
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

    handles = [watch(path, module) for path, module in readers.items()]
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
    """Normal random numbers in place of floating tensors."""
    generator = torch.Generator().manual_seed(seed)

    def other(value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            return value
        return torch.randn(value.shape, generator=generator, dtype=value.dtype).to(value.device)

    return tuple(other(value) for value in inputs)


def _inexact(reader: Member, constants: Tensor) -> list[int]:
    """Channels of the root that a reader can't do without."""
    values = constants[list(reader.channels)].cpu()
    pads = isinstance(reader.module, _ConvNd) and _pads_zeros(reader.module)
    stays = values.isnan() | (values != 0) if pads else values.isnan()
    return [root for root, stay in zip(reader.roots, stays.tolist(), strict=True) if stay]


def _pads_zeros(conv: _ConvNd) -> bool:
    if conv.padding_mode != "zeros" or conv.padding == "valid":
        return False
    return isinstance(conv.padding, str) or any(conv.padding)


def _fold(reader: Member, constants: Tensor, stays: set[int]) -> None:
    """Add what the channels that go contribute to the bias of who reads them."""
    layer = reader.module
    pairs = zip(reader.channels, reader.roots, strict=True)
    channels = [channel for channel, root in pairs if root not in stays and constants[channel] != 0]
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
