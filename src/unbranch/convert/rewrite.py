"""Writing merged layers into a copy of the network; what a rewrite doesn't touch stays the module it was."""

from __future__ import annotations

import copy
import inspect
import operator
from collections import OrderedDict
from typing import Any

from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.utils._pytree import tree_leaves

from ..errors import Inexact, InputError
from ..graph.shadow import copy_hooks, deep_copied, has_hooks
from ..rules import rule_of_module
from .inplace import is_view_operation, written_to
from .methods import set_by_class
from .place import Rebuild, Swap, opened_by, takes_one_value
from .plan import Merge
from .prove import attribute
from .rearrange import shapes_of
from .rebuilt import Rebuilt
from .region import CHANGES_SIZE, Region
from .trace import Call, call_of


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
    opened = opened_by(call, plan.merges)
    removed = {n for m in plan.merges for n in m.inside}
    by_target = {m.target: m for m in plan.merges}
    graph = fx.Graph()
    parts: dict[str, Any] = {}
    env: dict[fx.Node, fx.Node] = _placeholders(graph, call, region)
    folded: set[Call] = set()
    closed = [_outermost_closed(n, call, opened) for n in call.nodes]
    taken = {_inside(region, call, c.path).split(".")[0] for c in closed if c is not None}
    pending = _SizesLater(region, plan.merges)
    for node in call.nodes:
        if node.op in ("placeholder", "output") or node in region.trace.checks or node in env:
            continue
        if pending.holds(node, env):
            continue
        outer = _outermost_closed(node, call, opened)
        if node in by_target:
            layer = layers[by_target[node]]
            name = _free_name(_name_of(layer), taken)
            taken.add(name)
            parts[name] = layer
            env[node] = graph.call_module(name, (env[by_target[node].root],))
            for size in pending.released(by_target[node], env):
                env[size] = _copied(size, graph, env, parts, original, region, call, memo)
        elif node in removed:
            continue
        elif node in region.trace.moved:  # its work is done by what another rewrite puts in front of it
            env[node] = env[node.all_input_nodes[0]]
        elif outer is not None and isinstance(outer.output, fx.Node):
            if outer not in folded:
                folded.add(outer)
                path = _inside(region, call, outer.path)
                parts[path] = deep_copied(original.get_submodule(path), memo)
                args, kwargs = fx.node.map_arg((outer.args, outer.kwargs), lambda n: env[n])
                env[outer.output] = graph.call_module(path, tuple(args), kwargs)
        elif all(n in env for n in node.all_input_nodes):
            env[node] = _copied(node, graph, env, parts, original, region, call, memo)
    graph.output(fx.node.map_arg(call.output, lambda n: env[n]))
    _drop_unused(graph, parts)
    whole = _as_layer(graph, parts) if call is region.trace.root or takes_one_value(call) else None
    if whole is not None:
        return whole
    graph.lint()
    return Rebuilt(parts, graph, type(original))


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
        if self._region.order[target] < self._region.order[node]:
            return False
        behind = [n for n in self._region.between(node, target) if n is not node]
        kinds = {rule.kind for n in behind if (rule := self._region.rule(n)) is not None}
        moves = any(n.target in CHANGES_SIZE for n in behind)
        return kinds <= {"elementwise"} and not moves and all(self._region.rule(n) is not None for n in behind)

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
    node: fx.Node, graph: fx.Graph, env: dict[fx.Node, fx.Node], parts: dict[str, Any], original: nn.Module,
    region: Region, call: Call, memo: dict[int, Any],
) -> fx.Node:  # fmt: skip
    """One operation as it was."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: env[n])
    target = node.target
    if node.op == "get_attr" and str(target) in region.trace.made:
        parts[str(target)] = attribute(region.trace.module, str(target)).clone()
    elif node.op in ("call_module", "get_attr"):
        if node.op == "call_module":
            target = _inside(region, call, str(target))
            module = original.get_submodule(target)
            rule = rule_of_module(module)
            if rule is not None and rule.rest:
                raise Inexact(f"the affine part of {type(module).__name__} stands alone")
            parts[target] = copy.deepcopy(module, memo)
        else:
            holder, dot, name = str(target).rpartition(".")
            target = f"{_inside(region, call, holder)}.{name}".lstrip(".") if dot else name
            parts[target] = copy.deepcopy(attribute(original, target), memo)
    return graph.create_node(node.op, target, tuple(args), dict(kwargs))


def _name_of(layer: nn.Module) -> str:
    """What a merged layer is called in its new place."""
    if hasattr(layer, "fc"):  # between reshapes
        return "fc"
    return "linear" if isinstance(layer, nn.Linear) else "conv"


def _free_name(name: str, taken: set[str]) -> str:
    candidates = [name, *(f"{name}{j}" for j in range(2, len(taken) + 3))]
    return next(c for c in candidates if c not in taken)


def _drop_unused(graph: fx.Graph, parts: dict[str, Any]) -> None:
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
            if j < len(swap.calls) or id(old) not in memo:  # a norm that has moved to several layers goes once
                layer = layers[swap.merge] if j == swap.host else None
                keeps = layer is not None and swap.keeps
                new = _with_weights_of(layer, old) if keeps else with_rest(layer, old, memo)
                _take_place(old, new, memo)
    rebuilds = [p for p in plans if isinstance(p, Rebuild)]
    for norm in dict.fromkeys(c for plan in rebuilds for c in plan.emptied):
        old = network.get_submodule(trace.full_path(norm.path))
        if id(old) not in memo:
            _take_place(old, with_rest(None, old, memo), memo)
    for plan in sorted(rebuilds, key=lambda p: -len(list(p.call.lineage()))):
        old = network.get_submodule(trace.full_path(plan.call.path))
        new = rebuilt(region, plan, old, layers, memo)
        new.training = old.training
        if isinstance(new, fx.GraphModule):
            _keep_unread(old, new, trace.read(), memo)
        _take_place(old, new, memo)


def with_rest(layer: nn.Module | None, old: nn.Module, memo: dict[int, Any]) -> nn.Module:
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


def _with_weights_of(layer: Any, old: Any) -> nn.Module:
    """A copy of a convolution with a forward of its own that has the merged layer's weight and bias."""
    new = deep_copied(old, {id(old.weight): layer.weight, id(old.bias): layer.bias})
    new.bias = layer.bias
    return new


