"""Windows of an image that several branches take out of it, each by a reshape of its own: they become one.

RepMLP's fully connected layer reads ``x.reshape(-1, S·h·w, 1, 1)``, its convolutions ``x.reshape(-1, S, h, w)``, and
what both give is reshaped again before it is added. A reshape of a reshape is a reshape, and a sum of two tensors of
one shape may be reshaped afterwards; so all branches come to read one tensor of windows, and meet in one of them.
"""

from __future__ import annotations

import operator
from math import prod

from torch import fx

from unbranch.convert.passes.inplace import changed_in_place, is_view
from unbranch.convert.passes.rearrange import shapes_of
from unbranch.convert.trace.trace import Trace, call_of
from unbranch.graph.operations import ADDITIONS
from unbranch.rules import RESHAPES

_ADDITIONS = ADDITIONS - {"add_"}


def share_grids(trace: Trace) -> None:
    """Let branches that reshape one value into windows read one reshape of it, and add before they reshape back."""
    written = _written(trace)
    changed = False
    for node in list(trace.graph.nodes):
        if node not in written:
            changed = _shared(trace, node) or changed
    for node in list(trace.graph.nodes):
        changed = _added_before(trace, node) or changed
    if changed:
        trace.refresh()


def _written(trace: Trace) -> set[fx.Node]:
    """Values that an operation writes to, directly or through a view."""
    found: set[fx.Node] = set()
    for node in trace.graph.nodes:
        target = changed_in_place(trace, node)
        while target is not None and target not in found:
            found.add(target)
            target = target.all_input_nodes[0] if target.all_input_nodes and is_view(trace, target) else None
    return found


def _is_reshape(node: fx.Node, source: fx.Node | None = None) -> bool:
    known = node.target in RESHAPES and len(node.args) > 1 and not node.kwargs and isinstance(node.args[0], fx.Node)
    return known and (source is None or node.args[0] is source)


def _windows(trace: Trace, node: fx.Node) -> tuple[tuple[int, int], tuple[int, ...]] | None:
    """How many windows a reshape makes of inputs of two sizes, and the fixed rest of its shape."""
    shapes = shapes_of(trace, node)
    if shapes is None or len(shapes[0]) < 2 or shapes[0][1:] != shapes[1][1:]:
        return None
    return (shapes[0][0], shapes[1][0]), shapes[0][1:]


def _shared(trace: Trace, source: fx.Node) -> bool:
    """Let reshapes of a value read the one among them that has the largest grid."""
    users = [u for u in source.users if _is_reshape(u, source) and call_of(u) is call_of(source)]
    found = [(u, w) for u in users if (w := _windows(trace, u)) is not None]
    grids = [(u, w) for u, w in found if len(w[1]) > 2 and prod(w[1][1:]) > 1]
    if not grids or len(found) < 2:
        return False
    chosen, windows = max(grids, key=lambda item: prod(item[1][1][1:]))
    others = [u for u, w in found if u is not chosen and w[0] == windows[0]]
    order = {node: j for j, node in enumerate(trace.graph.nodes)}
    first = min([chosen, *others], key=order.__getitem__)
    if not others or any(order[n] >= order[first] for n in chosen.all_input_nodes):
        return False
    if first is not chosen:
        first.prepend(chosen)
        for call in call_of(chosen).lineage():
            call.nodes.remove(chosen)
            call.nodes.insert(call.nodes.index(first), chosen)
    for node in others:
        node.args = (chosen, *node.args[1:])
    return True


def _added_before(trace: Trace, node: fx.Node) -> bool:
    """Add what two reshapes are given instead of what they give."""
    if node.target not in _ADDITIONS or len(node.args) != 2 or node.kwargs:
        return False
    first, second = node.args
    if not isinstance(first, fx.Node) or not isinstance(second, fx.Node) or first is second:
        return False
    calls = {call_of(n) for n in (first, second, node)}
    if not (_is_reshape(first) and _is_reshape(second)) or len(calls) > 1:
        return False
    sources = [n for n in (first.args[0], second.args[0]) if isinstance(n, fx.Node)]
    shapes = [shapes_of(trace, n) for n in (first, second, *sources)]
    if None in shapes or shapes[0] != shapes[1] or shapes[2] != shapes[3]:
        return False
    if any(trace.readers(n) != {node} for n in (first, second)):
        return False
    if any(trace.readers(n) != {reshape} for n, reshape in zip(sources, (first, second), strict=True)):
        return False
    total = trace.insert_before(node, operator.add, tuple(sources))
    back = trace.insert_before(node, first.target, (total, *first.args[1:]))
    node.replace_all_uses_with(back)
    for call in trace.calls:
        call.output = fx.node.map_arg(call.output, lambda n: back if n is node else n)
        call.args = fx.node.map_arg(call.args, lambda n: back if n is node else n)
    for old in (node, second, first):
        trace.erase(old)
    return True
