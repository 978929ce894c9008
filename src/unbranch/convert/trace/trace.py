"""The graph of a module, and which module call each operation belongs to."""

from __future__ import annotations

import inspect
import operator
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from functools import reduce
from typing import Any

import torch
from torch import fx, nn

from unbranch.graph.operations import reads_size
from unbranch.rules import Rule, rule_of_function, rule_of_method, rule_of_module

MADE = "_tensor_constant"  # prefix of torch.fx for tensors that a forward creates
MOVED = "_moved"  # prefix for scales and shifts of norms that were moved


@dataclass(eq=False)
class Call:
    """One call of a module in a trace.

    Args:
        path: the module's path from the traced root.
        nodes: every operation inside, in order; a leaf has one.
        args, kwargs, output: arguments and output, with nodes in place of tensors.
        leaf: whether it is a single operation.
        part: whether it is only the affine part of its module, such as the norm of a norm-and-activation layer.
        branches: whether its forward has several control-flow paths, so that the nodes aren't all that it may run.
    """

    path: str
    module: nn.Module
    parent: Call | None
    args: Any = ()
    kwargs: Any = field(default_factory=dict)
    output: Any = None
    nodes: list[fx.Node] = field(default_factory=list)
    leaf: bool = False
    part: bool = False
    branches: bool = False

    def lineage(self) -> Iterator[Call]:
        """Yield this call and those that enclose it, innermost first."""
        call: Call | None = self
        while call is not None:
            yield call
            call = call.parent


@dataclass(eq=False)
class Trace:
    """The graph of one module.

    Args:
        path: the module's path from the network's root.
        calls: every module call, the root's first.
        failures: paths of modules that couldn't be traced, and why.
        known: returns shape-only values of a node for inputs of two sizes, or None.
        with_options: traces the module with other optional arguments, or returns why it can't; ``...`` stands for a
            traced one.
        part_with_options: traces the module at a path from here on its own, likewise.
        hidden: paths of modules that only some control-flow paths call, which the graph doesn't show.
        unshared: paths of parameters and buffers that only some control-flow paths read.
        checks: assertions about shapes, and what is computed for them alone.
        sizes: reads of shapes, and what is computed from them alone.
        made: names of tensors that only the traced module holds: created by the forward, or from moved norms.
        moved: norms that were moved, by the operations that replace them.
        retrace: traces the module again, without moved norms.
    """

    path: str
    module: nn.Module
    graph: fx.Graph
    calls: list[Call]
    failures: dict[str, str]
    known: Callable[[fx.Node], Any] = lambda _node: None
    with_options: Callable[[dict[str, Any]], Trace | str] = lambda _options: "it can't be traced again"
    part_with_options: Callable[[str, dict[str, Any]], Trace | str] = lambda _path, _options: (
        "it can't be traced on its own"
    )
    hidden: set[str] = field(default_factory=set)
    unshared: set[str] = field(default_factory=set)
    checks: set[fx.Node] = field(init=False)
    sizes: set[fx.Node] = field(init=False)
    made: set[str] = field(init=False)
    moved: dict[fx.Node, tuple[Call, ...]] = field(default_factory=dict)
    retrace: Callable[[], Trace] = field(init=False)
    _layers: dict[str, nn.Module] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.refresh()

    def refresh(self) -> None:
        """Recompute ``sizes``, ``checks`` and ``made`` after the graph has changed."""
        self.sizes = _sizes(self.graph)
        self.checks = _checks(self.graph, self.sizes)
        read = {str(node.target) for node in self.graph.nodes if node.op == "get_attr"}
        self.made = {name for name in read if name.startswith((MADE, MOVED))}

    @property
    def root(self) -> Call:
        """The call of the traced module."""
        return self.calls[0]

    def read(self) -> set[int]:
        """Return the ids of parameters and buffers that the forward reads itself instead of calling their module."""
        return self._ids({str(node.target) for node in self.graph.nodes if node.op == "get_attr"} | self.unshared)

    def read_on_some_ways(self) -> set[int]:
        """Return the ids of those that only some control-flow paths read."""
        return self._ids(self.unshared)

    def _ids(self, paths: set[str]) -> set[int]:
        return {id(reduce(getattr, path.split("."), self.module)) for path in paths}

    def insert_after(self, node: fx.Node, function: Callable[..., Any], args: tuple[Any, ...]) -> fx.Node:
        """Insert an operation after a node, in the same call."""
        with self.graph.inserting_after(node):
            new = self.graph.call_function(function, args)
        new.meta["call"] = call_of(node)
        for call in call_of(node).lineage():
            call.nodes.insert(call.nodes.index(node) + 1, new)
        return new

    def insert_before(self, node: fx.Node, function: Callable[..., Any] | str, args: tuple[Any, ...]) -> fx.Node:
        """Insert an operation before a node, in the same call."""
        with self.graph.inserting_before(node):
            if isinstance(function, str):
                new = self.graph.call_method(function, args)
            else:
                new = self.graph.call_function(function, args)
        new.meta["call"] = call_of(node)
        for call in call_of(node).lineage():
            call.nodes.insert(call.nodes.index(node), new)
        return new

    def erase(self, node: fx.Node) -> None:
        """Erase an operation that nothing reads."""
        for call in call_of(node).lineage():
            call.nodes.remove(node)
        self.graph.erase_node(node)

    def readers(self, node: fx.Node) -> set[fx.Node]:
        """Return the operations that read a value, other than its size."""
        return set(node.users) - self.sizes - self.checks

    def seen_by(self, hooked: Collection[str]) -> set[fx.Node]:
        """Return the inputs and outputs of the modules at some paths."""
        found: set[fx.Node] = set()
        for call in self.calls:
            if call.path in hooked:
                fx.node.map_arg((call.args, call.kwargs, call.output), found.add)
        return found

    def layer_of(self, node: fx.Node) -> nn.Module:
        """Return the module that an operation calls."""
        path = str(node.target)
        if path not in self._layers:
            self._layers[path] = self.module.get_submodule(path)
        return self._layers[path]

    def rule(self, node: fx.Node) -> Rule | None:
        """Return the rule of an operation or layer, or None."""
        if node.op == "call_module" and not node.meta.get("passes"):
            return rule_of_module(self.layer_of(node))
        if node.op == "call_function":
            return rule_of_function(node.target)
        return rule_of_method(str(node.target)) if node.op == "call_method" else None

    def times_called(self) -> Counter[int]:
        """Count the calls of each module, by id."""
        return Counter(id(call.module) for call in self.calls if not call.part)

    def path_inside(self, call: Call, path: str) -> str | None:
        """Return the path from a call's module of a part given by its path from the root; None if it isn't inside.

        A module that is registered in several places is traced under one of its paths.
        """
        if not call.path or path.startswith(f"{call.path}."):
            return path[len(call.path) :].lstrip(".")
        part = self.module.get_submodule(path)
        return next((p for p, m in call.module.named_modules(remove_duplicate=False) if m is part), None)

    def full_path(self, path: str) -> str:
        """Return a path from the network's root."""
        return ".".join(p for p in (self.path, path) if p)


