"""Rebuild modules from graphs in which merged layers replace operations."""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from torch import fx, nn

from unbranch.convert.interpret.interpretation import Interpretation
from unbranch.convert.plan.plan import Merge
from unbranch.convert.rewrite.placement import PlacementError, Rebuild, Swap, takes_one_argument
from unbranch.convert.rewrite.rebuilt import Rebuilt
from unbranch.convert.rewrite.rebuilt_graph import Piece, graph_of
from unbranch.errors import InexactError
from unbranch.graph.eval_view import deep_copied
from unbranch.rules import rule_of_base


@dataclass(eq=False)
class Blueprint:
    """A module to be rebuilt, after everything inside it has been replaced.

    Args:
        old: the module in the user's network.
        graph: the graph of its new forward.
        pieces: what the graph calls and reads, by path.
        layers: the merged layers.
        plain: whether a single layer may replace it.
        used: ids of modules and tensors of the user's network that its forward used.
    """

    old: nn.Module
    graph: fx.Graph
    pieces: dict[str, Piece]
    layers: dict[Merge, nn.Module]
    plain: bool
    used: set[int]

    def built(self, memo: dict[int, Any]) -> nn.Module:
        """Return the new module; children are copied through ``memo``, which has the copies made so far by id."""
        parts: dict[str, Any] = {name: make(self.layers, memo) for name, make in self.pieces.items()}
        new = _as_layer(self.graph, parts) if self.plain else None
        if new is None:
            self.graph.lint()
            is_layer = rule_of_base(self.old) is not None  # no longer a layer of that class: it may have no weight
            new = Rebuilt(parts, self.graph, None if is_layer else type(self.old))
            self._keep_unread(new, memo)
        new.training = self.old.training
        return new

    def _keep_unread(self, new: nn.Module, memo: dict[int, Any]) -> None:
        """Keep parameters, buffers and children that the forward doesn't use: other code may."""
        old = self.old
        for name, child in old._modules.items():
            inside = [] if child is None else [*child.modules(), *child.parameters(), *child.buffers()]
            if child is not None and not hasattr(new, name) and not any(id(v) in self.used for v in inside):
                new.add_module(name, deep_copied(child, memo))
        for name, tensor in (*old._parameters.items(), *old._buffers.items()):
            if tensor is None or id(tensor) in self.used or hasattr(new, name):
                continue
            own = copy.deepcopy(tensor, memo)
            if name in old._parameters:
                new.register_parameter(name, own)  # type: ignore[arg-type]
            else:
                new.register_buffer(name, own, persistent=name not in old._non_persistent_buffers_set)


def blueprints_of(
    interpretation: Interpretation, plans: list[Rebuild], network: nn.Module, layers: dict[Merge, nn.Module]
) -> list[Blueprint]:  # fmt: skip
    """Return the blueprints of a trace, innermost modules first."""
    trace = interpretation.trace
    used = trace.read() | {id(network.get_submodule(trace.full_path(c.path))) for c in trace.calls} if plans else set()
    found = []
    for plan in sorted(plans, key=lambda p: -len(list(p.call.lineage()))):
        old = network.get_submodule(trace.full_path(plan.call.path))
        graph, pieces = graph_of(interpretation, plan, old)
        plain = plan.call is trace.root or takes_one_argument(plan.call)
        found.append(Blueprint(old, graph, pieces, layers, plain, used))
    return found


def check_rebuilds(interpretation: Interpretation, plans: list[Swap | Rebuild], network: nn.Module) -> None:
    """Check that rebuilt modules have everything that they read; nothing is copied.

    Raises:
        PlacementError: for the merges of modules that don't.
    """
    for plan in plans:
        if isinstance(plan, Rebuild):
            try:
                graph_of(interpretation, plan, network.get_submodule(interpretation.trace.full_path(plan.call.path)))
            except InexactError as error:
                first, *more = ((merge, str(error)) for merge in plan.merges)
                raise PlacementError(*first, tuple(more)) from error


def _as_layer(graph: fx.Graph, parts: dict[str, Any]) -> nn.Module | None:
    """Return a graph as a layer or sequence of layers; None if it isn't one."""
    nodes = list(graph.nodes)
    inputs = [n for n in nodes if n.op == "placeholder"]
    row = [n for n in nodes if n.op == "call_module"]
    chained = len(inputs) == 1 and len(row) == len(nodes) - 2 and nodes[-1].args[0] is (row[-1] if row else None)
    source = inputs[0] if inputs else None
    for node in row:
        chained = chained and node.args == (source,) and not node.kwargs and len(list(node.users)) == 1
        source = node
    if chained and len(row) == 1:
        return parts[str(row[0].target)]  # type: ignore[no-any-return]
    if chained and len({n.target for n in row}) == len(row) and all("." not in str(n.target) for n in row):
        return nn.Sequential(OrderedDict((str(n.target), parts[str(n.target)]) for n in row))
    return None
