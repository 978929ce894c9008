"""Where a merge is written into the network, as locally as possible.

A merge whose operations are whole modules in a row replaces the first of them and leaves identities for the
others. Any other merge rebuilds the smallest module that holds it from its graph.
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.nn import functional as F

from unbranch.convert.interpret.interpretation import Region
from unbranch.convert.plan.plan import Merge
from unbranch.convert.rewrite.options import optional_arguments, otherwise
from unbranch.convert.source.methods import asks_for, entry_points, looking_into, running_all, shown_by, walking_through
from unbranch.convert.trace.trace import Call, Trace, call_of, forward_of
from unbranch.errors import Inexact
from unbranch.rules.value import Affine, Gridded

_CONVOLUTIONS = {F.conv1d, F.conv2d, F.conv3d, F.linear}


@dataclass(frozen=True, eq=False)
class Swap:
    """Modules in a row, by path from the trace's root; the one at ``host`` becomes the merged layer.

    Args:
        emptied: norms elsewhere that go, since what they do has moved into the layer.
        walked: methods of the network that go through the row in a loop, and may show what is between.
        keeps: whether the module at ``host`` stays what it is, a convolution with a forward of its own, and takes the
            merged layer's weight and bias.
    """

    merge: Merge
    calls: tuple[Call, ...]
    host: int
    emptied: tuple[Call, ...] = ()
    walked: tuple[str, ...] = ()
    keeps: bool = False

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(call.path for call in (*self.calls, *self.emptied))

    @property
    def place(self) -> str:
        return self.paths[self.host]


@dataclass(frozen=True, eq=False)
class Rebuild:
    """The module of ``call`` gets a new graph, in which the merges are single layers.

    ``emptied`` are norms inside it that go, since what they do has moved into the layers.
    """

    call: Call
    merges: tuple[Merge, ...]
    emptied: tuple[Call, ...] = ()
    walked: tuple[str, ...] = ()

    @property
    def place(self) -> str:
        return self.call.path


def rewrites_of(region: Region, merges: list[Merge]) -> list[Swap | Rebuild]:
    """How each merge is put into the network; those that touch each other are rebuilt together.

    Raises:
        Unplaceable: for the merges that have no place; they have to be barred.
    """
    plans: list[Swap | Rebuild] = []
    refused: list[tuple[Merge, str]] = []
    for merge in merges:
        try:
            plan: Swap | Rebuild | None = _as_swap(region, merge)
            plans.append(plan or _as_rebuild(region, (merge,)))
        except Unplaceable as error:
            refused += error.merges
    if refused:
        raise Unplaceable(*refused[0], tuple(refused[1:]))
    while (pair := _touching(plans)) is not None:
        joined = tuple(m for plan in pair for m in _merges_of(plan))
        plans = [p for p in plans if p not in pair] + [_as_rebuild(region, joined)]
    return plans


def unit_of(plan: Swap | Rebuild) -> str:
    """The path of the smallest module whose own forward shows what a rewrite does."""
    if isinstance(plan, Rebuild):
        return plan.call.path
    calls = (*plan.calls, *plan.emptied)
    if len(calls) == 1:
        return calls[0].path
    return _common_call([c.parent for c in calls if c.parent is not None]).path


def _merges_of(plan: Swap | Rebuild) -> tuple[Merge, ...]:
    return plan.merges if isinstance(plan, Rebuild) else (plan.merge,)


def _touching(plans: list[Swap | Rebuild]) -> tuple[Swap | Rebuild, Swap | Rebuild] | None:
    """Two plans that remove one operation, or of which one opens a module that the other replaces."""
    owner: dict[fx.Node | Call, Swap | Rebuild] = {}
    for plan in plans:
        nodes = {n for m in _merges_of(plan) for n in m.inside}
        for key in nodes | (opened_by(plan.call, plan.merges) if isinstance(plan, Rebuild) else set()):
            if owner.setdefault(key, plan) is not plan:
                return owner[key], plan
    for plan in plans:
        for call in plan.calls if isinstance(plan, Swap) else ():
            if call in owner:
                return owner[call], plan
    return None


def _as_rebuild(region: Region, merges: tuple[Merge, ...]) -> Rebuild:
    moved = region.trace.moved
    emptied = tuple(dict.fromkeys(c for merge in merges for n in merge.inside for c in moved.get(n, ())))
    call = _smallest_call(merges, emptied)
    # Its new forward is made for what it is given where options have their defaults.
    reason = None if call is region.trace.root else otherwise(region.trace, [call])
    if reason is not None:
        raise Unplaceable(merges[0], reason, tuple((merge, reason) for merge in merges[1:]))
    for merge in merges:
        _check_rebuildable(region, call, merge)
        for norm in {c for n in merge.inside for c in moved.get(n, ())}:
            if (reason := _looked_into(region, norm) or otherwise(region.trace, [norm])) is not None:
                raise Unplaceable(merge, reason)
    return Rebuild(call, merges, emptied)


class Unplaceable(Inexact):
    """Merges that can't be written into the network without losing something else."""

    def __init__(self, merge: Merge, reason: str, more: tuple[tuple[Merge, str], ...] = ()) -> None:
        super().__init__(reason)
        self.merges = ((merge, reason), *more)


