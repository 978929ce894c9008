"""Place merges by rebuilding the smallest module that holds them."""

from __future__ import annotations

import inspect

from torch import fx

from unbranch.convert.interpret.interpretation import Interpretation
from unbranch.convert.plan.plan import Merge
from unbranch.convert.rewrite.exposure import common_call, exposed_inside
from unbranch.convert.rewrite.options import conflict_with_options, optional_arguments
from unbranch.convert.rewrite.placement import PlacementError, Rebuild, calls_opened_by
from unbranch.convert.source.methods import entry_points
from unbranch.convert.trace.trace import Call, call_of


def as_rebuild(interpretation: Interpretation, merges: tuple[Merge, ...]) -> Rebuild:
    """Return the rebuild of the smallest module that holds all merges.

    Raises:
        PlacementError: for merges that have no place in it.
    """
    moved = interpretation.trace.moved
    emptied = tuple(dict.fromkeys(c for merge in merges for n in merge.inside for c in moved.get(n, ())))
    call = _smallest_call(merges, emptied)
    # The new forward is valid for arguments whose options have their defaults.
    reason = None if call is interpretation.trace.root else conflict_with_options(interpretation.trace, [call])
    if reason is not None:
        raise PlacementError(merges[0], reason, tuple((merge, reason) for merge in merges[1:]))
    for merge in merges:
        _check_rebuildable(interpretation, call, merge)
        for norm in {c for n in merge.inside for c in moved.get(n, ())}:
            if (
                reason := exposed_inside(interpretation, norm) or conflict_with_options(interpretation.trace, [norm])
            ) is not None:
                raise PlacementError(merge, reason)
    return Rebuild(call, merges, emptied)


def _smallest_call(merges: tuple[Merge, ...], emptied: tuple[Call, ...] = ()) -> Call:
    """Return the innermost call that holds all operations of the merges and emptied norms, and can read the roots."""
    calls = [*(call_of(n) for merge in merges for n in merge.inside), *emptied]
    call = common_call([c.parent if c.leaf and c.parent is not None else c for c in calls])
    roots = [merge.root for merge in merges]
    while call.parent is not None and not all(r in _visible(call) for r in roots):
        call = call.parent
    return call


def _visible(call: Call) -> set[fx.Node]:
    """Return the nodes inside a call or among its arguments, also nested."""
    seen = set(call.nodes)
    fx.node.map_arg((call.args, call.kwargs), seen.add)
    return seen


def _check_rebuildable(interpretation: Interpretation, call: Call, merge: Merge) -> None:
    name = type(call.module).__name__
    if interpretation.trace.times_called()[id(call.module)] > 1:
        raise PlacementError(merge, f"it lies in {name}, which is used several times")
    others = entry_points(call.module)
    if others:
        raise PlacementError(
            merge, f"it is spread over {name}, whose other methods ({', '.join(others[:3])}) would be lost"
        )
    if (reason := exposed_inside(interpretation, call)) is not None:
        raise PlacementError(merge, reason)
    optional = optional_arguments(call.module) if call is interpretation.trace.root else []
    if optional:
        raise PlacementError(merge, f"it is spread over {name}, whose arguments {', '.join(optional)} would be lost")
    inlined = calls_opened_by(call, (merge,))
    if any(has_hooks_at(interpretation, c) for c in inlined if c is not call):
        raise PlacementError(merge, "it would remove a module with a hook")
    if any(c.branches for c in inlined):
        raise PlacementError(merge, f"it is spread over {name}, whose forward depends on the input size")
    entering = {n for node in call.nodes for n in node.all_input_nodes}
    if call is not interpretation.trace.root and not entering <= _visible(call):
        raise PlacementError(merge, f"it lies in {name}, which reads tensors other than its arguments")
    run = {c.path for c in interpretation.trace.calls if c is not call and call in c.lineage()}
    run |= {str(n.target).rpartition(".")[0] for n in call.nodes if n.op == "get_attr" and "." in str(n.target)}
    if any(path != call.path and interpretation.trace.path_inside(call, path) is None for path in run):
        raise PlacementError(merge, f"it lies in {name}, which calls a module that it doesn't hold")
    kinds = {p.kind for p in inspect.signature(call.module.forward).parameters.values()}
    if call is not interpretation.trace.root and inspect.Parameter.VAR_KEYWORD in kinds and call.kwargs:
        raise PlacementError(merge, f"it lies in {name}, which accepts arbitrary keyword arguments")


def has_hooks_at(interpretation: Interpretation, call: Call) -> bool:
    """Whether a call's module has hooks."""
    return call.path in interpretation.hooked
