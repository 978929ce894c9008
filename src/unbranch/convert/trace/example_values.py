"""Shape-only values of the nodes of a trace, for inputs of two sizes."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn

from unbranch.convert.trace.decisions import about_sizes
from unbranch.convert.trace.paths import ControlPath, Shared
from unbranch.convert.trace.trace import Call
from unbranch.graph.meta_mode import MetaMode, ShapeMode
from unbranch.rules import rule_of_function, rule_of_module, users_functions


@dataclass(frozen=True, eq=False)
class ExampleArguments:
    """Shape-only arguments of a forward, for inputs of two sizes.

    Args:
        mode: the mode that the tensors belong to.
        module: the part with shape-only tensors.
        inputs: the arguments by name, for each size; of ``*args`` the first one.
        apart: whether all sizes that aren't fixed differ and are odd, so that equal sizes are the same size.
    """

    mode: ShapeMode
    module: nn.Module
    inputs: tuple[dict[str, Any], dict[str, Any]]
    apart: bool


class ExampleTracer(fx.Tracer):
    """A tracer that evaluates nodes on shape-only tensors.

    Args:
        given: returns the shape-only arguments, or None.
        options: optional arguments that don't have their defaults; ``...`` stands for a traced one.
    """

    calls: list[Call]

    def __init__(self, given: Callable[[], ExampleArguments | None], options: dict[str, Any]) -> None:
        super().__init__(autowrap_functions=users_functions())
        self._options = options
        self._given = given
        self._knowledge: dict[fx.Node, Any] = {}
        self._later: dict[fx.Node, Callable[[], Any]] = {}
        self._mode: ShapeMode | None = None

    def known(self, node: fx.Node) -> Any:
        """Return shape-only values of a node for inputs of two sizes; None if they aren't known."""
        if node not in self._knowledge:
            self._knowledge[node] = None  # failures aren't retried
            later, given = self._later.pop(node, None), self._given()
            try:
                self._knowledge[node] = later() if later is not None else self._computed(node, given)
            except Exception:
                return None
        return self._knowledge[node]

    def _computed(self, node: fx.Node, given: ExampleArguments | None) -> Any:
        if self._mode is None:
            self._mode = MetaMode() if given is None else given.mode
        if node.op == "get_attr":
            value = self._mode.from_tensor(self._raw(str(node.target)).detach())
            return value, value
        if node.op == "placeholder":
            is_open = str(node.target) in self._open
            return None if given is None or is_open else tuple(g[str(node.target)] for g in given.inputs)
        return self._run_twice(node, (node.args, node.kwargs), self.known, given)

    def _run_twice(
        self, node: fx.Node, args: Any, known: Callable[[fx.Node], Any], given: ExampleArguments | None
    ) -> Any:
        inputs: dict[fx.Node, Any] = {}
        fx.node.map_arg(args, lambda n: inputs.setdefault(n, known(n)))
        if any(v is None for v in inputs.values()):
            return None
        part = None if given is None else given.module
        assert self._mode is not None
        with torch.no_grad(), self._mode:
            first = _run(node, args, {n: v[0] for n, v in inputs.items()}, part)
            if all(v[0] is v[1] for v in inputs.values()):  # computed from parameters alone
                return first, first
            return first, _run(node, args, {n: v[1] for n, v in inputs.items()}, part)

    def _known_of_either(self, shared: Shared, values: tuple[Any, ...]) -> Any:
        """Return the values of a node that differs between paths, each from the path that this size takes."""
        found = []
        for size in (0, 1):
            path = next((k for k, w in enumerate(shared.paths) if w.holds[size]), None)
            known = None if path is None else self._known_on(shared.paths[path], values[path])
            if known is None:
                return None
            found.append(known[size])
        return tuple(found)

    def _known_on(self, path: ControlPath, value: Any) -> Any:
        """Return the values of a node of one path, whose operations may have been erased since."""
        if not isinstance(value, fx.Node):
            return value, value
        if self._knowledge.get(value) is None and value in path.nodes:
            args, given = path.args[path.nodes.index(value)], self._given()
            known = self._run_twice(value, args, functools.partial(self._known_on, path), given)
            self._knowledge[value] = known
        return self._knowledge[value] if value in path.nodes else self.known(value)

    def _raw(self, path: str) -> Any:
        """Return the tensor at a path, which the module's own tables would return as a proxy."""
        holder, _, name = path.rpartition(".")
        module = self.root.get_submodule(holder)
        for table in (module._parameters, module._buffers):
            if name in table:
                return dict(table)[name]
        return getattr(module, name)

    @property
    def _open(self) -> list[str]:
        return [name for name, value in self._options.items() if value is ...]

    def is_open(self, node: fx.Node) -> bool:
        """Whether a value is, or is computed from, an optional argument with an unknown value."""
        return bool(self._open) and about_sizes(node, self._open)

    def is_layers(self, node: fx.Node) -> bool:
        """Whether a value is the output of a layer, or arithmetic on one, and so a tensor for every input."""
        stack, seen = [node], 0
        while stack and seen < 32:
            one, seen = stack.pop(), seen + 1
            if one.op == "call_module":
                module = self.root.get_submodule(str(one.target))
                if rule_of_module(module) is not None or type(module).__module__ in _OF_TENSORS:
                    return not isinstance(module, nn.MultiheadAttention)
            elif one.target in _ARITHMETIC:
                stack += [n for n in one.args if isinstance(n, fx.Node)]
            elif one.op == "call_function" and (rule := rule_of_function(one.target)) and rule.kind != "view":
                return True
        return False

    def is_parameter(self, path: str) -> bool:
        """Whether the tensor at a path is a parameter."""
        return isinstance(self._raw(path), nn.Parameter)

    def device_of(self, node: fx.Node) -> torch.device | None:
        """Return the device of a value that is computed from parameters alone."""
        while node.op != "get_attr":
            if not node.all_input_nodes:
                return None
            node = node.all_input_nodes[0]
        device: torch.device = self._raw(str(node.target)).device
        return device


def _run(node: fx.Node, given: Any, values: dict[fx.Node, Any], part: nn.Module | None) -> Any:
    args, kwargs = fx.node.map_arg(given, lambda n: values[n])
    if node.op == "call_module":
        if part is None:
            raise RuntimeError("the part isn't known")
        return part.get_submodule(str(node.target))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


_OF_TENSORS = {"torch.nn.modules.activation", "torch.nn.modules.normalization", "torch.nn.modules.dropout"}
_ARITHMETIC = {operator.add, operator.sub, operator.mul, operator.truediv, operator.iadd, operator.imul, torch.add}
