"""Write a plan back into the graph that it was made for: everything that isn't merged stays as it was."""

from __future__ import annotations

import operator
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import fx, nn

from unbranch.convert.plan.plan import Merge
from unbranch.convert.trace.trace import Trace
from unbranch.errors import InternalError
from unbranch.extras import library
from unbranch.onnx.emit import Emitter, names_in
from unbranch.onnx.files import Model
from unbranch.onnx.layers import output_of
from unbranch.onnx.operators import FIXED
from unbranch.onnx.planning import GraphPlan
from unbranch.onnx.protos import captured
from unbranch.onnx.tracing import ALSO, NODE, READ, VALUE
from unbranch.onnx.values import to_proto


class Writer:
    """Writes one plan.

    Args:
        model: as it was read.
        planned: its plan.
    """

    def __init__(self, model: Model, planned: GraphPlan) -> None:
        self._model, self._plan, self._trace = model, planned, planned.trace
        self._emit = Emitter(model.opset, set(names_in(model.proto.graph)))
        self._merges = {merge.target: merge for merge in planned.plan.merges}
        self._names: dict[fx.Node, str] = {}
        self._forwarded: dict[fx.Node, fx.Node] = {}

    def written(self) -> Any:
        """Return the new model."""
        onnx = library("onnx", "onnx")
        proto = onnx.ModelProto()
        proto.CopyFrom(self._model.proto)
        nodes = self._ordered()
        graph = proto.graph
        del graph.node[:]
        graph.node.extend(nodes)
        self._clean(proto)
        return proto

    def _needed(self) -> set[fx.Node]:
        """Return the nodes of the trace whose values must be computed."""
        (output,) = (node for node in self._trace.graph.nodes if node.op == "output")
        found: set[fx.Node] = set()
        stack = list(output.all_input_nodes)
        while stack:
            node = stack.pop()
            if node not in found:
                found.add(node)
                merge = self._merges.get(node)
                stack += [*node.all_input_nodes, *node.meta.get(ALSO, ())] if merge is None else [merge.root]
        return found

    def _rename(self, needed: set[fx.Node]) -> None:
        """Let readers of operators that do nothing read the value itself, and give values the names that are read."""
        fixed = {value.name for value in self._model.proto.graph.output}
        for node in self._trace.graph.nodes:
            if node in needed and node.meta.get(NODE) is not None:
                fixed |= set(captured(self._model.proto.graph.node[node.meta[NODE]]))
        for node in self._trace.graph.nodes:
            same = node in needed and node not in self._merges and _does_nothing(self._trace, node)
            if same and node.meta.get(VALUE) not in fixed and node.all_input_nodes[0].op != "get_attr":
                self._forwarded[node] = node.all_input_nodes[0]
        read: dict[fx.Node, set[str]] = {}
        for node in needed - self._forwarded.keys():
            if (
                node not in self._merges
                and node.meta.get(NODE) is not None
                and node.op not in ("placeholder", "get_attr")
            ):
                for was, now in zip(_nodes_in(node.meta[READ]), _nodes_in(node.args), strict=False):
                    if VALUE in was.meta:
                        read.setdefault(self._source(now), set()).add(was.meta[VALUE])
        for merge in self._merges.values():
            if merge.target in needed:
                read.setdefault(self._source(merge.root), set())
        used = {node.meta[VALUE] for node in needed - self._forwarded.keys() if VALUE in node.meta}
        used |= {v.name for v in (*self._model.proto.graph.input, *self._model.proto.graph.initializer)}
        for source, names in read.items():
            own = source.meta.get(VALUE)
            free = own not in fixed and source.op not in ("placeholder", "get_attr") and own not in names
            if free and len(names) == 1 and not names & (fixed | used):
                self._names[source] = next(iter(names))

    def _source(self, node: fx.Node) -> fx.Node:
        """Return the value that operators which do nothing pass on."""
        while node in self._forwarded:
            node = self._forwarded[node]
        return node

    def _name(self, node: fx.Node) -> str:
        """Return the name of a value in the file; what a pass has added gets a new one."""
        node = self._source(node)
        if node not in self._names:
            known = node.meta.get(VALUE)
            self._names[node] = self._emit.free_name(f"{node.name}/value") if known is None else known
        return self._names[node]

    def _nodes_for(self, node: fx.Node) -> Iterator[Any]:
        """Yield the operators that compute one value."""
        merge = self._merges.get(node)
        if merge is not None:
            yield from self._merged(merge)
        elif node.op in ("placeholder", "get_attr") or _is_output_of_several(node):
            return
        elif node.meta.get(NODE) is not None:
            yield from self._kept(node)
        else:
            yield from self._added(node)

    def _merged(self, merge: Merge) -> Iterator[Any]:
        before = len(self._emit.nodes)
        built = self._plan.built[merge]
        known = self._trace.known(merge.root)
        rank = known[0].dim() if known is not None else None
        self._emit.layer(built.layer, self._name(merge.root), self._name(merge.target), rank, built.dtype)
        yield from self._emit.nodes[before:]

    def _kept(self, node: fx.Node) -> Iterator[Any]:
        """Yield the original operator, with other names of inputs if a pass has changed what it reads."""
        original = self._model.proto.graph.node[node.meta[NODE]]
        was, now = _nodes_in(node.meta[READ]), _nodes_in(node.args)
        if FIXED in node.meta:
            yield from self._reshape(node, node.meta[FIXED])
            return
        renamed = {a.meta[VALUE]: self._name(b) for a, b in zip(was, now, strict=False) if VALUE in a.meta}
        own = {n.meta[VALUE]: self._name(n) for n in (node, *node.users) if self._outputs(n, node)}
        if (
            all(a == b for a, b in (*renamed.items(), *own.items()))
            and not self._elsewhere(node)
            and len(was) == len(now)
        ):
            yield original
            return
        if len(was) != len(now):
            yield from self._added(node)
            return
        changed = library("onnx", "onnx").NodeProto()
        changed.CopyFrom(original)
        del changed.input[:]
        changed.input.extend(renamed.get(name, name) for name in original.input)
        for j, name in enumerate(original.output):
            changed.output[j] = own.get(name, name)
        elsewhere = self._elsewhere(node)
        for j, name in enumerate(original.output):
            if name in elsewhere:
                changed.output[j] = self._emit.free_name(f"{name}/unused")
        yield changed

    def _outputs(self, value: fx.Node, operator_: fx.Node) -> bool:
        """Whether a value is an output of an operator."""
        return VALUE in value.meta and (value is operator_ or _is_output_of_several(value))

    def _elsewhere(self, node: fx.Node) -> set[str]:
        """Return those of several outputs that a merged layer computes."""
        return {u.meta[VALUE] for u in node.users if _is_output_of_several(u) and u in self._merges and VALUE in u.meta}

    def _added(self, node: fx.Node) -> Iterator[Any]:
        """Yield operators for what a pass has added."""
        before = len(self._emit.nodes)
        if node.target is operator.add and len(_nodes_in(node.args)) == 2:
            self._emit.operator("Add", [self._name(n) for n in _nodes_in(node.args)], self._name(node))
        elif node.target is torch.reshape and isinstance(node.args[1], tuple | list):
            yield from self._reshape(node, node.args[1])
            return
        else:
            raise InternalError(f"no operator of ONNX for {node.target}")
        yield from self._emit.nodes[before:]

    def _reshape(self, node: fx.Node, shape: Any) -> Iterator[Any]:
        before = len(self._emit.nodes)
        sizes = self._emit.value(torch.tensor(list(shape)), f"{self._name(node)}/shape", torch.int64)
        self._emit.operator("Reshape", [self._name(node.all_input_nodes[0]), sizes], self._name(node))
        yield from self._emit.nodes[before:]

    def _aliases(self, nodes: list[Any]) -> list[Any]:
        """Return identities for outputs whose value has another name now."""
        (output,) = (node for node in self._trace.graph.nodes if node.op == "output")
        wanted = [value.name for value in self._model.proto.graph.output]
        found = []
        for name, node in zip(wanted, _nodes_in(output.args), strict=True):
            if node.op != "get_attr" and self._name(node) != name:
                before = len(self._emit.nodes)
                self._emit.operator("Identity", [self._name(node)], name)
                found += self._emit.nodes[before:]
        missing = {n for node in nodes for n in captured(node)} - {n for node in nodes for n in node.output}
        computed = {n for node in self._model.proto.graph.node for n in node.output if node.op_type != "Constant"}
        if lost := missing & computed - set(self._constant_names()):
            raise InternalError(f"a subgraph reads {sorted(lost)[0]!r}, which was merged")
        return found

    def _constant_names(self) -> Iterable[str]:
        for node in self._trace.graph.nodes:
            if node.op == "get_attr" and VALUE in node.meta:
                yield node.meta[VALUE]

    def _ordered(self) -> list[Any]:
        """Return all operators in their old order, new ones where the operator was whose value they compute."""
        needed, place = self._needed(), -1
        self._rename(needed)
        needed -= self._forwarded.keys()
        found: list[tuple[int, Any]] = []
        for node in self._trace.graph.nodes:
            if node in needed:
                place = max(place, self._place(node))
                found += [(place, operator_) for operator_ in self._nodes_for(node)]
        found += [(len(self._model.proto.graph.node), alias) for alias in self._aliases([n for _, n in found])]
        return [node for _, node in sorted([*self._constants(found), *found], key=lambda item: item[0])]

    def _place(self, node: fx.Node) -> int:
        index = node.meta.get(NODE)
        return -1 if index is None else int(index)

    def _constants(self, nodes: list[tuple[int, Any]]) -> list[tuple[int, Any]]:
        """Return the operators that compute constants which others read, at their places.

        Where the numbers are known, an initialiser of the same name takes the operator's place.
        """
        graph = self._model.proto.graph
        made = {name: (j, node) for j, node in enumerate(graph.node) for name in node.output if name}
        have = {name for _, node in nodes for name in node.output}
        stack = [name for _, node in nodes for name in (*node.input, *captured(node))]
        stack += [value.name for value in graph.output]
        found: dict[int, Any] = {}
        while stack:
            name = stack.pop()
            if name in have or name not in made or made[name][0] in found:
                continue
            value = self._plan.constants.value(name) if name in self._plan.constants else None
            if value is not None and self._model.proto.ir_version >= 4:
                have.add(name)
                self._emit.initializers.append(to_proto(value, name))
                continue
            place, node = made[name]
            found[place] = node
            stack += [*node.input, *captured(node)]
        return list(found.items())

    def _clean(self, proto: Any) -> None:
        """Remove initialisers, inputs of old models and descriptions that belong to nothing now."""
        graph = proto.graph
        read = {n for node in graph.node for n in (*node.input, *captured(node))} | {v.name for v in graph.output}
        before = {tensor.name for tensor in graph.initializer}
        required = {v.name for v in graph.input}
        old = proto.ir_version < 4
        kept = [t for t in graph.initializer if t.name in read or (t.name in required and not old)]
        unused = before - {t.name for t in kept}
        _replace(graph.initializer, [*kept, *self._emit.initializers])
        if old:
            helper = library("onnx", "onnx").helper
            given = [v for v in graph.input if v.name not in unused]
            new = [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in self._emit.initializers]
            _replace(graph.input, [*given, *new])
        values = read | {n for node in graph.node for n in node.output}
        _replace(graph.value_info, [v for v in graph.value_info if v.name in values])
        _replace(graph.quantization_annotation, [q for q in graph.quantization_annotation if q.tensor_name in values])


def _replace(field: Any, values: Iterable[Any]) -> None:
    values = list(values)
    copies = []
    for value in values:
        copy = type(value)()
        copy.CopyFrom(value)
        copies.append(copy)
    del field[:]
    field.extend(copies)


def _nodes_in(value: Any) -> list[fx.Node]:
    """Return the nodes in arguments, in order, as often as they are there."""
    found: list[fx.Node] = []
    fx.node.map_arg(value, found.append)
    return found


def _does_nothing(trace: Trace, node: fx.Node) -> bool:
    """Whether an operator returns its input: Identity, and Dropout and Cast where they do nothing."""
    return node.op == "call_module" and type(trace.layer_of(node)) is nn.Identity


def _is_output_of_several(node: fx.Node) -> bool:
    """Whether a value is one of several outputs of an operator."""
    return node.target is output_of or (node.target is operator.getitem and not isinstance(node.args[1], tuple))