def call_of(node: fx.Node) -> Call:
    """Return the innermost module call that a node belongs to."""
    return node.meta["call"]  # type: ignore[no-any-return]


def forward_of(module: nn.Module) -> Any:
    """Return the function that a module's class defines as its forward; for ScriptModules it isn't a function."""
    return inspect.unwrap(inspect.getattr_static(type(module), "forward", None))


def has_rules_inside(module: nn.Module) -> bool:
    """Whether anything in a module could be part of a merge: layers, or parameters that its forward computes with."""
    return any(rule_of_module(m) is not None or _computes_itself(m) for m in module.modules())


def _computes_itself(module: nn.Module) -> bool:
    """Whether a forward that isn't PyTorch's has parameters to compute with."""
    forward = forward_of(module)
    users = not (getattr(forward, "__module__", None) or "").startswith("torch.")
    return users and any(p.dim() > 1 for p in module.parameters(recurse=False))


def _sizes(graph: fx.Graph) -> set[fx.Node]:
    about_shape: set[fx.Node] = set()
    for node in graph.nodes:
        inputs = node.all_input_nodes
        if reads_size(node) or (node.op == "call_function" and inputs and all(n in about_shape for n in inputs)):
            about_shape.add(node)
    return about_shape


def _checks(graph: fx.Graph, about_shape: set[fx.Node]) -> set[fx.Node]:
    checks: set[fx.Node] = set()
    for node in reversed(list(graph.nodes)):
        if node in about_shape and (
            node.target is torch._assert or (node.users and all(u in checks for u in node.users))
        ):
            checks.add(node)
    return checks


def follows_a_size(value: Any) -> bool:
    """Whether a number is given, or follows from a size by additions and subtractions alone."""
    if not isinstance(value, fx.Node):
        return isinstance(value, int)
    if value.op == "call_method":
        return value.target == "size"
    if value.target is operator.getitem:
        whole = value.args[0]
        return isinstance(whole, fx.Node) and (whole.target == "size" or whole.target is getattr)
    return value.target in (operator.add, operator.sub) and all(map(follows_a_size, value.args))