# --- modules in a row -------------------------------------------------------------------------------


def _as_swap(region: Region, merge: Merge) -> Swap | None:
    trace = region.trace
    inside = set(merge.inside)
    times = trace.times_called()
    emptied = tuple(dict.fromkeys(call for n in merge.inside for call in trace.moved.get(n, ())))
    row: list[Call] = []
    kept: Call | None = None
    for node in merge.inside:
        if node in trace.moved:
            continue
        call = _largest_call(trace, node, inside, region, times)
        if call is None and not row:
            call = kept = _own_kernel(region, node, merge)
        if call is None:
            return None
        if call not in row:
            row.append(call)
    source: Any = merge.root
    for call in row:
        nodes = call.nodes if call is not kept else [_unmoved(trace, call.output)]
        entering = {_unmoved(trace, n) for node in nodes for n in node.all_input_nodes if n not in nodes}
        if entering - region.constant != {source}:
            return None
        source = _unmoved(trace, call.output)
        users = {u for n in _same(trace, source) for u in n.users} - trace.checks - trace.sizes - set(trace.moved)
        if call is not row[-1] and not any(users <= set(later.nodes) for later in row):
            return None
    if not row or source is not _unmoved(trace, merge.target):
        return None
    walked = _shown(region, merge, row, emptied)
    if (reason := otherwise(region.trace, [*row, *emptied])) is not None:
        raise Unplaceable(merge, reason)
    kernels = [j for j, call in enumerate(row) if any(_is_kernel(region, n) for n in call.nodes)]
    return Swap(merge, tuple(row), kernels[0] if kernels else 0, emptied, tuple(walked), kept is not None)


def _own_kernel(region: Region, node: fx.Node, merge: Merge) -> Call | None:
    """The call of a module that computes a convolution with its own weight and bias at the end of its forward.

    What its forward does before, such as padding by the size of what it is given, is none of the merge's business: it
    stays, if the merged layer is a convolution of the same geometry.
    """
    call, own = call_of(node), call_of(node).module
    if node.op != "call_function" or node.target not in _CONVOLUTIONS or call is region.trace.root or call.leaf:
        return None
    given: Any = dict(zip(("input", "weight", "bias"), node.args, strict=False)) | node.kwargs
    weight, bias = given.get("weight"), given.get("bias")
    names = [None if n is None else str(n.target) if isinstance(n, fx.Node) else "" for n in (weight, bias)]
    holds = own._parameters.get("weight") is not None and "bias" in own._parameters
    reads = names[0] == f"{call.path}.weight" and names[1] in (None, f"{call.path}.bias")
    reads = reads and (names[1] is None) == (own._parameters.get("bias") is None)
    if (
        not holds
        or not reads
        or _unmoved(region.trace, call.output) is not node
        or (names[1] is None and _asks_for_bias(own))
    ):
        return None
    trace = region.trace
    others = {
        u for n in trace.graph.nodes if n.op == "get_attr" and str(n.target) in names for u in n.users
    } - trace.sizes - trace.checks - {node}  # fmt: skip
    watched = call.path in region.hooked or call.path in region.shared or trace.times_called()[id(own)] > 1
    before, after = (region.values.get(n, {}).get(merge.root) for n in (node, merge.target))
    if others or watched or not isinstance(before, Affine) or not isinstance(after, Affine):
        return None
    same = _geometry(before) == _geometry(after) and not getattr(merge.layer, "grow", ())
    return call if same and getattr(merge.layer, "before", True) is None else None


