"""The cost that pruning reduces, by the channels of each unit, and the least that can be left of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal, TypeAlias

from unbranch.errors import InputError
from unbranch.prune.graph import PruningGraph
from unbranch.prune.latency import LatencyTable, latency_source
from unbranch.prune.select import Limits
from unbranch.runtimes.latency import LatencySource

Metric: TypeAlias = Literal["macs", "params", "latency"]
MULTIPLE = 8  # of widths, unless the runtime or the user says another


def cost_and_limits(
    graph: PruningGraph, metric: Metric, runtime: str | LatencySource | None, target: float, multiple: int | None,
    limits: Limits,
) -> tuple[Callable[[Sequence[int]], float], Limits]:  # fmt: skip
    """Return the cost of a network as a function of the channels of each unit, and the limits with their multiple.

    Args:
        graph: of the network.
        metric: of the cost.
        runtime: in which latency is measured, PyTorch by default.
        target: fraction of the cost that may be left.
        multiple: of widths; the runtime's step by default for latency, 8 for other metrics.
        limits: of the choice of channels, apart from the multiple.

    Raises:
        InputError: if the runtime can't be used, or the limits don't allow the target.
    """
    if metric != "latency":
        if runtime is not None:
            raise InputError(f"`runtime` needs metric='latency', got metric={metric!r}")
        cost: Callable[[Sequence[int]], float] = graph.macs if metric == "macs" else graph.params
        limits = replace(limits, multiple=MULTIPLE if multiple is None else multiple)
        check_target(graph.full, cost, target, limits)
        return cost, limits
    limits = replace(limits, multiple=1 if multiple is None else multiple)  # checks it, before anything is timed
    table = LatencyTable(graph, latency_source("torch" if runtime is None else runtime), multiple)
    limits = replace(limits, multiple=table.multiple)
    table.calibrate_for(target, limits)
    check_target(graph.full, table, target, limits)
    return table, limits


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
