"""Putting merged layers into a copy of the network, as locally as possible.

A merge whose operations are whole modules in a row replaces the first of them and leaves identities for the
others. Any other merge rebuilds the smallest module that holds it from its graph; children that it doesn't
touch stay the modules they were.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from ..errors import Inexact
from .plan import Merge, Region
from .rules import rule_of_module
from .shadow import copy_hooks, has_hooks
from .trace import Call, Trace, call_of


@dataclass(frozen=True, eq=False)
class Swap:
    """Modules in a row, by path from the trace's root; the one at ``host`` becomes the merged layer."""

    merge: Merge
    calls: tuple[Call, ...]
    host: int

    @property
    def paths(self) -> tuple[str, ...]:
        return tuple(call.path for call in self.calls)

    @property
    def place(self) -> str:
        return self.paths[self.host]


@dataclass(frozen=True, eq=False)
class Rebuild:
    """The module of ``call`` gets a new graph, in which the merges are single layers."""

    call: Call
    merges: tuple[Merge, ...]

    @property
    def place(self) -> str:
        return self.call.path


def rewrites_of(region: Region, merges: list[Merge]) -> list[Swap | Rebuild]:
    """How each merge is put into the network; those that touch each other are rebuilt together.

    Raises:
        Unplaceable: for the first merge that has no place; it has to be barred.
    """
    plans: list[Swap | Rebuild] = []
    for merge in merges:
        plan: Swap | Rebuild | None = _as_swap(region, merge)
        plans.append(plan or _as_rebuild(region, (merge,)))
    while (pair := _touching(plans)) is not None:
        joined = tuple(m for plan in pair for m in _merges_of(plan))
        plans = [p for p in plans if p not in pair] + [_as_rebuild(region, joined)]
    return plans


def _merges_of(plan: Swap | Rebuild) -> tuple[Merge, ...]:
    return plan.merges if isinstance(plan, Rebuild) else (plan.merge,)


def _touching(plans: list[Swap | Rebuild]) -> tuple[Swap | Rebuild, Swap | Rebuild] | None:
    """Two plans that remove one operation, or of which one opens a module that the other replaces."""
    owner: dict[fx.Node | Call, Swap | Rebuild] = {}
    for plan in plans:
        nodes = {n for m in _merges_of(plan) for n in m.inside}
        for key in nodes | (_inlined(plan.call, plan.merges) if isinstance(plan, Rebuild) else set()):
            if owner.setdefault(key, plan) is not plan:
                return owner[key], plan
    for plan in plans:
        for call in plan.calls if isinstance(plan, Swap) else ():
            if call in owner:
                return owner[call], plan
    return None


def _as_rebuild(region: Region, merges: tuple[Merge, ...]) -> Rebuild:
    call = _smallest_call(merges)
    for merge in merges:
        _check_rebuildable(region, call, merge)
    return Rebuild(call, merges)


class Unplaceable(Inexact):
    """A merge that can't be written into the network without losing something else."""

    def __init__(self, merge: Merge, reason: str) -> None:
        super().__init__(reason)
        self.merge = merge


# --- modules in a row -------------------------------------------------------------------------------


def _as_swap(region: Region, merge: Merge) -> Swap | None:
    trace = region.trace
    inside = set(merge.inside)
    times = trace.times_called()
    row: list[Call] = []
    for node in merge.inside:
        call = _largest_call(trace, node, inside, region, times)
        if call is None:
            return None
        if call not in row:
            row.append(call)
    source: Any = merge.root
    for call in row:
        entering = {n for node in call.nodes for n in node.all_input_nodes if n not in call.nodes}
        if entering - region.constant != {source}:
            return None
        source = call.output
        users = set(source.users) - trace.checks
        if call is not row[-1] and not any(users <= set(later.nodes) for later in row):
            return None
    if source is not merge.target or (len(row) > 1 and _crosses_an_entry_point(trace, row)):
        return None
    kernels = [j for j, call in enumerate(row) if any(_is_kernel(region, n) for n in call.nodes)]
    return Swap(merge, tuple(row), kernels[0] if kernels else 0)


def _largest_call(
    trace: Trace, node: fx.Node, inside: set[fx.Node], region: Region, times: dict[int, int]
) -> Call | None:
    """The outermost module call around a node that the merge covers wholly."""
    largest = None
    for call in call_of(node).lineage():
        whole = all(n in inside or n in region.constant or n in trace.checks for n in call.nodes)
        if not whole or call is trace.root:
            break
        if isinstance(call.output, fx.Node) and call.output in inside and times[id(call.module)] <= 1:
            largest = call
    return largest


def _is_kernel(region: Region, node: fx.Node) -> bool:
    rule = region.rule(node)
    return rule is not None and rule.kind == "kernel"


