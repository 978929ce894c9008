"""Which channels go: ResRep's choice among all layers at once.

Ding et al., "ResRep: Lossless CNN Pruning via Decoupling Remembering and Forgetting", ICCV 2021,
https://arxiv.org/abs/2007.03260, section 3.3, and its published code for what the paper leaves open.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unbranch.errors import InputError


@dataclass(frozen=True)
class Limits:
    """What a choice has to respect.

    Args:
        granularity: channels that go in one round, until the budget is met.
        minimum: channels that each unit keeps: a number of them, or a fraction of all that it has.
        multiple: kept channels of each unit are rounded up to a multiple of this, as far as there are so many.
    """

    granularity: int = 4
    minimum: int | float = 1
    multiple: int = 1

    def __post_init__(self) -> None:
        fraction = type(self.minimum) is float
        if fraction and not 0 < self.minimum <= 1:
            raise InputError(f"minimum is a whole number from 1, or a fraction above 0 and up to 1; got {self.minimum}")
        for name, value in vars(self).items():
            if not (name == "minimum" and fraction) and (type(value) is not int or value < 1):
                raise InputError(f"{name} is a whole number from 1; got {value!r}")

    def least(self, full: int) -> int:
        """How many of ``full`` channels stay in any case."""
        return math.ceil(self.minimum * full) if isinstance(self.minimum, float) else min(self.minimum, full)

    def kept(self, width: int, full: int) -> int:
        """How many of ``full`` channels stay where ``width`` would do."""
        width = max(width, self.least(full))
        return min(full, -(-width // self.multiple) * self.multiple)


def select_masks(
    norms: Sequence[Tensor], masks: Sequence[Tensor], cost: Callable[[Sequence[int]], float], budget: float,
    limits: Limits,
) -> list[Tensor]:  # fmt: skip
    """The masks of the next round, 1 for channels that stay.

    All channels start as kept and go in the order of their norms, the smallest first and those of earlier units
    first among equals, until the cost is within the budget or one step more of channels than now is gone. A unit
    that loses none keeps its mask as it is, as in the published code. So a channel that has grown comes back.

    Args:
        norms: by unit, of each channel, ``(C,)``.
        masks: by unit, of the round before.
        cost: of the network by widths of the units.
        budget: greatest cost that is wanted.
    """
    full = [len(norm) for norm in norms]
    now = [int(mask.sum()) for mask in masks]
    gone = sum(full) - sum(now)
    limit = gone + limits.granularity if cost(now) > budget else sum(full)
    owners = torch.cat([torch.full((size,), unit) for unit, size in enumerate(full)]).tolist()
    places = torch.cat([torch.arange(size) for size in full]).tolist()
    order = torch.cat([norm.detach().double().cpu() for norm in norms]).argsort(stable=True).tolist()
    widths, off = list(full), [[] for _ in full]  # type: list[int], list[list[int]]
    position = 0
    for channel in order:
        if cost([limits.kept(width, size) for width, size in zip(widths, full, strict=True)]) <= budget:
            break
        unit = owners[channel]
        least = limits.least(full[unit])
        if widths[unit] <= least:
            position += least == 1  # counted there in the published code; where layers keep more, nothing would go on
            continue
        widths[unit] -= 1
        off[unit].append(places[channel])
        position += 1
        if position >= limit:
            break
    found = []
    for old, chosen, size in zip(masks, off, full, strict=True):
        mask = torch.ones_like(old)
        # the largest of those that go come back for the multiple
        mask[chosen[: size - limits.kept(size - len(chosen), size)]] = 0
        found.append(mask if chosen else old.clone())
    return found


def keep_rows(norms: Tensor, threshold: float, limits: Limits) -> Tensor:
    """Which channels ``(C,)`` a conversion keeps: those not below the threshold, and the largest where more are needed.

    >>> keep_rows(torch.tensor([1e-6, 1.0, 1e-7, 1e-8]), 1e-5, Limits(multiple=2))
    tensor([ True,  True, False, False])
    """
    wanted = limits.kept(int((norms >= threshold).sum()), len(norms))
    keep = torch.zeros(len(norms), dtype=torch.bool)
    keep[norms.detach().double().cpu().argsort(descending=True, stable=True)[:wanted]] = True
    return keep
