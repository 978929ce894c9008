"""What can be pruned of a network with compactors, found on its collapsed form and tried before it is believed."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unbranch.blocks import Compactor
from unbranch.convert import collapse, verify
from unbranch.errors import InputError, UnbranchError
from unbranch.graph.outside import kept_outside
from unbranch.prune.dependencies import Dependencies
from unbranch.prune.reader import Reader
from unbranch.prune.removal import random_like, remove_channels, silence
from unbranch.prune.units import LayerCost, Unit

STAYS = (
    "what its channels become when they are zero isn't constant, or not zero where a layer pads with zeros, and no "
    "compactor behind a depthwise convolution is included that helps"
)


@dataclass(frozen=True, eq=False)
class Structure:
    """A network with compactors as pruning sees it.

    Args:
        plain: the collapsed network, in evaluation.
        inputs: arguments of the forward on which it was read.
        units: what can be pruned, in the order in which the network computes them.
        left: compactors of which nothing can be pruned, with the reason.
        layers: its convolutions and linear layers.
        other_params: numbers in everything else.
    """

    plain: nn.Module
    inputs: tuple[Any, ...]
    units: tuple[Unit, ...]
    left: dict[str, str]
    layers: tuple[LayerCost, ...]
    other_params: int

    @property
    def full(self) -> list[int]:
        """Widths of all units before pruning."""
        return [len(unit) for unit in self.units]

    def macs(self, widths: Sequence[int]) -> int:
        """Multiply-accumulates of convolutions and linear layers for one example, as the papers count them."""
        return sum(layer.macs(widths) for layer in self.layers)

    def params(self, widths: Sequence[int]) -> int:
        """Parameters of the collapsed network."""
        return self.other_params + sum(layer.params(widths) for layer in self.layers)


def structure_of(
    network: nn.Module, inputs: tuple[Any, ...], seed: int = 0, *, untrained: bool = False
) -> Structure:  # fmt: skip
    """Read a network with compactors; it isn't changed.

    Each unit has been tried: with a random half of its channels zero and taken out, the network was the same function.

    Args:
        untrained: try it as it may be later, with random biases and such, which may be zero now; a unit of which a
            channel would have to stay then is left alone.

    Raises:
        InputError: if it has no compactor or can't be read.
    """
    paths = [path for path, module in network.named_modules() if isinstance(module, Compactor)]
    if not paths:
        raise InputError(f"{type(network).__name__} has no compactors: unbranch.prune.attach puts them in")
    with kept_outside(network):
        return _structure_of(network, inputs, paths, seed, untrained)


def _structure_of(
    network: nn.Module, inputs: tuple[Any, ...], paths: list[str], seed: int, untrained: bool
) -> Structure:  # fmt: skip
    plain = collapse(network, inputs).eval()
    reader = Reader(plain, inputs, paths)
    possible, left = reader.units()
    trial = _as_if_trained(plain, seed) if untrained else plain
    units, refused = _tried(trial, inputs, possible, seed, strict=untrained)
    for unit, reason in refused:
        for path, _ in unit.rows:
            left.setdefault(path, reason)
    pruned = {path for unit in units for path, _ in unit.rows}
    left = {path: reason for path, reason in left.items() if path not in pruned}
    layers = reader.costs(units)
    counted = {layer.path for layer in layers}
    weights = sum(sum(p.numel() for p in plain.get_submodule(path).parameters()) for path in counted)
    others = sum(p.numel() for p in plain.parameters()) - weights
    return Structure(plain, inputs, units, left, layers, others)


@torch.no_grad()
def _as_if_trained(plain: nn.Module, seed: int) -> nn.Module:
    """A copy with random numbers for what is zero in the beginning, and would hide something.

    That is so for biases, whatever they are called, running means, and the kernels of norms that start with zeros.
    """
    result = copy.deepcopy(plain)
    generator = torch.Generator().manual_seed(seed)
    named = {**dict(result.named_parameters()), **dict(result.named_buffers())}
    for name, tensor in named.items():
        last = name.rpartition(".")[2]
        numbers = torch.randn(tensor.shape, generator=generator).to(tensor)
        if last == "running_mean" or (tensor.dim() == 1 and last != "weight" and isinstance(tensor, nn.Parameter)):
            tensor.copy_(numbers)
        elif last == "weight" and tensor.dim() > 0:
            silent = ~tensor.reshape(len(tensor), -1).any(1)
            tensor[silent] = numbers[silent] / tensor[0].numel() ** 0.5
    return result


def _tried(
    plain: nn.Module, inputs: tuple[Any, ...], units: list[Unit], seed: int, strict: bool
) -> tuple[tuple[Unit, ...], list[tuple[Unit, str]]]:
    """Units of which half the channels can be taken out, all at once, and others with the reason.

    A channel that has to stay as zeros is as good as taken out unless it is ``strict``.
    """
    generator = torch.Generator().manual_seed(seed)
    parts_of: Counter[str] = Counter()
    halves: dict[int, Tensor] = {}
    for unit in units:
        parts_of[unit.layer] += 1  # parts of a layer lose unlike numbers, lest they have to be equal
        many = max(1, len(unit) // (1 + parts_of[unit.layer]))
        halves[id(unit)] = torch.randperm(len(unit), generator=generator)[:many].sort().values
    refused: list[tuple[Unit, str]] = []

    def trial(some: list[Unit]) -> tuple[str | None, dict[str, list[int]]]:
        chosen = [(u.layer, u.channels[halves[id(u)]].tolist()) for u in some]
        return _without(plain, inputs, chosen, along_of(some))

    def sifted(some: list[Unit]) -> list[Unit]:
        """Those that pass together, the others refused; where all together fail, halves are tried, then their sum."""
        reason, stayed = trial(some) if some else (None, {})
        if reason is None:
            staying = [
                u for u in some if strict and set(stayed.get(u.layer, ())).intersection(u.channels[:, 0].tolist())
            ]
            refused.extend((unit, STAYS) for unit in staying)
            return [unit for unit in some if unit not in staying]
        if len(some) == 1:
            refused.append((some[0], reason))
            return []
        passed, others = sifted(some[: len(some) // 2]), sifted(some[len(some) // 2 :])
        if not passed or not others or trial([*passed, *others])[0] is None:
            return [*passed, *others]
        for unit in others:
            reason, _ = trial([*passed, unit])
            if reason is None:
                passed.append(unit)
            else:
                refused.append((unit, reason))
        return passed

    return tuple(sifted(units)), refused


def along_of(units: Iterable[Unit]) -> set[str]:
    """Paths of the depthwise convolutions whose compactors belong to these."""
    return {layer for unit in units for _, layer in unit.along}


@torch.no_grad()
def _without(
    plain: nn.Module, inputs: tuple[Any, ...], chosen: list[tuple[str, list[list[int]]]], along: Collection[str]
) -> tuple[str | None, dict[str, list[int]]]:
    """Why channels, set to zero, can't be taken out of a copy, None if they can; and those that had to stay."""
    narrow, zeroed = copy.deepcopy(plain), copy.deepcopy(plain)
    try:
        dependencies = Dependencies(narrow, inputs)
        for path, channels in chosen:
            members = dependencies.members(narrow.get_submodule(path), [c for part in channels for c in part])
            silence(zeroed, dependencies, members, along)
        stayed = remove_channels(dependencies, inputs, chosen, along)
        check = max((verify(zeroed, narrow, x) for x in (inputs, random_like(inputs, seed=3))), key=lambda c: c.max_rel)
    except (UnbranchError, RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        return f"its channels can't be taken out: {error}", {}
    reason = None if check.within_noise else f"without some of its channels the network differs by {check.max_rel:.0e}"
    return reason, stayed
