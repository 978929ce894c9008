"""Decide where each merge is written into the network, as locally as possible.

A merge whose operations are whole modules in a row replaces one of them and leaves identities in place of the others.
For any other merge, the smallest module that holds it is rebuilt from its graph.
"""

from __future__ import annotations

from torch import fx

from unbranch.convert.interpret.interpretation import Interpretation
from unbranch.convert.plan.plan import Merge
from unbranch.convert.rewrite.exposure import common_call
from unbranch.convert.rewrite.place_rebuild import as_rebuild
from unbranch.convert.rewrite.place_swap import as_swap
from unbranch.convert.rewrite.placement import PlacementError, Rebuild, Swap, calls_opened_by
from unbranch.convert.trace.trace import Call


def rewrites_of(interpretation: Interpretation, merges: list[Merge]) -> list[Swap | Rebuild]:
    """Return how each merge is written into the network; merges that overlap are rebuilt together.

    Raises:
        PlacementError: for merges that have no place; they must be excluded.
    """
    plans: list[Swap | Rebuild] = []
    refused: list[tuple[Merge, str]] = []
    for merge in merges:
        try:
            plan: Swap | Rebuild | None = as_swap(interpretation, merge)
            plans.append(plan or as_rebuild(interpretation, (merge,)))
        except PlacementError as error:
            refused += error.merges
    if refused:
        raise PlacementError(*refused[0], tuple(refused[1:]))
    while (pair := _touching(plans)) is not None:
        joined = tuple(m for plan in pair for m in plan.all_merges)
        plans = [p for p in plans if p not in pair] + [as_rebuild(interpretation, joined)]
    return plans


def unit_of(plan: Swap | Rebuild) -> str:
    """Return the path of the smallest module whose own forward contains the whole rewrite."""
    if isinstance(plan, Rebuild):
        return plan.call.path
    calls = (*plan.calls, *plan.emptied)
    if len(calls) == 1:
        return calls[0].path
    return common_call([c.parent for c in calls if c.parent is not None]).path


def _touching(plans: list[Swap | Rebuild]) -> tuple[Swap | Rebuild, Swap | Rebuild] | None:
    """Return two rewrites that remove the same operation, or of which one opens a module that the other replaces."""
    owner: dict[fx.Node | Call, Swap | Rebuild] = {}
    for plan in plans:
        nodes = {n for m in plan.all_merges for n in m.inside}
        for key in nodes | (calls_opened_by(plan.call, plan.merges) if isinstance(plan, Rebuild) else set()):
            if owner.setdefault(key, plan) is not plan:
                return owner[key], plan
    for plan in plans:
        for call in plan.calls if isinstance(plan, Swap) else ():
            if call in owner:
                return owner[call], plan
    return None
