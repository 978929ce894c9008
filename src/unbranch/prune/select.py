"""Which channels are pruned: ResRep's choice among all layers at once.

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

_ROUNDING = 1e-9  # 0.07 of 100 is a little more than 7


@dataclass(frozen=True)
class Limits:
    """Limits of a choice.

    Args:
        granularity: channels that are masked in one round, until the budget is met.
        minimum: channels that each unit keeps: a whole number of them, or a fraction below 1 of all that it has.
        multiple: kept channels of each unit are rounded up to a multiple of this, as far as there are so many.
    """

    granularity: int = 4
    minimum: int | float = 1
    multiple: int = 1

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            fraction = name == "minimum" and isinstance(value, float) and 0 < value < 1
            if not fraction and (type(value) is not int or value < 1):
                also = " or a fraction between 0 and 1" if name == "minimum" else ""
                raise InputError(f"`{name}` must be an integer ≥ 1{also}, got {value!r}")

    @property
    def published(self) -> bool:
        """Whether the published code has these limits."""
        return self.minimum == 1 and self.multiple == 1

    def least(self, full: int) -> int:
        """Return how many of ``full`` channels are kept in any case."""
        if isinstance(self.minimum, float):
            return math.ceil(self.minimum * full - _ROUNDING)
        return min(self.minimum, full)

    def kept(self, width: int, full: int) -> int:
        """Return how many of ``full`` channels are kept where ``width`` are needed."""
        width = max(width, self.least(full))
        return min(full, -(-width // self.multiple) * self.multiple)


def select_masks(
    norms: Sequence[Tensor], masks: Sequence[Tensor], cost: Callable[[Sequence[int]], float], budget: float,
    limits: Limits,
) -> list[Tensor]:  # fmt: skip
    """Return the masks of the next round, 1 for channels that are kept.

    All channels start as kept and are masked in the order of their norms, the smallest first and ties in the order of
    the units, until the cost is within the budget or ``granularity`` more channels than now are masked. So a channel
    that has grown comes back. A unit that loses none keeps its mask unchanged, as in the published code.

    With the published limits, channels that are passed over as the last ones of their unit count like masked ones, as
    in the published code; but at least one more than now is masked, since otherwise the choice could stop for good.

    Args:
        norms: by unit, of each channel, ``(C,)``.
        masks: by unit, of the round before.
        cost: of the network by the channels of each unit.
        budget: largest cost that is wanted.
        limits: of the choice.
    """
    full = [len(norm) for norm in norms]
    now = [int(mask.sum()) for mask in masks]
    masked = sum(full) - sum(now)
    wanted = masked + limits.granularity if cost(now) > budget else sum(full)
    owners = torch.cat([torch.full((size,), unit) for unit, size in enumerate(full)]).tolist()
    places = torch.cat([torch.arange(size) for size in full]).tolist()
    order = torch.cat([norm.detach().double().cpu() for norm in norms]).argsort(stable=True).tolist()
    widths, off = list(full), [[] for _ in full]  # type: list[int], list[list[int]]
    for position, channel in enumerate(order, 1):
        kept = [limits.kept(width, size) for width, size in zip(widths, full, strict=True)]
        if cost(kept) <= budget:
            break
        unit = owners[channel]
        if widths[unit] <= limits.least(full[unit]):
            continue
        widths[unit] -= 1
        off[unit].append(places[channel])
        off_now = sum(full) - sum(kept) + kept[unit] - limits.kept(widths[unit], full[unit])
        if off_now >= wanted or (limits.published and position >= wanted and off_now > masked):
            break
    found = []
    for old, chosen, size in zip(masks, off, full, strict=True):
        mask = torch.ones_like(old)
        # for the multiple, the largest of the masked channels come back
        mask[chosen[: size - limits.kept(size - len(chosen), size)]] = 0
        found.append(mask if chosen else old.clone())
    return found


def keep_rows(norms: Tensor, threshold: float, limits: Limits, mask: Tensor | None = None) -> Tensor:
    """Return which channels ``(C,)`` to keep: those not below the threshold, and the largest where more are needed.

    With a ``mask`` ``(C,)``, those for which it is 0 are removed as well, before the others, the smallest first.

    >>> keep_rows(torch.tensor([1e-6, 1.0, 1e-7, 1e-8]), 1e-5, Limits(multiple=2))
    tensor([ True,  True, False, False])
    """
    unmasked = torch.ones_like(norms, dtype=torch.bool) if mask is None else mask.to(norms.device) != 0
    wanted = limits.kept(int(((norms >= threshold) & unmasked).sum()), len(norms))
    keep = torch.zeros(len(norms), dtype=torch.bool)
    order = norms.detach().double().cpu().argsort(descending=True, stable=True)
    order = order[unmasked.cpu()[order].int().argsort(descending=True, stable=True)]
    keep[order[:wanted]] = True
    return keep