def _crosses_an_entry_point(trace: Trace, row: list[Call]) -> bool:
    """Whether the row would change the output of a part of a network that offers its parts one by one."""
    around = _common_call([c.parent for c in row if c.parent is not None])
    return _has_entry_points(around.module) and any(c.parent is not around and not c.part for c in row)


def _has_entry_points(module: nn.Module) -> bool:
    return any(name.startswith("forward_") and callable(getattr(module, name, None)) for name in dir(type(module)))


# --- rebuilding a module ----------------------------------------------------------------------------


def _common_call(calls: list[Call]) -> Call:
    lines = [list(call.lineage()) for call in calls]
    return next(c for c in lines[0] if all(c in line for line in lines[1:]))


def _smallest_call(merges: tuple[Merge, ...]) -> Call:
    calls = [call_of(n) for merge in merges for n in merge.inside]
    return _common_call([c.parent if c.leaf and c.parent is not None else c for c in calls])


def _check_rebuildable(region: Region, call: Call, merge: Merge) -> None:
    name = type(call.module).__name__
    if region.trace.times_called()[id(call.module)] > 1:
        raise Unplaceable(merge, f"it lies in {name}, which is used several times")
    if _has_entry_points(call.module):
        raise Unplaceable(merge, f"it is spread over {name}, whose other methods (forward_…) would be lost")
    inlined = _inlined(call, (merge,))
    if any(has_hooks_at(region, c) for c in inlined if c is not call):
        raise Unplaceable(merge, "it would remove a module with a hook")
    nested = any(not isinstance(a, fx.Node) and _has_nodes(a) for a in (*call.args, *call.kwargs.values()))
    entering = {n for node in call.nodes for n in node.all_input_nodes if n not in call.nodes}
    given = {a for a in (*call.args, *call.kwargs.values()) if isinstance(a, fx.Node)}
    if nested or (call is not region.trace.root and entering - given):
        raise Unplaceable(merge, f"it lies in {name}, which receives more than tensors")


def has_hooks_at(region: Region, call: Call) -> bool:
    return call.path in region.hooked


def _has_nodes(value: Any) -> bool:
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return bool(found)


def _inlined(call: Call, merges: tuple[Merge, ...]) -> set[Call]:
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


def rebuilt(
    region: Region, plan: Rebuild, original: nn.Module, layers: dict[Merge, nn.Module], memo: dict[int, Any]
) -> nn.Module:
    """The new module of a call.

    Args:
        original: the module in the user's network.
        layers: the merged layers.
        memo: copies made so far, by id of the original; children are copied through it.
    """
    call = plan.call
    opened = _inlined(call, plan.merges)
    removed = {n for m in plan.merges for n in m.inside}
    by_target = {m.target: m for m in plan.merges}
    graph = fx.Graph()
    parts: dict[str, Any] = {}
    env: dict[fx.Node, fx.Node] = _placeholders(graph, call, region)
    folded: set[Call] = set()
    prefix = len(call.path) + 1 if call.path else 0
    closed = [_outermost_closed(n, call, opened) for n in call.nodes]
    taken = {c.path[prefix:].split(".")[0] for c in closed if c is not None}
    for node in call.nodes:
        if node.op in ("placeholder", "output") or node in region.trace.checks or node in env:
            continue
        outer = _outermost_closed(node, call, opened)
        if node in by_target:
            layer = layers[by_target[node]]
            name = _free_name("linear" if isinstance(layer, nn.Linear) else "conv", taken)
            taken.add(name)
            parts[name] = layer
            env[node] = graph.call_module(name, (env[by_target[node].root],))
        elif node in removed:
            continue
        elif outer is not None and isinstance(outer.output, fx.Node):
            if outer not in folded:
                folded.add(outer)
                path = outer.path[prefix:]
                parts[path] = copy.deepcopy(original.get_submodule(path), memo)
                args, kwargs = fx.node.map_arg((outer.args, outer.kwargs), lambda n: env[n])
                env[outer.output] = graph.call_module(path, tuple(args), kwargs)
        elif all(n in env for n in node.all_input_nodes):
            env[node] = _copied(node, graph, env, parts, original, prefix, memo)
    graph.output(fx.node.map_arg(call.output, lambda n: env[n]))
    _drop_unused(graph, parts)
    return _module_of(graph, parts)


def _placeholders(graph: fx.Graph, call: Call, region: Region) -> dict[fx.Node, fx.Node]:
    if call is region.trace.root:
        return {
            n: graph.placeholder(str(n.target).lstrip("*")) for n in region.trace.graph.nodes if n.op == "placeholder"
        }
    import inspect

    bound = inspect.signature(call.module.forward).bind(*call.args, **call.kwargs)
    env: dict[fx.Node, fx.Node] = {}
    for name, value in bound.arguments.items():
        values = value if isinstance(value, tuple) and not isinstance(value, fx.Node) else (value,)
        for j, one in enumerate(values):
            label = name if len(values) == 1 else f"{name}_{j}"
            if isinstance(one, fx.Node):
                env.setdefault(one, graph.placeholder(label))
            else:
                graph.placeholder(label, default_value=one)
    return env


