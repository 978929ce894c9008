"""Values that are written to while something else reads them: they keep their operations."""

from __future__ import annotations

from torch import fx

from ..rules import rule_of_module
from .trace import Trace

_VIEWS = {"view", "reshape", "permute", "transpose", "flatten", "chunk", "split", "squeeze", "unsqueeze", "contiguous",
          "expand", "narrow", "detach", "unbind", "t", "movedim", "moveaxis", "swapaxes", "swapdims", "adjoint",
          "unflatten", "reshape_as", "view_as", "getitem"}  # fmt: skip


def pinned_in(trace: Trace) -> tuple[dict[fx.Node, str], dict[fx.Node, int]]:
    """Nodes whose value changes in place while something else reads it, and when they change for the last time.

    The first are given with the reason: no merge may reach across; the second with the position in the graph.
    """
    order = {node: j for j, node in enumerate(trace.graph.nodes)}
    last: dict[fx.Node, int] = {}
    base: dict[fx.Node, fx.Node] = {}
    family: dict[fx.Node, set[fx.Node]] = {}
    for node in trace.graph.nodes:
        source = node.all_input_nodes[0] if node.all_input_nodes and is_view(trace, node) else None
        base[node] = base[source] if source is not None else node
        family.setdefault(base[node], set()).add(node)
    pinned: dict[fx.Node, str] = {}
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
            reason = "a value it reads is changed in place"
            for pinned_node in (*members, node):
                pinned[pinned_node] = reason
    return pinned, last


def is_view(trace: Trace, node: fx.Node) -> bool:
    """Whether a value may share memory with its first input."""
    if node.op == "call_module":
        rule = rule_of_module(trace.module.get_submodule(str(node.target)))
        return bool(node.meta.get("passes")) or (rule is not None and rule.kind == "view")
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if name == "getattr":
        return node.args[1] in ("T", "mT", "H", "mH")
    return node.op in ("call_function", "call_method") and name in _VIEWS


def changed_in_place(trace: Trace, node: fx.Node) -> fx.Node | None:
    """The value that an operation writes to, if it does."""
    if not node.all_input_nodes or node.op not in ("call_module", "call_method", "call_function"):
        return None
    name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", "")
    if node.op == "call_module":
        writes = bool(getattr(trace.module.get_submodule(str(node.target)), "inplace", False))
        writes = writes and not is_view(trace, node)
    elif node.op == "call_method":
        writes = name.endswith("_") and not name.endswith("__")
    else:
        operators = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "ipow", "setitem")
        writes = name in operators or (name.endswith("_") and not name.startswith("_"))
        writes = writes or node.kwargs.get("inplace") is True
    first = node.args[0] if node.args else None
    return first if writes and isinstance(first, fx.Node) else None
