"""The new module of a call that merges are spread over: its graph, with merged layers in place of operations."""

from __future__ import annotations

import copy
import functools
import inspect
import operator
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.nn.modules.dropout import _DropoutNd

from unbranch.convert.interpret.interpretation import CHANGES_SIZE, Region
from unbranch.convert.passes.rearrange import shapes_of
from unbranch.convert.plan.plan import Merge
from unbranch.convert.rewrite.place import Rebuild, Swap, Unplaceable, opened_by, takes_one_value
from unbranch.convert.rewrite.rebuilt import Rebuilt
from unbranch.convert.trace.execute import attribute
from unbranch.convert.trace.trace import Call, call_of
from unbranch.errors import Inexact
from unbranch.graph.operations import is_view_operation, written_to
from unbranch.graph.shadow import deep_copied
from unbranch.rules import rule_of_base, rule_of_module
from unbranch.rules.value import Affine, Gridded


@dataclass(eq=False)
class Blueprint:
    """A part that is to be rebuilt, when what is inside it has its successors.

    Args:
        old: the part in the user's network.
        graph: of its new forward.
        pieces: what the graph runs and reads, by path.
        layers: the merged layers.
        plain: whether a layer may take its place.
        used: modules and tensors of the user's network, by id, that its forward used.
    """

    old: nn.Module
    graph: fx.Graph
    pieces: dict[str, _Piece]
    layers: dict[Merge, nn.Module]
    plain: bool
    used: set[int]

    def built(self, memo: dict[int, Any]) -> nn.Module:
        """The new part; ``memo`` holds copies made so far, by id of the original: children are copied through it."""
        parts: dict[str, Any] = {name: make(self.layers, memo) for name, make in self.pieces.items()}
        new = _as_layer(self.graph, parts) if self.plain else None
        if new is None:
            self.graph.lint()
            is_layer = rule_of_base(self.old) is not None  # of whose kind it isn't any more: it has no weight, say
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
    region: Region, plans: list[Rebuild], network: nn.Module, layers: dict[Merge, nn.Module]
) -> list[Blueprint]:  # fmt: skip
    """How parts of a trace are rebuilt, the innermost first."""
    trace = region.trace
    used = trace.read() | {id(network.get_submodule(trace.full_path(c.path))) for c in trace.calls} if plans else set()
    found = []
    for plan in sorted(plans, key=lambda p: -len(list(p.call.lineage()))):
        old = network.get_submodule(trace.full_path(plan.call.path))
        graph, pieces = _graph_of(region, plan, old)
        plain = plan.call is trace.root or takes_one_value(plan.call)
        found.append(Blueprint(old, graph, pieces, layers, plain, used))
    return found


def check_rebuilds(region: Region, plans: list[Swap | Rebuild], network: nn.Module) -> None:
    """Find out whether rebuilt parts have all that they read; nothing is copied.

    Raises:
        Unplaceable: for the merges of those that haven't.
    """
    for plan in plans:
        if isinstance(plan, Rebuild):
            try:
                _graph_of(region, plan, network.get_submodule(region.trace.full_path(plan.call.path)))
            except Inexact as error:
                first, *more = ((merge, str(error)) for merge in plan.merges)
                raise Unplaceable(*first, tuple(more)) from error


_Piece = Callable[[dict[Merge, nn.Module], dict[int, Any]], Any]
"""Makes a layer, a part or a tensor of a rebuilt module from the merged layers and the copies made so far."""


