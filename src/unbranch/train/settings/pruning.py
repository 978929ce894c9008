"""Settings of pruning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from unbranch.train.settings.bounds import Count, Flag, Many, NotNegative, Part, Rate, Share, Text


@dataclass(frozen=True, kw_only=True)
class Prune:
    """ResRep during the run, see ``unbranch.prune``; the collapsed network has fewer channels.

    Args:
        target: largest cost after pruning, as a fraction of the cost before.
        metric: of the cost.
        runtime: in which ``metric: latency`` is measured: a target of ``unbranch.deploy.TARGETS``; ``torch`` unless
            given.
        layers: prune ``internal`` layers as in the paper, or ``all`` that can be pruned, if the network has no
            compactors.
        include, exclude: patterns of paths of convolutions and blocks to prune, and not to prune.
        strength: λ of the penalty on the compactors' rows.
        masked_strength: λ for masked rows; unless given, ``strength``, or as much as brings a row that is masked in
            the first third of the run to zero by the middle of the run, twice over.
        stop_when_met: once the target is met, stop penalising rows that aren't masked.
        momentum: of the compactors.
        warmup_epochs: before the first channels are masked.
        interval: steps between two choices of masks.
        granularity: channels that each choice masks in addition; unless given, at least 4 and enough to mask all
            channels in the first third of the run.
        minimum: channels that each layer keeps: a number of them, or a fraction of all its channels.
        multiple: round widths up to a multiple of this; 1 is the paper's choice. Unless given, 8, or the measured step
            of the runtime with ``metric: latency``.
        threshold: norm of a row below which its channel is removed at the end.
        masked: remove channels that are masked at the end, regardless of the norms of their rows.
    """

    target: Share = 0.5
    metric: Literal["macs", "params", "latency"] = "macs"
    runtime: Text | None = None
    layers: Literal["internal", "all"] = "internal"
    include: Many[Text] = ("*",)
    exclude: Many[Text] = ()
    strength: NotNegative = 1e-4
    masked_strength: NotNegative | None = None
    stop_when_met: Flag = False
    momentum: Rate = 0.99
    warmup_epochs: NotNegative = 5.0
    interval: Count = 200
    granularity: Count | None = None
    minimum: Count | Part = 1
    multiple: Count | None = None
    threshold: NotNegative = 1e-5
    masked: Flag = False
