"""Try whether channels can be removed, before anything is trained: zeroed and removed must be the same function."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from unbranch.convert import verify
from unbranch.errors import UnbranchError
from unbranch.prune.dependencies import Dependencies
from unbranch.prune.removal import random_like, remove_channels, zero_channels
from unbranch.prune.units import PruningUnit

NOT_CONSTANT = (
    "what its channels become when they are zero isn't constant, or not zero where a layer pads with zeros, and no "
    "compactor after a depthwise convolution is included that makes it so"
)


def try_units(
    plain: nn.Module, inputs: tuple[Any, ...], units: list[PruningUnit], seed: int, strict: bool
) -> tuple[tuple[PruningUnit, ...], list[tuple[PruningUnit, str]]]:
    """Return the units of which half of the channels can be removed, all at once, and the others with the reason.

    Args:
        plain: collapsed network; it isn't changed.
        inputs: arguments of its forward.
        units: candidates.
        seed: of the random halves.
        strict: refuse a unit with a channel that must be kept as zeros.
    """
    generator = torch.Generator().manual_seed(seed)
    parts_of: Counter[str] = Counter()
    halves: dict[int, Tensor] = {}
    for unit in units:
        parts_of[unit.layer] += 1  # parts of a layer lose different numbers, in case they must stay equally wide
        many = max(1, len(unit) // (1 + parts_of[unit.layer]))
        halves[id(unit)] = torch.randperm(len(unit), generator=generator)[:many].sort().values
    refused: list[tuple[PruningUnit, str]] = []

    def trial(some: list[PruningUnit]) -> tuple[str | None, dict[str, list[int]]]:
        chosen = [(u.layer, u.channels[halves[id(u)]].tolist()) for u in some]
        return _removal_error(plain, inputs, chosen, depthwise_layers(some))

    def sift(some: list[PruningUnit]) -> list[PruningUnit]:
        """Return those that pass together; where all together fail, try the halves, then their union."""
        reason, kept = trial(some) if some else (None, {})
        if reason is None:
            failed = [u for u in some if strict and set(kept.get(u.layer, ())).intersection(u.channels[:, 0].tolist())]
            refused.extend((unit, NOT_CONSTANT) for unit in failed)
            return [unit for unit in some if unit not in failed]
        if len(some) == 1:
            refused.append((some[0], reason))
            return []
        passed, others = sift(some[: len(some) // 2]), sift(some[len(some) // 2 :])
        if not passed or not others or trial([*passed, *others])[0] is None:
            return [*passed, *others]
        for unit in others:
            reason, _ = trial([*passed, unit])
            if reason is None:
                passed.append(unit)
            else:
                refused.append((unit, reason))
        return passed

    return tuple(sift(units)), refused


def depthwise_layers(units: Iterable[PruningUnit]) -> set[str]:
    """Return the paths of the depthwise convolutions whose compactors belong to these units."""
    return {layer for unit in units for _, layer in unit.depthwise}


@torch.no_grad()
def _removal_error(
    plain: nn.Module, inputs: tuple[Any, ...], chosen: list[tuple[str, list[list[int]]]], depthwise: Collection[str]
) -> tuple[str | None, dict[str, list[int]]]:
    """Return why zeroed channels can't be removed from a copy, None if they can; and those that must be kept."""
    narrow, zeroed = copy.deepcopy(plain), copy.deepcopy(plain)
    try:
        dependencies = Dependencies(narrow, inputs)
        for path, channels in chosen:
            members = dependencies.members(narrow.get_submodule(path), [c for part in channels for c in part])
            zero_channels(zeroed, dependencies, members, depthwise)
        kept = remove_channels(dependencies, inputs, chosen, depthwise)
        check = max((verify(zeroed, narrow, x) for x in (inputs, random_like(inputs, seed=3))), key=lambda c: c.max_rel)
    except (UnbranchError, RuntimeError, AssertionError, ValueError, IndexError, TypeError) as error:
        return f"its channels can't be removed: {error}", {}
    reason = None if check.within_noise else f"without some of its channels the network differs by {check.max_rel:.0e}"
    return reason, kept