def _graph_of(region: Region, plan: Rebuild, original: nn.Module) -> tuple[fx.Graph, dict[str, _Piece]]:
    """The graph of a rebuilt module, and what it runs and reads, by path.

    Raises:
        Inexact: if something that it reads goes with what is merged.
    """
    call = plan.call
    opened = opened_by(call, plan.merges)
    removed = {n for m in plan.merges for n in m.inside}
    by_target = {m.target: m for m in plan.merges}
    graph = fx.Graph()
    parts: dict[str, _Piece] = {}
    env: dict[fx.Node, fx.Node] = _placeholders(graph, call, region)
    folded: set[Call] = set()
    closed = [_outermost_closed(n, call, opened) for n in call.nodes]
    taken = {_inside(region, call, c.path).split(".")[0] for c in closed if c is not None}
    pending = _SizesLater(region, plan.merges)

    def known(node: fx.Node) -> fx.Node:
        if node not in env:
            raise Inexact("what is beside it reads sizes or values that it takes away")
        return env[node]

    for node in call.nodes:
        if node.op in ("placeholder", "output") or node in region.trace.checks or node in env:
            continue
        if pending.holds(node, env):
            continue
        outer = _outermost_closed(node, call, opened)
        if node in by_target:
            merge = by_target[node]
            name = _free_name(_name_of(region, merge), taken)
            taken.add(name)
            parts[name] = functools.partial(_layer_of, merge)
            env[node] = graph.call_module(name, (env[by_target[node].root],))
            for size in pending.released(by_target[node], env):
                env[size] = _copied(size, graph, env, parts, original, region, call)
        elif node in removed:
            continue
        elif node in region.trace.moved:  # its work is done by what another rewrite puts in front of it
            env[node] = env[node.all_input_nodes[0]]
        elif outer is not None and isinstance(outer.output, fx.Node):
            if outer not in folded:
                folded.add(outer)
                path = _inside(region, call, outer.path)
                parts[path] = functools.partial(_module_copied, original.get_submodule(path))
                args, kwargs = fx.node.map_arg((outer.args, outer.kwargs), known)
                env[outer.output] = graph.call_module(path, tuple(args), kwargs)
        elif all(n in env for n in node.all_input_nodes):
            env[node] = _copied(node, graph, env, parts, original, region, call)
    graph.output(fx.node.map_arg(call.output, known))
    _drop_unused(graph, parts)
    return graph, parts


def _layer_of(merge: Merge, layers: dict[Merge, nn.Module], _memo: dict[int, Any]) -> nn.Module:
    return layers[merge]


def _module_copied(module: nn.Module, _layers: dict[Merge, nn.Module], memo: dict[int, Any]) -> nn.Module:
    return deep_copied(module, memo)


def _copied_piece(value: Any, _layers: dict[Merge, nn.Module], memo: dict[int, Any]) -> Any:
    return copy.deepcopy(value, memo)


class _SizesLater:
    """Readings of the size of what is merged away: they read the merged layer's output, where that has the size."""

    def __init__(self, region: Region, merges: tuple[Merge, ...]) -> None:
        self._region = region
        self._removed = {n for m in merges for n in m.inside if n is not m.target}
        self._pending: list[fx.Node] = []

    def holds(self, node: fx.Node, env: dict[fx.Node, fx.Node]) -> bool:
        """Whether a node has to wait, since it reads the size of something that isn't there yet."""
        waits = node in self._region.trace.sizes and any(
            (n in self._removed or n in self._pending) and n not in env for n in node.all_input_nodes
        )
        if waits:
            self._pending.append(node)
        return waits

    def released(self, merge: Merge, env: dict[fx.Node, fx.Node]) -> list[fx.Node]:
        """Readings that can be made now that a merged layer is there, in order."""
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
        """Whether a value has the size of another one, along the axes that are read."""
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
        """Whether a value is passed on: an identity, or dropout, which is one in evaluation."""
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


def _placeholders(graph: fx.Graph, call: Call, region: Region) -> dict[fx.Node, fx.Node]:
    if call is region.trace.root:
        return {
            n: graph.placeholder(str(n.target).lstrip("*")) for n in region.trace.graph.nodes if n.op == "placeholder"
        }
    env: dict[fx.Node, fx.Node] = {}

    def bind(value: Any, node: fx.Node) -> None:
        """Where the nodes of an argument are found in the new graph's."""
        if isinstance(value, fx.Node):
            env.setdefault(value, node)
        elif isinstance(value, tuple | list | dict):
            for key, one in value.items() if isinstance(value, dict) else enumerate(value):
                if isinstance(one, fx.Node | tuple | list | dict):
                    bind(one, graph.call_function(operator.getitem, (node, key)))

    signature = inspect.signature(call.module.forward)
    given: list[tuple[str, Any]] = []
    for name, value in signature.bind(*call.args, **call.kwargs).arguments.items():
        spread = signature.parameters[name].kind is inspect.Parameter.VAR_POSITIONAL
        given += [(f"{name}_{j}", one) for j, one in enumerate(value)] if spread else [(name, value)]
    plain = [isinstance(value, bool | int | float | str | None) for _, value in given]
    defaults = [{"default_value": v} if all(plain[j:]) else {} for j, (_, v) in enumerate(given)]
    nodes = [graph.placeholder(name, **default) for (name, _), default in zip(given, defaults, strict=True)]
    for (_, value), node in zip(given, nodes, strict=True):
        bind(value, node)
    return env