def _asks_for_bias(own: nn.Module) -> bool:
    """Whether a forward reads its bias more than once: it may ask whether there is one, and there will be."""
    code = getattr(forward_of(own), "__code__", None)
    return code is None or sum(i.argval == "bias" for i in dis.get_instructions(code)) > 1


def _geometry(value: Affine) -> Any:
    m = value.map
    if isinstance(value, Gridded):
        return value  # another one for each
    return m.weight.shape, m.stride, m.dilation, m.lo, m.hi, m.groups, m.up, m.border, value.last


def _unmoved(trace: Trace, node: Any) -> Any:
    """What a value is before a norm that was moved behind it."""
    while node in trace.moved:
        node = node.all_input_nodes[0]
    return node


def _same(trace: Trace, node: fx.Node) -> list[fx.Node]:
    """A value, and what norms that were moved behind it make of it."""
    return [node, *(u for u in node.users if u in trace.moved)]


def _largest_call(
    trace: Trace, node: fx.Node, inside: set[fx.Node], region: Region, times: dict[int, int]
) -> Call | None:
    """The outermost module call around a node that the merge covers wholly; one that only calls another is kept."""
    largest: Call | None = None
    inside = inside | trace.moved.keys()
    for call in call_of(node).lineage():
        whole = all(n in inside or n in region.constant or n in trace.checks for n in call.nodes)
        if not whole or call is trace.root:
            break
        fits = isinstance(call.output, fx.Node) and call.output in inside and times[id(call.module)] <= 1
        if fits and takes_one_value(call) and (largest is None or len(call.nodes) > len(largest.nodes)):
            largest = call
    return largest


def takes_one_value(call: Call) -> bool:
    """Whether a call can stay as it is if a layer takes the place of the module: it passes one value, by position."""
    if call.leaf and set(call.kwargs) == {"input"}:  # as PyTorch's layers call theirs
        return not call.args
    return len(call.args) == 1 and not call.kwargs


def _is_kernel(region: Region, node: fx.Node) -> bool:
    rule = region.rule(node)
    return rule is not None and rule.kind == "kernel"


def _shown(region: Region, merge: Merge, row: list[Call], emptied: tuple[Call, ...]) -> list[str]:
    """Refuse parts of a row that can't become one, since someone may look between them.

    A kernel may not go into a part that another method runs: what ``forward_intermediates`` and its kin return would
    change. A norm may (that behind a stem of several convolutions), where no method runs one without the other. Of a
    part inside the network, methods count for a norm beside its kernel only if a method of what is around calls them.

    Returns:
        Methods of the network that go through a norm and the kernel beside it in a loop: they have to be run.

    Raises:
        Unplaceable: if someone does.
    """
    for call in row:
        if (reason := _looked_into(region, call)) is not None:
            raise Unplaceable(merge, reason)
    walked: list[str] = []
    calls = [*row, *emptied]
    around = _common_call([c.parent for c in calls if c.parent is not None])
    parts = [next(c for c in call.lineage() if c.parent is around) for call in calls]
    moved = [call for call, part in zip(calls, parts, strict=True) if part is not parts[0]]
    kernels = any(_is_kernel(region, n) for call in moved for n in call.nodes)
    paths = {region.trace.full_path(part.path) for part in parts}
    around_it = list(_modules_around(region, around)) if moved else []
    for module, above in around_it:
        inner = {path[len(above) :].lstrip(".") for path in paths}
        shown = sorted({name for path in inner for name in shown_by(module, path)})
        if not kernels:
            every = running_all(module, inner)
            shown = [name for name in shown if name not in every]
            if not above and not emptied:
                walked = sorted(walking_through(module, inner) & set(shown))
                shown = [name for name in shown if name not in walked]
        if above and not kernels and not emptied:  # a helper of a part's own forward, if nothing else calls it
            outer = [(m, above[len(path) :].lstrip(".")) for m, path in around_it if len(path) < len(above)]
            shown = [name for name in shown if any(asks_for(m, path, name) for m, path in outer)]
        if shown:
            raise Unplaceable(merge, f"{type(module).__name__}.{shown[0]} runs its parts one by one")
    return walked


