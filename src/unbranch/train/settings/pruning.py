"""What a recipe says of pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unbranch.train.settings.bounds import Count, NotNegative, Part, Rate, Share


@dataclass(frozen=True, kw_only=True)
class Prune:
    """ResRep during the run, see ``unbranch.prune``; the collapsed network is narrower at the end.

    Args:
        target: cost that may be left, as a fraction.
        metric: of cost.
        layers: ``internal`` ones as in the paper, or ``all`` that can be pruned; where the network has no compactors.
        include, exclude: patterns of paths of convolutions and blocks, as well.
        strength: λ of the penalty on the compactors' rows.
        pull: λ for masked rows; unless given, as much as ``strength``, and enough for a row that is masked by a third
            of the run to go by the middle, twice over.
        settle: once the target is met, rows that aren't masked are pulled no more.
        momentum: of the compactors.
        warmup_epochs: before the first channels are masked.
        interval: steps from one choice of masks to the next.
        granularity: channels that a choice masks on top of those before; unless given, so many that all could be masked
            by a third of the run, and at least 4.
        minimum: channels that each layer keeps: a number of them, or a fraction of all that it has.
        multiple: widths are multiples of this; 1 gives the paper's choice.
        threshold: norm of a row below which its channel goes at the end.
        masked: channels that are masked at the end go too, whatever their rows are.
    """

    target: Share = 0.5
    metric: Literal["macs", "params", "latency"] = "macs"
    layers: Literal["internal", "all"] = "internal"
    include: tuple[str, ...] = ("*",)
    exclude: tuple[str, ...] = ()
    strength: NotNegative = 1e-4
    pull: NotNegative | None = None
    settle: bool = False
    momentum: Rate = 0.99
    warmup_epochs: NotNegative = 5.0
    interval: Count = 200
    granularity: Count | None = None
    minimum: Count | Part = 1
    multiple: Count = 8
    threshold: NotNegative = 1e-5
    masked: bool = False