def _inside(region: Region, call: Call, path: str) -> str:
    found = region.trace.path_inside(call, path)
    assert found is not None  # see place.py
    return found


def _outermost_closed(node: fx.Node, call: Call, opened: set[Call]) -> Call | None:
    closed = None
    for inner in call_of(node).lineage():
        if inner is call:
            break
        if inner not in opened:
            closed = inner
    return closed


def _copied(
    node: fx.Node, graph: fx.Graph, env: dict[fx.Node, fx.Node], parts: dict[str, _Piece], original: nn.Module,
    region: Region, call: Call,
) -> fx.Node:  # fmt: skip
    """One operation as it was."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: env[n])
    target = node.target
    if node.op == "get_attr" and str(target) in region.trace.made:
        parts[str(target)] = functools.partial(_copied_piece, attribute(region.trace.module, str(target)).clone())
    elif node.op in ("call_module", "get_attr"):
        if node.op == "call_module":
            target = _inside(region, call, str(target))
            module = original.get_submodule(target)
            rule = rule_of_module(module)
            if rule is not None and rule.rest:
                raise Inexact(f"the affine part of {type(module).__name__} stands alone")
            parts[target] = functools.partial(_copied_piece, module)
        else:
            holder, dot, name = str(target).rpartition(".")
            target = f"{_inside(region, call, holder)}.{name}".lstrip(".") if dot else name
            parts[target] = functools.partial(_copied_piece, attribute(original, target))
    return graph.create_node(node.op, target, tuple(args), dict(kwargs))


def _name_of(region: Region, merge: Merge) -> str:
    """What a merged layer is called in its new place."""
    value = region.values[merge.target][merge.root]
    if isinstance(value, Gridded):  # between reshapes
        return "fc"
    return "linear" if isinstance(value, Affine) and value.map.ndim == 0 else "conv"


def _free_name(name: str, taken: set[str]) -> str:
    candidates = [name, *(f"{name}{j}" for j in range(2, len(taken) + 3))]
    return next(c for c in candidates if c not in taken)


def _drop_unused(graph: fx.Graph, parts: dict[str, _Piece]) -> None:
    """Remove constants that were computed only for what is gone, and readings of shapes."""
    constant: set[fx.Node] = set()
    family: dict[fx.Node, Any] = {}  # what tensor a constant is a part of
    for node in graph.nodes:
        inputs = node.all_input_nodes
        computed = node.op in ("call_function", "call_method") and inputs and all(n in constant for n in inputs)
        if node.op == "get_attr" or computed:
            constant.add(node)
            family[node] = node.target if node.op == "get_attr" else family[inputs[0]] if _shares(node) else node
    writes = {n: family[target] for n in constant if (target := written_to(n)) is not None}
    needed = {n for n in graph.nodes if n not in constant and not (_reads_shape(n) and not n.users)}
    stack = list(needed)
    while stack:
        node = stack.pop()
        also = [w for w, changed in writes.items() if node in family and changed == family[node]]
        new = [n for n in (*node.all_input_nodes, *also) if n not in needed]
        needed.update(new)
        stack += new
    for node in reversed(list(graph.nodes)):
        if (node in constant and node not in needed) or (_reads_shape(node) and not node.users):
            graph.erase_node(node)
    used = {str(n.target) for n in graph.nodes if n.op in ("get_attr", "call_module")}
    for name in set(parts) - used:
        del parts[name]


def _reads_shape(node: fx.Node) -> bool:
    read = node.op == "call_method" and node.target in ("size", "dim")
    return read or node.target in (getattr, operator.getitem, operator.add, operator.sub, operator.floordiv)


def _shares(node: fx.Node) -> bool:
    """Whether a value may share memory with its first input."""
    return written_to(node) is not None or is_view_operation(node) or node.target is getattr


def _as_layer(graph: fx.Graph, parts: dict[str, Any]) -> nn.Module | None:
    """A graph as a layer or a sequence of layers, where it is one."""
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
