"""Plan the merges of an ONNX graph, with the converter's own steps."""

from __future__ import annotations

from dataclasses import dataclass, replace

from torch import fx

from unbranch.convert.account import sources_of
from unbranch.convert.interpret.interpretation import Interpretation
from unbranch.convert.passes.moves import move_norms
from unbranch.convert.plan.plan import Merge, Plan, plan_of
from unbranch.convert.prove.merged_layers import IN_FLOAT64, Built, build
from unbranch.convert.rewrite.placement import PlacementError
from unbranch.convert.trace.trace import Trace
from unbranch.onnx.borders import read_borders
from unbranch.onnx.constants import Constants
from unbranch.onnx.tracing import NODE, VALUE
from unbranch.rules.value import Affine


@dataclass(frozen=True, eq=False)
class GraphPlan:
    """What to do to a graph.

    Args:
        interpretation: of its trace, with norms moved.
        plan: the merges, and what is skipped.
        built: the merged layers.
        rejected: reasons for merges that were rejected, by what they would have replaced.
        constants: of the graph.
    """

    interpretation: Interpretation
    plan: Plan
    built: dict[Merge, Built]
    rejected: dict[tuple[str, ...], tuple[str, fx.Node]]
    constants: Constants

    @property
    def trace(self) -> Trace:
        return self.interpretation.trace


def plan_graph(trace: Trace, constants: Constants) -> GraphPlan:
    """Plan until every merge is exact; norms and borders that aren't merged completely stay as they were."""
    unmoved: set[str] = set()
    left: set[str] = set()
    while True:
        borders = read_borders(trace, left)
        moves = move_norms(trace, unmoved)
        pairs: set[tuple[fx.Node, fx.Node]] = set()
        rejected: dict[tuple[str, ...], tuple[str, fx.Node]] = {}
        while True:
            interpretation = Interpretation(trace, pairs)
            plan = plan_of(interpretation)
            merged = {node for merge in plan.merges for node in merge.inside}
            lost = {call.path for move in moves if not set(move.pieces) <= merged for call in move.calls}
            loose = {str(node.meta[VALUE]) for node in borders if node not in merged}
            if lost or loose:
                break
            try:
                plan = replace(plan, merges=[merge for merge in plan.merges if _saves(interpretation, merge)])
                return GraphPlan(interpretation, plan, _built(interpretation, plan), rejected, constants)
            except PlacementError as error:
                for merge, reason in error.merges:
                    pairs.add((merge.root, merge.target))
                    rejected[sources_of(interpretation, merge)] = reason, merge.target
        unmoved |= lost
        left |= loose
        trace = trace.retrace()


def _saves(interpretation: Interpretation, merge: Merge) -> bool:
    """Whether a merge isn't just a matrix and its bias: for other tensors than matrices, these are two operators."""
    value, known = interpretation.values[merge.target][merge.root], interpretation.trace.known(merge.root)
    one = isinstance(value, Affine) and not value.is_grid and not value.ndim and not value.conv.ndim
    rules = [interpretation.rule(node) for node in merge.inside]
    operators = sum(rule is not None and rule.kind != "view" for rule in rules)
    apart = one and isinstance(value, Affine) and value.conv.bias is not None
    apart = apart and (known is None or known[0].dim() != 2)
    apart = apart and all(NODE in node.meta for node in merge.inside)  # what a pass has added must be merged
    return not apart or operators > 2 or len(merge.inside) > operators or merge.after.macs < merge.before.macs


def _built(interpretation: Interpretation, plan: Plan) -> dict[Merge, Built]:
    exact = sum(merge.after.numel for merge in plan.merges) * 8 <= IN_FLOAT64
    largest_first = sorted(plan.merges, key=lambda merge: -merge.after.numel)
    return {merge: build(interpretation, merge, exact=exact, training=False) for merge in largest_first}
