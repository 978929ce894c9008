"""Choose the cheapest plan: which values are computed by their own operations, and which by merged layers.

Each needed value is computed either by its own operation or by one merged layer from one of its roots. Dynamic
programming over the affine values finds the choice. The cost of a plan adds arithmetic, memory traffic and launches; a
plan must not have more multiply-accumulates, stored numbers or launches than the operations it replaces.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from unbranch.convert.interpret.interpretation import Interpretation
from unbranch.convert.plan.cost import Cost
from unbranch.convert.plan.emit import LoweredLayer, lowered_layers, pads_separately
from unbranch.convert.trace.trace import call_of
from unbranch.errors import InexactError
from unbranch.rules import rule_of_module
from unbranch.rules.layers import parameter_numbers
from unbranch.rules.value import Affine, TupleValue


@dataclass(frozen=True, eq=False)
class Merge:
    """Compute ``target`` from ``root`` by one layer.

    Args:
        layer: how the map is built.
        inside: the operations between the two whose results nothing else needs, including the target's.
        before, after: the cost of the operations it replaces, and its own.
    """

    root: fx.Node
    target: fx.Node
    layer: LoweredLayer
    inside: tuple[fx.Node, ...]
    before: Cost
    after: Cost

    @property
    def key(self) -> tuple[fx.Node, fx.Node, LoweredLayer]:
        """What the merged layer depends on."""
        return self.root, self.target, self.layer


@dataclass(frozen=True, eq=False)
class Skipped:
    """An operation that isn't merged because that isn't exact or costs more."""

    node: fx.Node
    reason: str
    exact: bool


@dataclass(eq=False)
class Plan:
    """The merges of one trace, and what is skipped with the reason."""

    merges: list[Merge]
    skipped: list[Skipped]


@dataclass(eq=False)
class _Step:
    """How a node is computed: by its own operation, or from ``root`` by one layer."""

    cost: Cost
    root: fx.Node | None = None
    layer: LoweredLayer | None = None


def plan_of(interpretation: Interpretation) -> Plan:
    """Return the cheapest plan that computes every needed value."""
    return _Planner(interpretation).plan()


@dataclass(frozen=True)
class _Planner:
    interpretation: Interpretation

    def plan(self) -> Plan:
        """Return the cheapest plan that computes every needed value."""
        chosen = self._choose()
        roots = {step.root for step in chosen.values()}
        merges = []
        for target, step in chosen.items():
            if step.root is not None and step.layer is not None:
                inside = tuple(
                    n for n in self.interpretation.between(step.root, target) if n not in chosen or n is target
                )
                before = sum((self._own_cost(n) for n in inside), Cost())
                tail = () if target in roots else tuple(self._identities_after(target, step.root))
                merges.append(Merge(step.root, (target, *tail)[-1], step.layer, inside + tail, before, step.cost))
        merges.sort(key=lambda m: self.interpretation.order[m.target])
        return Plan(merges, list(self._skipped(chosen)))

    def _choose(self) -> dict[fx.Node, _Step]:
        """Return a step for every node that must be computed.

        Needed values are planned in order. If a plan would repeat operations that two merges contain, and so cost more
        than the original, the values that they share become needed as well, and planning starts again.
        """
        needed = self._demanded()
        while True:
            chosen: dict[fx.Node, _Step] = {}
            paid: set[fx.Node] = set()
            for node in sorted(needed, key=self.interpretation.order.__getitem__):
                best, original = self._best(node, chosen, {})
                limit = sum((c for n, c in original.items() if n not in paid), Cost())
                if not _total(best).within(limit):
                    shared = {n for n in original if _readers(n, original, paid) > 1} - needed
                    if shared:
                        needed |= shared
                        break
                    best = {n: _Step(c) for n, c in original.items()}
                chosen |= best
                paid |= set(original)
            else:
                return chosen

    def _identities_after(self, node: fx.Node, root: fx.Node) -> Iterator[fx.Node]:
        """Yield ``nn.Identity`` layers that are the only reader of a node: they become part of the merge."""
        while len(node.users) == 1:
            (node,) = node.users
            known = root in self.interpretation.values.get(node, ()) and node not in self.interpretation.barriers
            if not known or node.op != "call_module" or not self._is_identity_layer(node):
                return
            yield node

    def _is_identity_layer(self, node: fx.Node) -> bool:
        around = call_of(node).parent
        rule = None if around is None else rule_of_module(around.module)
        if rule is not None and rule.epilogue:  # it belongs to the activation
            return False
        return type(self.interpretation.trace.layer_of(node)) is torch.nn.Identity

    def _demanded(self) -> set[fx.Node]:
        """Return the affine values that must be computed: other operations read them, or nothing does."""
        skipped = self.interpretation.trace.checks | self.interpretation.trace.sizes
        needed = {
            n for n in self.interpretation.values if n in self.interpretation.barriers or not set(n.users) - skipped
        }
        for node in self.interpretation.order:
            if node not in self.interpretation.values and node not in skipped:
                needed.update(n for n in node.all_input_nodes if n in self.interpretation.values)
        return needed

    def _best(
        self, node: fx.Node, chosen: dict[fx.Node, _Step], memo: dict[fx.Node, Any]
    ) -> tuple[dict[fx.Node, _Step], dict[fx.Node, Cost]]:
        """Return the cheapest steps that compute a node, and the costs of the original operations for it."""
        if node in chosen or node not in self.interpretation.values:
            return {}, {}
        if node in memo:
            return memo[node]  # type: ignore[no-any-return]
        steps: dict[fx.Node, _Step] = {}
        original: dict[fx.Node, Cost] = {}
        for source in node.all_input_nodes:
            below, costs = self._best(source, chosen, memo)
            steps |= below
            original |= costs
        own = self._own_cost(node)
        steps = steps | {node: _Step(own)}
        original = original | {node: own}
        limit = sum(original.values(), Cost())
        cheapest = _total(steps)
        for root in self.interpretation.values[node]:
            for layer in self._layers(node, root):
                candidate = self._best(root, chosen, memo)[0] | {
                    node: _Step(self._cost(node, root, layer), root, layer)
                }
                cost = _total(candidate)
                if cost.within(limit) and cost.better_than(cheapest):
                    steps, cheapest = candidate, cost
        memo[node] = steps, original
        return steps, original

    def _layers(self, node: fx.Node, root: fx.Node) -> list[LoweredLayer]:
        value = self.interpretation.values[node][root]
        if not isinstance(value, Affine):
            return []
        try:
            return lowered_layers(value)
        except InexactError:
            return []

    def _cost(self, node: fx.Node, root: fx.Node, layer: LoweredLayer) -> Cost:
        value = self.interpretation.values[node][root]
        assert isinstance(value, Affine)
        m: Any = value.map
        out = self.interpretation.points(node, value.ndim)
        moved = m.in_channels * self.interpretation.points(root, m.ndim) + value.channels * out
        return Cost(layer.macs(m, out), layer.numel(m), layer.launches(m), moved)

    def _own_cost(self, node: fx.Node) -> Cost:
        """Return the cost of a node's own operation."""
        rule = self.interpretation.rule(node)
        if rule is None or rule.kind == "view" or node not in self.interpretation.values:
            return Cost()
        sources = [n for n in node.all_input_nodes if n not in self.interpretation.constant]
        computed = sum(
            self.interpretation.constants.launches(n) for n in node.all_input_nodes if n in self.interpretation.constant
        )
        value = next(iter(self.interpretation.values[node].values()))
        numbers = float(
            sum(
                t.numel()
                for n in node.all_input_nodes
                if n in self.interpretation.constant
                for t in self.interpretation.constants.leaves(n)
            )
        )
        if node.op == "call_module":
            numbers += parameter_numbers(self.interpretation.trace.layer_of(node))
        if not isinstance(value, Affine):
            return Cost(numel=numbers, launches=1 + computed)
        ndim = value.ndim
        out = self.interpretation.points(node, ndim)
        macs, launches = 0.0, 1
        near = self.interpretation.values[node].get(sources[0])
        if rule.kind == "linear" and isinstance(near, Affine):
            macs, launches = near.conv.macs(out), 1 + pads_separately(near.conv)
        width = sum(_width(self._any_value(s)) * self.interpretation.points(s, ndim) for s in sources)
        return Cost(macs, numbers, launches + computed, width + value.channels * out)

    def _any_value(self, node: fx.Node) -> Affine | TupleValue | None:
        known = self.interpretation.values.get(node)
        return next(iter(known.values())) if known else self.interpretation.identity_on(node)

    def _skipped(self, chosen: dict[fx.Node, _Step]) -> Iterator[Skipped]:
        """Yield operations that a law rejects, or that come before a step and would cost more if merged as well."""
        refused = dict(self.interpretation.refused)
        for node, step in chosen.items():
            inside = self.interpretation.between(step.root, node) if step.root is not None else [node]
            if step.root is not None and step.root not in self.interpretation.values:
                for n in inside:
                    refused.pop(n, None)  # merged as far back as anything is affine
            elif not any(n in refused for n in inside) and self._could_go_on(node, set(inside)):
                yield Skipped(node, "merging it would cost more than it saves", exact=True)
        for node, reason in refused.items():
            yield Skipped(node, reason, exact=False)

    def _could_go_on(self, node: fx.Node, inside: set[fx.Node]) -> bool:
        """Whether a map from an earlier value exists, past an operation that computes something."""
        if not any(self._launches(n) for n in inside):
            return False
        return any(
            self._launches(n)
            for root in self.interpretation.values[node]
            for n in self.interpretation.between(root, node)
            if n not in inside
        )

    def _launches(self, node: fx.Node) -> bool:
        rule = self.interpretation.rule(node)
        return rule is not None and rule.kind != "view"


def _readers(node: fx.Node, original: dict[fx.Node, Cost], paid: set[fx.Node]) -> int:
    """Count the operations of a plan that read a node; those that an earlier plan contains count as one."""
    return sum(u in original and u not in paid for u in node.users) + (node in paid)


def _total(steps: dict[fx.Node, _Step]) -> Cost:
    return sum((s.cost for s in steps.values()), Cost())


def _width(value: Affine | TupleValue | None) -> float:
    if value is None:
        return 0.0
    return float(value.channels if isinstance(value, Affine) else sum(p.channels for p in value.parts))
