"""Plan the conversion of one trace until all its merges are exact and have a place."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from unbranch.convert.account import sources_of
from unbranch.convert.interpret.interpretation import Interpretation
from unbranch.convert.passes.moves import Move, move_norms
from unbranch.convert.plan.emit import LoweredLayer
from unbranch.convert.plan.plan import Merge, Plan, plan_of
from unbranch.convert.prove.merged_layers import IN_FLOAT64, Built, build
from unbranch.convert.rewrite.blueprint import check_rebuilds
from unbranch.convert.rewrite.place import rewrites_of
from unbranch.convert.rewrite.placement import PlacementError, Rebuild, Swap
from unbranch.convert.rewrite.unused import drop_unused
from unbranch.convert.trace.trace import Call, Trace

MergeKey = tuple[str, str, str]
"""Identifies a merge in every attempt at a network: path of the trace, names of root and target."""
DROPPED = "dropped"  # in place of a root's name: the part at the target's path is removed


@dataclass(frozen=True, eq=False)
class TracePlan:
    """What to do to one trace.

    Args:
        interpretation: of the trace.
        plan: its merges, and what is skipped.
        rewrites: where the merges go.
        built: the merged layers.
        dropped: calls of unused parts, which are removed.
        rejected: reasons for merges that were rejected, by what they would have replaced, with the target.
    """

    interpretation: Interpretation
    plan: Plan
    rewrites: list[Swap | Rebuild]
    built: dict[Merge, Built]
    dropped: list[Call]
    rejected: dict[tuple[str, ...], tuple[str, fx.Node]]

    @property
    def trace(self) -> Trace:
        """The trace, with unused parts removed and norms moved."""
        return self.interpretation.trace

    @property
    def layers(self) -> dict[Merge, nn.Module]:
        """The merged layers."""
        return {merge: built.layer for merge, built in self.built.items()}


@dataclass(eq=False)
class TracePlanner:
    """Plans one trace.

    Args:
        network: the original.
        trace: the trace; it is changed.
        hooked: paths of modules whose inputs and outputs are observed, with the reason.
        shared: paths of leaves that must stay because their parameters are used elsewhere, with the reason.
        unmoved: paths of norms that must stay; those whose pieces can't be merged are added.
        excluded: merges that a proof has disproved, with the reasons.
        cache: merged layers of earlier attempts; new ones are added.
    """

    network: nn.Module
    trace: Trace
    hooked: dict[str, str]
    shared: dict[str, str]
    unmoved: set[str]
    excluded: dict[MergeKey, str]
    cache: dict[Any, Built]
    done: dict[tuple[fx.Node, fx.Node, LoweredLayer], Built] = field(default_factory=dict)
    _pairs: set[tuple[fx.Node, fx.Node]] = field(default_factory=set)
    _dropped: list[Call] = field(default_factory=list)
    _moves: list[Move] = field(default_factory=list)

    def run(self) -> TracePlan:
        """Plan until every merge is exact and has a place."""
        rejected: dict[tuple[str, ...], tuple[str, fx.Node]] = {}
        self._prepare()
        while True:
            interpretation = Interpretation(self.trace, self._pairs, self.hooked, self.shared)
            plan = plan_of(interpretation)
            if lost := self._lost_norms(plan):
                self.unmoved |= lost
                self.trace = self.trace.retrace()
                self._prepare()
                continue
            try:
                rewrites = rewrites_of(interpretation, plan.merges)
                check_rebuilds(interpretation, rewrites, self.network)
                built = self._build(interpretation, plan)
            except PlacementError as error:
                for merge, reason in error.merges:
                    self._pairs.add((merge.root, merge.target))
                    rejected[sources_of(interpretation, merge)] = reason, merge.target
                continue
            return TracePlan(interpretation, plan, rewrites, built, self._dropped, rejected)

    def _prepare(self) -> None:
        """Remove unused parts from a new trace, move its norms, and look up its excluded merges."""
        own = [(root, target) for path, root, target in self.excluded if path == self.trace.path]
        self._dropped = drop_unused(self.trace, {*self.hooked, *(path for kind, path in own if kind == DROPPED)})
        self._moves = move_norms(self.trace, {*self.hooked, *self.shared, *self.unmoved}, self.hooked)
        nodes = {node.name: node for node in self.trace.graph.nodes}
        self._pairs = {(nodes[root], nodes[target]) for root, target in own if root in nodes and target in nodes}
        self.done = {}

    def _lost_norms(self, plan: Plan) -> set[str]:
        """Return the paths of moved norms that the plan doesn't merge completely: they must not be moved."""
        merged = {n for m in plan.merges for n in m.inside}
        return {call.path for move in self._moves if not set(move.pieces) <= merged for call in move.calls}

    def _build(self, interpretation: Interpretation, plan: Plan) -> dict[Merge, Built]:
        exact = sum(m.after.numel for m in plan.merges) * 8 <= IN_FLOAT64
        for merge in sorted(plan.merges, key=lambda m: -m.after.numel):  # to limit peak memory
            if merge.key not in self.done:
                key = (*merge_key(self.trace, merge), merge.layer)
                if key not in self.cache:
                    self.cache[key] = build(interpretation, merge, exact=exact, training=self._is_training(merge))
                self.done[merge.key] = self.cache[key]
        return {merge: self.done[merge.key] for merge in plan.merges}

    def _is_training(self, merge: Merge) -> bool:
        """Whether the first layer that a merge replaces is in training mode."""
        for node in merge.inside:
            if node.op == "call_module":
                return self.network.get_submodule(self.trace.full_path(str(node.target))).training
        return self.network.training


def merge_key(trace: Trace, merge: Merge) -> MergeKey:
    """Return the key of a merge, the same in every attempt at a network."""
    return trace.path, merge.root.name, merge.target.name