def _looked_into(region: Region, call: Call) -> str | None:
    """Why a call's module can't become another one: a method of something around it runs what is inside."""
    path = region.trace.full_path(call.path)
    for module, above in list(_modules_around(region, call))[1:]:
        methods = looking_into(module, path[len(above) :].lstrip("."))
        if methods:
            return f"{type(module).__name__}.{methods[0]} runs what is inside {type(call.module).__name__}"
    return None


def _modules_around(region: Region, call: Call) -> Iterator[tuple[nn.Module, str]]:
    """A call's module and those that it lies in, with their paths, as far as the trace goes."""
    steps = call.path.split(".") if call.path else []
    for n in range(len(steps), -1, -1):
        path = ".".join(steps[:n])
        yield region.trace.module.get_submodule(path), region.trace.full_path(path)


# --- rebuilding a module ----------------------------------------------------------------------------


def _common_call(calls: list[Call]) -> Call:
    lines = [list(call.lineage()) for call in calls]
    return next(c for c in lines[0] if all(c in line for line in lines[1:]))


def _smallest_call(merges: tuple[Merge, ...], emptied: tuple[Call, ...] = ()) -> Call:
    """The innermost call that holds all operations of the merges, and norms that go, and can see the roots."""
    calls = [*(call_of(n) for merge in merges for n in merge.inside), *emptied]
    call = _common_call([c.parent if c.leaf and c.parent is not None else c for c in calls])
    roots = [merge.root for merge in merges]
    while call.parent is not None and not all(r in _visible(call) for r in roots):
        call = call.parent
    return call


def _visible(call: Call) -> set[fx.Node]:
    """Nodes inside a call or given to it, alone or in lists."""
    seen = set(call.nodes)
    fx.node.map_arg((call.args, call.kwargs), seen.add)
    return seen


def _check_rebuildable(region: Region, call: Call, merge: Merge) -> None:
    name = type(call.module).__name__
    if region.trace.times_called()[id(call.module)] > 1:
        raise Unplaceable(merge, f"it lies in {name}, which is used several times")
    others = entry_points(call.module)
    if others:
        raise Unplaceable(
            merge, f"it is spread over {name}, whose other methods ({', '.join(others[:3])}) would be lost"
        )
    if (reason := _looked_into(region, call)) is not None:
        raise Unplaceable(merge, reason)
    optional = optional_arguments(call.module) if call is region.trace.root else []
    if optional:
        raise Unplaceable(merge, f"it is spread over {name}, whose arguments {', '.join(optional)} would be lost")
    inlined = opened_by(call, (merge,))
    if any(has_hooks_at(region, c) for c in inlined if c is not call):
        raise Unplaceable(merge, "it would remove a module with a hook")
    if any(c.branches for c in inlined):
        raise Unplaceable(merge, f"it is spread over {name}, whose forward goes by what it is given")
    entering = {n for node in call.nodes for n in node.all_input_nodes}
    if call is not region.trace.root and not entering <= _visible(call):
        raise Unplaceable(merge, f"it lies in {name}, which reads tensors that it isn't given")
    run = {c.path for c in region.trace.calls if c is not call and call in c.lineage()}
    run |= {str(n.target).rpartition(".")[0] for n in call.nodes if n.op == "get_attr" and "." in str(n.target)}
    if any(path != call.path and region.trace.path_inside(call, path) is None for path in run):
        raise Unplaceable(merge, f"it lies in {name}, which runs a module that it doesn't hold")
    kinds = {p.kind for p in inspect.signature(call.module.forward).parameters.values()}
    if call is not region.trace.root and inspect.Parameter.VAR_KEYWORD in kinds and call.kwargs:
        raise Unplaceable(merge, f"it lies in {name}, which takes any keywords")


def has_hooks_at(region: Region, call: Call) -> bool:
    return call.path in region.hooked


def opened_by(call: Call, merges: tuple[Merge, ...]) -> set[Call]:
    """Calls inside ``call`` that a rebuild has to open: those that hold a removed operation or a merge's ends."""
    opened = {call}
    touched = [n for m in merges for n in m.inside]
    for node in touched:
        for inner in call_of(node).lineage():
            if inner is call:
                break
            opened.add(inner)
    for merge in merges:
        for inner in call_of(merge.root).lineage():
            if inner is call:
                break
            if inner.output is not merge.root and call in inner.lineage():
                opened.add(inner)
    return opened
