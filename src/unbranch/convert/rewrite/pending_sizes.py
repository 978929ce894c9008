"""Reads of the sizes of values that a merge removes."""

from __future__ import annotations

import operator

from torch import fx, nn
from torch.nn.modules.dropout import _DropoutNd

from unbranch.convert.interpret.interpretation import Interpretation
from unbranch.convert.interpret.operations import CHANGES_SIZE
from unbranch.convert.passes.rearrange import shapes_of
from unbranch.convert.plan.plan import Merge


class PendingSizes:
    """Sizes of values that are merged away, to be read from the merged layer's input or output instead."""

    def __init__(self, interpretation: Interpretation, merges: tuple[Merge, ...]) -> None:
        self._region = interpretation
        self._removed = {n for m in merges for n in m.inside if n is not m.target}
        self._pending: list[fx.Node] = []

    def holds(self, node: fx.Node, env: dict[fx.Node, fx.Node]) -> bool:
        """Whether a node must wait, since it reads the size of a value that doesn't exist yet."""
        waits = node in self._region.trace.sizes and any(
            (n in self._removed or n in self._pending) and n not in env for n in node.all_input_nodes
        )
        if waits:
            self._pending.append(node)
        return waits

    def released(self, merge: Merge, env: dict[fx.Node, fx.Node]) -> list[fx.Node]:
        """Return the nodes that can be computed now that a merged layer exists, in order."""
        for node in merge.inside:
            if node is not merge.target:
                like = next((v for v in (merge.target, merge.root) if self._same_size(node, v)), None)
                if like is not None:
                    env.setdefault(node, env[like])
        ready: list[fx.Node] = []
        known = set(env)
        for node in list(self._pending):
            if all(n in known for n in node.all_input_nodes):
                self._pending.remove(node)
                known.add(node)
                ready.append(node)
        return ready

    def _same_size(self, node: fx.Node, target: fx.Node) -> bool:
        """Whether two values have the same size along the axes that are read."""
        shapes, others = shapes_of(self._region.trace, node), shapes_of(self._region.trace, target)
        if shapes is not None and others is not None:
            axes = self._axes_read(node, len(shapes[0]))
            return len(shapes[0]) == len(others[0]) and all(
                a[j] == b[j] for a, b in zip(shapes, others, strict=True) for j in axes
            )
        first, last = sorted((node, target), key=self._region.order.__getitem__)
        behind = [n for n in self._region.between(first, last) if n is not first]
        rules = [self._region.rule(n) for n in behind if not self._passes(n)]
        kinds = {rule.kind for rule in rules if rule is not None}
        moves = any(n.target in CHANGES_SIZE for n in behind)
        return bool(behind) and kinds <= {"elementwise"} and not moves and None not in rules

    def _passes(self, node: fx.Node) -> bool:
        """Whether a module returns its input: an identity, or dropout, which does so in evaluation mode."""
        if node.op != "call_module":
            return False
        module = self._region.trace.layer_of(node)
        return isinstance(module, nn.Identity | _DropoutNd)

    def _axes_read(self, node: fx.Node, rank: int) -> set[int]:
        axes: set[int] = set()
        for reading in (u for u in node.users if u in self._region.trace.sizes):
            if reading.target == "size" and len(reading.args) == 2:
                found = [reading.args[1]]
            else:
                found = [u.args[1] if u.target is operator.getitem else None for u in reading.users]
            axes |= {j % rank for j in found if isinstance(j, int)}
            axes |= set(range(rank)) if not all(isinstance(j, int) for j in found) else set()
        return axes
