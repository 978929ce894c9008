"""Find values that are written to while something else reads them: merges must not reach across them."""

from __future__ import annotations

from torch import fx

from unbranch.convert.reasons import IN_PLACE
from unbranch.convert.trace.decisions import either
from unbranch.convert.trace.trace import Trace
from unbranch.graph.operations import is_view_operation, written_to
from unbranch.rules import rule_of_module


def find_in_place(trace: Trace) -> tuple[dict[fx.Node, str], dict[fx.Node, int]]:
    """Return the nodes that must stay, and the last write to each node.

    A node must stay if its value changes in place while something else reads it; it is returned with the reason. The
    last write is given by its position in the graph.
    """
    order = {node: j for j, node in enumerate(trace.graph.nodes)}
    last: dict[fx.Node, int] = {}
    base: dict[fx.Node, fx.Node] = {}
    family: dict[fx.Node, set[fx.Node]] = {}
    for node in trace.graph.nodes:
        source = node.all_input_nodes[0] if node.all_input_nodes and is_view(trace, node) else None
        base[node] = base[source] if source is not None else node
        family.setdefault(base[node], set()).add(node)
        for other in node.all_input_nodes if node.target is either else ():
            _unite(base[node], base[other], base, family)
    must_stay: dict[fx.Node, str] = {}
    for node in trace.graph.nodes:
        target = changed_in_place(trace, node)
        if target is None:
            continue
        members = family[base[target]]
        last |= dict.fromkeys((*members, node), order[node])
        readers = {u for m in members for u in m.users} - members - {node}
        readers -= trace.checks
        arrived = base[target].op == "placeholder" and node.op != "call_module"
        if readers or arrived:
            for changed in (*members, node):
                must_stay[changed] = IN_PLACE
    return must_stay, last


def _unite(
    first: fx.Node, other: fx.Node, base: dict[fx.Node, fx.Node], family: dict[fx.Node, set[fx.Node]]
) -> None:  # fmt: skip
    """Record that two values may share memory."""
    if first is not other:
        family[first] |= family.pop(other)
        base |= dict.fromkeys(family[first], first)


def is_view(trace: Trace, node: fx.Node) -> bool:
    """Whether a value may share memory with its first input."""
    if node.op == "call_module":
        rule = rule_of_module(trace.layer_of(node))
        return bool(node.meta.get("passes")) or (rule is not None and rule.kind == "view")
    return is_view_operation(node)


def changed_in_place(trace: Trace, node: fx.Node) -> fx.Node | None:
    """Return the value that an operation writes to, or None."""
    if node.op != "call_module":
        return written_to(node)
    writes = bool(getattr(trace.layer_of(node), "inplace", False)) and not is_view(trace, node)
    first = node.args[0] if node.args else None
    return first if writes and isinstance(first, fx.Node) else None
