"""Build the graph of a rebuilt module, with merged layers in place of the operations that they replace."""

from __future__ import annotations

import copy
import functools
import inspect
import operator
from collections.abc import Callable
from typing import Any

from torch import fx, nn

from unbranch.convert.interpret.interpretation import Interpretation
from unbranch.convert.plan.plan import Merge
from unbranch.convert.rewrite.pending_sizes import PendingSizes
from unbranch.convert.rewrite.placement import Rebuild, calls_opened_by
from unbranch.convert.trace.execute import attribute
from unbranch.convert.trace.trace import Call, call_of
from unbranch.errors import InexactError
from unbranch.graph.eval_view import deep_copied
from unbranch.graph.operations import is_view_operation, written_to
from unbranch.rules import rule_of_module
from unbranch.rules.value import Affine

Piece = Callable[[dict[Merge, nn.Module], dict[int, Any]], Any]
"""Creates a layer, child or tensor of a rebuilt module from the merged layers and the copies made so far."""


def graph_of(interpretation: Interpretation, plan: Rebuild, original: nn.Module) -> tuple[fx.Graph, dict[str, Piece]]:
    """Return the graph of a rebuilt module, and what it calls and reads, by path.

    Raises:
        InexactError: if something that it reads is merged away.
    """
    call = plan.call
    opened = calls_opened_by(call, plan.merges)
    removed = {n for m in plan.merges for n in m.inside}
    by_target = {m.target: m for m in plan.merges}
    graph = fx.Graph()
    parts: dict[str, Piece] = {}
    env: dict[fx.Node, fx.Node] = _placeholders(graph, call, interpretation)
    folded: set[Call] = set()
    closed = [_outermost_closed(n, call, opened) for n in call.nodes]
    taken = {_inside(interpretation, call, c.path).split(".")[0] for c in closed if c is not None}
    pending = PendingSizes(interpretation, plan.merges)

    def known(node: fx.Node) -> fx.Node:
        if node not in env:
            raise InexactError("another operation reads sizes or values that the merge removes")
        return env[node]

    for node in call.nodes:
        if node.op in ("placeholder", "output") or node in interpretation.trace.checks or node in env:
            continue
        if pending.holds(node, env):
            continue
        outer = _outermost_closed(node, call, opened)
        if node in by_target:
            merge = by_target[node]
            name = _free_name(_name_of(interpretation, merge), taken)
            taken.add(name)
            parts[name] = functools.partial(_layer_of, merge)
            env[node] = graph.call_module(name, (env[by_target[node].root],))
            for size in pending.released(by_target[node], env):
                env[size] = _copied(size, graph, env, parts, original, interpretation, call)
        elif node in removed:
            continue
        elif node in interpretation.trace.moved:  # another rewrite does its work before this one
            env[node] = env[node.all_input_nodes[0]]
        elif outer is not None and isinstance(outer.output, fx.Node):
            if outer not in folded:
                folded.add(outer)
                path = _inside(interpretation, call, outer.path)
                parts[path] = functools.partial(_module_copied, original.get_submodule(path))
                args, kwargs = fx.node.map_arg((outer.args, outer.kwargs), known)
                env[outer.output] = graph.call_module(path, tuple(args), kwargs)
        elif all(n in env for n in node.all_input_nodes):
            env[node] = _copied(node, graph, env, parts, original, interpretation, call)
    graph.output(fx.node.map_arg(call.output, known))
    _drop_unused(graph, parts)
    return graph, parts


def _layer_of(merge: Merge, layers: dict[Merge, nn.Module], _memo: dict[int, Any]) -> nn.Module:
    return layers[merge]


def _module_copied(module: nn.Module, _layers: dict[Merge, nn.Module], memo: dict[int, Any]) -> nn.Module:
    return deep_copied(module, memo)


def _copied_piece(value: Any, _layers: dict[Merge, nn.Module], memo: dict[int, Any]) -> Any:
    return copy.deepcopy(value, memo)


def _placeholders(graph: fx.Graph, call: Call, interpretation: Interpretation) -> dict[fx.Node, fx.Node]:
    if call is interpretation.trace.root:
        return {
            n: graph.placeholder(str(n.target).lstrip("*"))
            for n in interpretation.trace.graph.nodes
            if n.op == "placeholder"
        }
    env: dict[fx.Node, fx.Node] = {}

    def bind(value: Any, node: fx.Node) -> None:
        """Map the nodes in an argument to nodes of the new graph."""
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


def _inside(interpretation: Interpretation, call: Call, path: str) -> str:
    found = interpretation.trace.path_inside(call, path)
    assert found is not None  # checked in place_rebuild.py
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
    node: fx.Node, graph: fx.Graph, env: dict[fx.Node, fx.Node], parts: dict[str, Piece], original: nn.Module,
    interpretation: Interpretation, call: Call,
) -> fx.Node:  # fmt: skip
    """Copy one operation."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: env[n])
    target = node.target
    if node.op == "get_attr" and str(target) in interpretation.trace.made:
        parts[str(target)] = functools.partial(
            _copied_piece, attribute(interpretation.trace.module, str(target)).clone()
        )
    elif node.op in ("call_module", "get_attr"):
        if node.op == "call_module":
            target = _inside(interpretation, call, str(target))
            module = original.get_submodule(target)
            rule = rule_of_module(module)
            if rule is not None and rule.epilogue:
                raise InexactError(f"the affine part of {type(module).__name__} can't be separated from its activation")
            parts[target] = functools.partial(_copied_piece, module)
        else:
            holder, dot, name = str(target).rpartition(".")
            target = f"{_inside(interpretation, call, holder)}.{name}".lstrip(".") if dot else name
            parts[target] = functools.partial(_copied_piece, attribute(original, target))
    return graph.create_node(node.op, target, tuple(args), dict(kwargs))


def _name_of(interpretation: Interpretation, merge: Merge) -> str:
    """Return the name of a merged layer in the rebuilt module."""
    value = interpretation.values[merge.target][merge.root]
    if not isinstance(value, Affine):
        return "conv"
    return "fc" if value.is_grid else "linear" if value.ndim == 0 else "conv"  # "fc" is between reshapes


def _free_name(name: str, taken: set[str]) -> str:
    candidates = [name, *(f"{name}{j}" for j in range(2, len(taken) + 3))]
    return next(c for c in candidates if c not in taken)


def _drop_unused(graph: fx.Graph, parts: dict[str, Piece]) -> None:
    """Remove constants and reads of shapes that nothing uses any more."""
    constant: set[fx.Node] = set()
    family: dict[fx.Node, Any] = {}  # the tensor that a constant is a part of
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
