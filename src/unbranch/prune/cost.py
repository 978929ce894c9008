"""The cost that pruning reduces, by the channels of each unit, and the least that can be left of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from unbranch.errors import InputError
from unbranch.prune.graph import PruningGraph
from unbranch.prune.latency import latency_table
from unbranch.prune.select import Limits

Metric: TypeAlias = Literal["macs", "params", "latency"]


def cost_function(graph: PruningGraph, metric: Metric) -> Callable[[Sequence[int]], float]:
    """Return the cost of a network as a function of the channels of each unit."""
    if metric == "latency":
        return latency_table(graph)
    return graph.macs if metric == "macs" else graph.params


def check_target(full: list[int], cost: Callable[[Sequence[int]], float], target: float, limits: Limits) -> None:
    """Raise InputError if the limits don't allow the target.

    Args:
        full: channels of each unit before pruning.
        cost: by the channels of each unit.
        target: fraction of the cost that may be left.
        limits: of the choice of channels.
    """
    least = cost([limits.kept(1, width) for width in full]) / cost(full)
    if least > target:
        raise InputError(
            f"`target` must be at least {least:.3f}, the cost with the fewest channels, got {target:g}; prune more "
            "layers (layers='all'), or reduce `minimum` and `multiple`"
        )
