"""Sums of several values in the order in which they merge.

``a(x) + dilated(x) + norm(x)`` adds the norm to something that doesn't merge with it, though a(x) would. A sum doesn't
depend on the order of what it adds, so what is alike is put side by side.
"""

from __future__ import annotations

import operator

from torch import Tensor, fx

from unbranch.convert.passes.inplace import changed_in_place
from unbranch.convert.trace.trace import Trace, call_of
from unbranch.graph.operations import ADDITIONS


def order_sums(trace: Trace) -> None:
    """Put what is alike side by side in the sums of a trace."""
    changed = False
    for node in list(trace.graph.nodes):
        if _is_sum(trace, node) and not (_is_inner(trace, node) and _is_sum(trace, next(iter(trace.readers(node))))):
            changed = _reordered(trace, node) or changed
    if changed:
        trace.refresh()


def _is_sum(trace: Trace, node: fx.Node) -> bool:
    """Whether a node adds two values."""
    if node.target not in ADDITIONS or len(node.args) != 2 or node.kwargs:
        return False
    if not all(isinstance(a, fx.Node) for a in node.args):
        return False
    first = node.args[0]
    assert isinstance(first, fx.Node)
    return node.target not in (operator.iadd, "add_") or (_is_new(trace, first) and trace.readers(first) == {node})


def _is_new(trace: Trace, node: fx.Node) -> bool:
    """Whether a value is a tensor of its own, which may be added to in place without anything else seeing it."""
    if node.op == "call_module":
        module = trace.layer_of(node)
        rule = trace.rule(node)
        return rule is not None and rule.kind != "view" and not getattr(module, "inplace", False)
    return node.target in ADDITIONS


def _is_inner(trace: Trace, node: fx.Node) -> bool:
    """Whether a sum is only there to be added to something else."""
    return _is_sum(trace, node) and len(trace.readers(node)) == 1


def _reordered(trace: Trace, top: fx.Node) -> bool:
    inner: list[fx.Node] = []

    def operands(node: fx.Node) -> list[fx.Node]:
        found: list[fx.Node] = []
        for a in node.args:
            assert isinstance(a, fx.Node)
            if _is_inner(trace, a):
                inner.append(a)
                found += operands(a)
            else:
                found.append(a)
        return found

    given = operands(top)
    ordered = _alike_together(trace, given)
    if len(given) < 3 or ordered == given or any(call_of(n) is not call_of(top) for n in inner):
        return False
    known = [trace.known(n) for n in (*given, top)]
    shapes = {tuple(k[0].shape) if k is not None and isinstance(k[0], Tensor) else None for k in known}
    if len(shapes) != 1 or None in shapes:  # one is broadcast to the others
        return False
    nodes = list(trace.graph.nodes)
    between = nodes[min(nodes.index(n) for n in inner) : nodes.index(top)]
    if any(n not in inner and changed_in_place(trace, n) is not None for n in between):
        return False  # what is read later would have changed
    total = ordered[0]
    for one in ordered[1:-1]:
        total = trace.insert_before(top, operator.add, (total, one))
    top.target, top.args, top.op = operator.add, (total, ordered[-1]), "call_function"
    for node in dict.fromkeys(inner):  # one that is added to itself is there twice
        if not node.users:
            trace.erase(node)
    return True


def _alike_together(trace: Trace, given: list[fx.Node]) -> list[fx.Node]:
    """Return summands in the order of the values that they are computed from, each with those of small reach first."""
    likeness = {node: _likeness(trace, node) for node in given}
    roots = list(dict.fromkeys(root for root, _ in likeness.values()))
    return sorted(given, key=lambda n: (roots.index(likeness[n][0]), likeness[n][1]))


def _likeness(trace: Trace, node: fx.Node) -> tuple[fx.Node, int]:
    """Return the nearest value that a summand is computed from and others read, too, and how far its kernels reach."""
    spread = 1
    for _ in range(64):  # operations back to a kernel
        rule = trace.rule(node)
        if rule is not None and rule.kind == "linear" and node.op == "call_module":
            sizes = getattr(trace.layer_of(node), "dilation", 1)
            spread = max((spread, *sizes) if isinstance(sizes, tuple) else (spread, sizes))
        sources = [n for n in node.all_input_nodes if n.op != "get_attr" and n not in trace.sizes]
        if rule is None or not sources:
            break
        node = sources[0]
        if len(trace.readers(node)) > 1:
            break
    return node, spread
