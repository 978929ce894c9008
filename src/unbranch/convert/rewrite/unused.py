"""Remove parts whose results nothing reads, such as auxiliary heads."""

from __future__ import annotations

import torch
from torch import fx, nn

from unbranch.convert.passes.inplace import changed_in_place, is_view
from unbranch.convert.rewrite.options import optional_arguments
from unbranch.convert.source.methods import methods_reaching_into, methods_running
from unbranch.convert.trace.trace import Call, Trace
from unbranch.rules import rule_of_module


def drop_unused(trace: Trace, kept: set[str]) -> list[Call]:
    """Remove calls of parts without effect from a trace; their readers read the part's input.

    Args:
        trace: is changed.
        kept: paths of parts that must stay, with their enclosing modules.

    Returns:
        The removed calls.
    """
    live, written = _live(trace)
    around = {".".join(path.split(".")[:n]) for path in kept for n in range(1, path.count(".") + 2)}
    dropped: list[Call] = []
    for call in trace.calls[1:]:
        inside_another = any(outer in dropped for outer in call.lineage())
        if not inside_another and _is_unread(trace, call, live, written) and call.path not in around:
            dropped.append(call)
    given: dict[fx.Node, fx.Node] = {}  # input of a removed part, by its output
    for call in dropped:
        source = call.args[0]
        while source in given:
            source = given[source]
        given[call.output] = source
        _drop(trace, call, source)
    if dropped:
        trace.refresh()
    return dropped


def _live(trace: Trace) -> tuple[set[fx.Node], set[fx.Node]]:
    """Return the operations that outputs depend on or that have other effects, and the nodes that are written to.

    A node that is written to must stay: with an identity in its place, the write would reach its input.
    """
    base: dict[fx.Node, fx.Node] = {}
    writes: dict[fx.Node, list[fx.Node]] = {}
    live: set[fx.Node] = set()
    for node in trace.graph.nodes:
        target = changed_in_place(trace, node)
        source = node.all_input_nodes[0] if node.all_input_nodes and is_view(trace, node) else target
        base[node] = base[source] if source is not None else node
        if target is not None:
            writes.setdefault(base[target], []).append(node)
        if node.op in ("output", "placeholder") or node.target is torch._assert or _may_have_effects(trace, node):
            live.add(node)
        if target is not None and base[target].op in ("placeholder", "get_attr"):
            live.add(node)
    stack = list(live)
    while stack:
        node = stack.pop()
        new = {n for n in (*node.all_input_nodes, *writes.get(base[node], ())) if n not in live}
        live |= new
        stack += new
    return live, {node for node in base if base[node] in writes}


def _may_have_effects(trace: Trace, node: fx.Node) -> bool:
    """Whether a module that can't be traced into may store something."""
    if node.op != "call_module":
        return False
    module = trace.layer_of(node)
    return rule_of_module(module) is None and not type(module).__module__.startswith("torch.nn.modules.")


def _is_unread(trace: Trace, call: Call, live: set[fx.Node], written: set[fx.Node]) -> bool:
    computes = any(rule_of_module(m) is not None for m in call.module.modules())
    one = len(call.args) == 1 and isinstance(call.args[0], fx.Node) and not call.kwargs
    if not (computes and one and call.nodes and isinstance(call.output, fx.Node)) or call.part:
        return False
    if call.output in written or any(node in live and node.op != "get_attr" for node in call.nodes):
        return False
    if trace.times_called()[id(call.module)] > 1:
        return False
    if any(optional_arguments(outer.module) for outer in call.lineage() if outer is not call):
        return False  # an option may request the result
    return not _is_shown(trace.module, call.path.split("."))


def _is_shown(root: nn.Module, steps: list[str]) -> bool:
    """Whether another method runs a part, a module that holds it, or something inside it."""
    for n in range(len(steps)):
        module = root.get_submodule(".".join(steps[:n]))
        paths = [".".join(steps[n:end]) for end in range(n + 1, len(steps) + 1)]
        if any(methods_running(module, path) for path in paths) or methods_reaching_into(module, paths[-1]):
            return True
    return False


def _drop(trace: Trace, call: Call, given: fx.Node) -> None:
    inside = set(call.nodes)
    for node in list(inside):
        for user in list(node.users):
            if user not in inside:
                user.replace_input_with(node, given)
    for node in reversed(list(trace.graph.nodes)):
        if node in inside and not node.users:
            trace.erase(node)
    call.output = given
    for other in trace.calls:
        found = (other.args, other.kwargs, other.output)
        other.args, other.kwargs, other.output = fx.node.map_arg(found, lambda n: given if n in inside else n)