_COMMON = ("training", "inplace")


def _holds(module: nn.Module, name: str) -> bool:
    return any(name in table for table in (module._parameters, module._buffers, module._modules))


def _is_data(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(map(_is_data, value))
    if isinstance(value, dict):
        return all(map(_is_data, value.values()))
    if isinstance(value, Tensor):
        return value.is_leaf and not isinstance(value, nn.Parameter)
    return isinstance(value, bool | int | float | str | None)


def _keep_unread(old: nn.Module, new: nn.Module, read: set[int], memo: dict[int, Any]) -> None:
    """Keep parameters and buffers of a rebuilt part's own that its forward doesn't read: other code may."""
    for name, tensor in (*old._parameters.items(), *old._buffers.items()):
        if tensor is None or id(tensor) in read or hasattr(new, name):
            continue
        own = copy.deepcopy(tensor, memo)
        if name in old._parameters:
            new.register_parameter(name, own)  # type: ignore[arg-type]
        else:
            new.register_buffer(name, own, persistent=name not in old._non_persistent_buffers_set)


def _take_place(old: nn.Module, new: nn.Module, memo: dict[int, Any]) -> None:
    """Enter a successor, with what outer code hung on the original, such as the f and i of YOLO's layers."""
    data = {n: v for n, v in vars(old).items() if not n.startswith("_") and _is_data(v)}
    kind: Any = type(old)
    own = set_by_class(kind) | set(_COMMON)
    if any(name not in own and (name in vars(new) or _holds(new, name)) for name in data):
        new = nn.Sequential(OrderedDict([("conv", new)])).train(new.training)  # of its own it has none that collide
    if has_hooks(old):
        copy_hooks(old, new)
    for name, value in data.items():
        if name not in vars(new) and not _holds(new, name):
            vars(new)[name] = copy.deepcopy(value)
    memo[id(old)] = new


def copied(network: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """The network with its successors in place; what didn't change is copied.

    Raises:
        InputError: if something in it can't be.
    """
    for module in network.modules():
        for value in vars(module).values():
            for tensor in tree_leaves(value) if isinstance(value, Tensor | tuple | list | dict) else ():
                if isinstance(tensor, Tensor) and not tensor.is_leaf:  # PyTorch refuses to copy those
                    memo.setdefault(id(tensor), tensor.detach().clone())
    lazy = [path for path, m in network.named_modules() if any(map(is_lazy, m.parameters(recurse=False)))]
    try:
        return deep_copied(network, memo)
    except (RuntimeError, ValueError, TypeError) as error:
        if lazy:
            raise InputError(f"{lazy[0]} is a lazy layer without a shape: run the network once before") from error
        raise InputError(f"{type(network).__name__} can't be copied: {error}") from error


def trained_like(layer: nn.Module, sources: list[Tensor], training: bool) -> nn.Module:
    """Give a merged layer the mode and ``requires_grad`` of what it replaces."""
    wanted = [t.requires_grad for t in sources if isinstance(t, nn.Parameter)]
    if wanted and not any(wanted):
        layer.requires_grad_(False)
    return layer.train(training)