def _outermost_closed(node: fx.Node, call: Call, opened: set[Call]) -> Call | None:
    closed = None
    for inner in call_of(node).lineage():
        if inner is call:
            break
        if inner not in opened:
            closed = inner
    return closed


def _copied(
    node: fx.Node, graph: fx.Graph, env: dict[fx.Node, fx.Node], parts: dict[str, Any], original: nn.Module,
    prefix: int, memo: dict[int, Any],
) -> fx.Node:  # fmt: skip
    """One operation as it was."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: env[n])
    target = node.target
    if node.op in ("call_module", "get_attr"):
        target = str(target)[prefix:]
        if node.op == "call_module":
            module = original.get_submodule(target)
            rule = rule_of_module(module)
            if rule is not None and rule.rest:
                raise Inexact(f"the affine part of {type(module).__name__} stands alone")
            parts[target] = copy.deepcopy(module, memo)
        else:
            value: Any = original
            for name in target.split("."):
                value = getattr(value, name)
            parts[target] = copy.deepcopy(value, memo)
    return graph.create_node(node.op, target, tuple(args), dict(kwargs))


def _free_name(name: str, taken: set[str]) -> str:
    candidates = [name, *(f"{name}{j}" for j in range(2, len(taken) + 3))]
    return next(c for c in candidates if c not in taken)


def _drop_unused(graph: fx.Graph, parts: dict[str, Any]) -> None:
    """Remove constants that were computed only for what is gone, and readings of shapes."""
    constant: set[fx.Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        computed = node.op in ("call_function", "call_method") and inputs and all(n in constant for n in inputs)
        if node.op == "get_attr" or computed:
            constant.add(node)
    for node in reversed(list(graph.nodes)):
        reads_shape = node.target is getattr or (node.op == "call_method" and node.target in ("size", "dim"))
        if (node in constant or reads_shape) and not node.users:
            graph.erase_node(node)
    used = {str(n.target) for n in graph.nodes if n.op in ("get_attr", "call_module")}
    for name in set(parts) - used:
        del parts[name]


def _module_of(graph: fx.Graph, parts: dict[str, Any]) -> nn.Module:
    """A graph as a layer or a sequence of layers where it is one, else as a module with its code."""
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
    graph.lint()
    return fx.GraphModule(parts, graph)


# --- the whole network ------------------------------------------------------------------------------


def replaced_modules(
    region: Region, plans: list[Swap | Rebuild], network: nn.Module, layers: dict[Merge, nn.Module],
    memo: dict[int, Any],
) -> None:  # fmt: skip
    """Enter into ``memo``, for every module of the network that changes, its successor."""
    trace = region.trace
    swaps = [p for p in plans if isinstance(p, Swap)]
    for swap in swaps:
        for j, path in enumerate(swap.paths):
            old = network.get_submodule(trace.full_path(path))
            new = _with_rest(layers[swap.merge] if j == swap.host else None, old, memo)
            _take_place(old, new, memo)
    rebuilds = [p for p in plans if isinstance(p, Rebuild)]
    for plan in sorted(rebuilds, key=lambda p: -len(list(p.call.lineage()))):
        old = network.get_submodule(trace.full_path(plan.call.path))
        new = rebuilt(region, plan, old, layers, memo)
        new.training = old.training
        _take_place(old, new, memo)


def _with_rest(layer: nn.Module | None, old: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A merged layer or nothing, followed by what comes after the affine part of the old module."""
    rule = rule_of_module(old)
    rest = rule.rest if rule is not None else ()
    parts = OrderedDict((name, copy.deepcopy(getattr(old, name), memo)) for name in rest)
    parts = OrderedDict((n, m) for n, m in parts.items() if not isinstance(m, nn.Identity))
    if layer is not None:
        parts = OrderedDict([("conv", layer), *parts.items()])
    if not parts:
        return nn.Identity()
    return next(iter(parts.values())) if len(parts) == 1 else nn.Sequential(parts)


def _take_place(old: nn.Module, new: nn.Module, memo: dict[int, Any]) -> None:
    if has_hooks(old):
        copy_hooks(old, new)
    memo[id(old)] = new


def copied(network: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """The network with its successors in place; what didn't change is copied."""
    return copy.deepcopy(network, memo)


def trained_like(layer: nn.Module, sources: list[torch.Tensor], training: bool) -> nn.Module:
    """Give a merged layer the mode and ``requires_grad`` of what it replaces."""
    wanted = [t.requires_grad for t in sources if isinstance(t, nn.Parameter)]
    if wanted and not any(wanted):
        layer.requires_grad_(False)
    return layer.train(training)
