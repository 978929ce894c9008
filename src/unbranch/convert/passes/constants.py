"""What a forward computes from parameters and buffers alone, evaluated in the order in which it is written."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from unbranch.convert.trace.decisions import either
from unbranch.convert.trace.execute import attribute, run_node
from unbranch.convert.trace.trace import Trace
from unbranch.errors import InexactError
from unbranch.graph.float64 import Float64
from unbranch.graph.operations import is_view_operation


class Constants:
    """The constants of a trace and their values in float64.

    Constants that have a parameter or an operation in common are evaluated together and in order, so that what one
    operation writes in place (a kernel filled row by row, ``out=``, a mask multiplied in) is there for the next, as in
    the forward itself. The network's own tensors aren't written to.

    Args:
        differentiable: whether values carry gradients to the parameters; they are evaluated anew after ``forget``.
    """

    def __init__(self, trace: Trace, differentiable: bool) -> None:
        self._trace, self._differentiable = trace, differentiable
        self._order = {node: j for j, node in enumerate(trace.graph.nodes)}
        self.nodes = {n for n in self._order if n.op == "get_attr"}
        for node in self._order:
            sources = node.all_input_nodes if node.op in ("call_function", "call_method") else []
            if sources and node.target is not either and all(n in self.nodes for n in sources):
                self.nodes.add(node)
        self._groups = self._grouped()
        self._values: dict[fx.Node, Any] = {}
        self._written: dict[int, bool] = {}

    def __contains__(self, node: fx.Node) -> bool:
        return node in self.nodes

    def forget(self) -> None:
        """Evaluate differentiable values anew from now on."""
        if self._differentiable:
            self._values.clear()

    def value(self, node: fx.Node) -> Any:
        """The value that what reads a constant sees.

        Raises:
            InexactError: if it is written to between two uses.
        """
        if node not in self._values:
            if node.op == "get_attr" and len(self._groups[node]) == 1:
                return attribute(self._trace.module, str(node.target))
            self._evaluate(self._groups[node])
        return self._values[node]

    def leaves(self, node: fx.Node) -> Iterator[Tensor]:
        """The parameters and buffers that a constant is computed from."""
        written = self._is_written(node)
        for source in self._groups[node] if written else self._below(node):
            if source.op == "get_attr":
                value = attribute(self._trace.module, str(source.target))
                if isinstance(value, Tensor):
                    yield value

    def launches(self, node: fx.Node) -> int:
        """Operations, but for views, that compute a constant anew in each forward."""
        nodes = self._groups[node] if self._is_written(node) else self._below(node)
        return sum(n.op != "get_attr" and not is_view_operation(n) for n in nodes)

    def _grouped(self) -> dict[fx.Node, list[fx.Node]]:
        """For each constant those that it shares a tensor or an operation with, in order."""
        group: dict[fx.Node, list[fx.Node]] = {}
        by_target: dict[str, fx.Node] = {}
        for node in self._order:
            if node not in self.nodes:
                continue
            group[node] = [node]
            near = [n for n in node.all_input_nodes if n in self.nodes]
            if node.op == "get_attr":
                near += [by_target[str(node.target)]] if str(node.target) in by_target else []
                by_target[str(node.target)] = node
            for other in near:
                if group[other] is not group[node]:
                    joined = sorted({*group[other], *group[node]}, key=self._order.__getitem__)
                    for member in joined:
                        group[member] = joined
        return group

    def _is_written(self, node: fx.Node) -> bool:
        group = self._groups[node]
        if id(group) not in self._written:
            if len(group) > 1:
                self._evaluate(group)
            self._written.setdefault(id(group), False)
        return self._written[id(group)]

    def _evaluate(self, group: list[fx.Node]) -> None:
        found, written = self._run(group, keep=self._written.get(id(group), False))
        if written and not self._written.get(id(group), False):
            found, _ = self._run(group, keep=True)
        self._written[id(group)] = written or self._written.get(id(group), False)
        self._values |= found

    def _run(self, group: list[fx.Node], *, keep: bool) -> tuple[dict[fx.Node, Any], bool]:
        """Values as their readers see them, and whether anything was written to; ``keep`` copies at each reader."""
        members = set(group)
        readers = {u for n in group for u in n.users} - members
        values: dict[fx.Node, Any] = {}
        kept: dict[fx.Node, Any] = {}
        versions: dict[fx.Node, int] = {}
        with warnings.catch_warnings(), torch.set_grad_enabled(self._differentiable), Float64() as run:
            warnings.simplefilter("ignore")
            for node in sorted(members | readers, key=self._order.__getitem__):
                if node in members:
                    values[node] = self._value(node, values)
                    versions[node] = _version(values[node])
                elif keep:
                    self._keep(node, members, values, kept, run)
            written = run.wrote or any(_version(values[n]) != v for n, v in versions.items())
            result = {n: v for n, v in values.items() if n not in kept} | kept
        return result, written

    def _value(self, node: fx.Node, values: dict[fx.Node, Any]) -> Any:
        if self._differentiable and node.target in ("detach", torch.detach):
            # A border padded with a detached norm's value moves with the norm in the map that is differentiated.
            return values[node.all_input_nodes[0]]
        return run_node(node, values, self._trace.module)

    def _keep(
        self, reader: fx.Node, members: set[fx.Node], values: dict[fx.Node, Any], kept: dict[fx.Node, Any], run: Any
    ) -> None:
        for node in reader.all_input_nodes:
            if node not in members:
                continue
            value = run.values(values[node])
            value = value.clone() if isinstance(value, Tensor) else value
            known = kept.setdefault(node, value)
            if isinstance(value, Tensor) and known is not value and not torch.equal(known, value):
                raise InexactError("a kernel is written to between two uses")

    def _below(self, node: fx.Node) -> set[fx.Node]:
        found, stack = {node}, [node]
        while stack:
            sources = [n for n in stack.pop().all_input_nodes if n not in found]
            found.update(sources)
            stack += sources
        return found


def _version(value: Any) -> int:
    if not isinstance(value, Tensor):
        return 0
    try:
        return value._version
    except RuntimeError:  # made in inference mode
        return 0
