"""From an ONNX graph to a trace, the form that the converter works on."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from unbranch.convert.passes.grids import share_grids
from unbranch.convert.passes.sums import order_sums
from unbranch.convert.trace.trace import Call, Trace
from unbranch.errors import InputError, UnbranchError
from unbranch.extras import library
from unbranch.onnx.constants import Constants
from unbranch.onnx.files import Model
from unbranch.onnx.layers import Opaque, output_of
from unbranch.onnx.operators import FIXED, LINEAR, Operator, Shapes
from unbranch.onnx.operators_views import VIEWS
from unbranch.onnx.protos import captured
from unbranch.onnx.shapes import Types
from unbranch.onnx.values import DTYPES

VALUE, NODE, READ, ALSO = "value", "onnx", "read", "also"
"""Keys of a node's ``meta``: its value's name in the file, the index of its operator, its arguments as read, and what
the operator reads beside them, such as a computed shape."""
OWN = ("", "ai.onnx")


class GraphReader:
    """Reads the main graph of a model; subgraphs and functions are left as they are.

    Args:
        model: the model.
        constants: its constants.
        types: of all values, at each size.
    """

    def __init__(self, model: Model, constants: Constants, types: tuple[Types, ...]) -> None:
        self.model, self.opset, self.constants, self._types = model, model.opset, constants, types
        self.root = nn.Module()
        self.fx = fx.Graph()
        self._values: dict[str, fx.Node] = {}
        self._index = -1
        self._call = Call("", self.root, None)
        self._calls = [self._call]

    def read(self) -> Trace:
        """Return the trace of the graph."""
        graph = self.model.proto.graph
        for value in graph.input:
            if value.name not in self.constants:
                self._name(self.fx.placeholder(re.sub(r"\W", "_", value.name) or "x"), value.name)
        self._call.args = tuple(self._values.values())
        for index, node in enumerate(graph.node):
            self._index = index
            if not node.output or node.output[0] not in self.constants:
                self._read_node(node)
        self._index = len(graph.node)
        outputs = tuple(self._operand(value.name) for value in graph.output)
        self._call.output = outputs
        self._placed(self.fx.output(outputs))
        self._drop_dead()
        for node in self.fx.nodes:
            node.meta[READ] = node.args
        trace = Trace("", self.root, self.fx, self._calls, {}, known=self._known)
        share_grids(trace)
        order_sums(trace)
        trace.refresh()
        return trace

    def _drop_dead(self) -> None:
        """Erase operators whose values nothing needs: they would seem to read what they are computed from."""
        live: set[fx.Node] = set()
        stack = [node for node in self.fx.nodes if node.op == "output"]
        while stack:
            node = stack.pop()
            if node not in live:
                live.add(node)
                stack += [*node.all_input_nodes, *node.meta.get(ALSO, ())]
        for node in reversed(list(self.fx.nodes)):
            if node not in live and node.op != "placeholder":
                for call in node.meta["call"].lineage():
                    call.nodes.remove(node)
                self.fx.erase_node(node)
        self._calls = [call for call in self._calls if call.nodes or call is self._call]

    # --- what an operator asks for

    def constant(self, name: str) -> Tensor | None:
        return self.constants.value(name) if name in self.constants else None

    def variable(self, name: str) -> fx.Node | None:
        return None if name in self.constants else self._values.get(name)

    def node_of(self, name: str) -> fx.Node | None:
        return self._operand(name) if name in self._values or self.constant(name) is not None else None

    def shapes(self, name: str) -> Shapes | None:
        first, second = (types.get(name) for types in self._types[:2])
        if first is None or second is None or first.shape is None or second.shape is None:
            return None
        return (first.shape, second.shape) if self._is_typical(name) else None

    def _is_typical(self, name: str) -> bool:
        """Whether the first two runs tell which axes of a value have a fixed size."""
        shapes = [found.shape for types in self._types if (found := types.get(name)) is not None and found.shape]
        if len({len(shape) for shape in shapes}) > 1:
            return False
        return all(len(set(sizes)) == 1 or sizes[0] != sizes[1] for sizes in zip(*shapes, strict=True))

    def is_fixed(self, name: str) -> bool:
        """Whether all axes of a value but the first have the same size in all runs."""
        known = [types.get(name) for types in self._types]
        shapes = {None if found is None or found.shape is None else found.shape[1:] for found in known}
        return len(shapes) == 1 and None not in shapes

    def element(self, name: str) -> int:
        found = self._types[0].get(name)
        return 0 if found is None else found.element

    def layer(self, name: str, module: nn.Module, x: fx.Node) -> fx.Node:
        return self._module(name, module, (x,))

    def function(self, function: Callable[..., Any], *arguments: Any) -> fx.Node:
        return self._placed(self.fx.call_function(function, arguments))

    # --- nodes

    def _read_node(self, node: Any) -> None:
        names = list(node.output)
        found = self._understood(node)
        if found is None:
            found = self._opaque(node)
        values = found if isinstance(found, list) else [found]
        for name, value in zip(names, values, strict=True):
            if name:
                self._name(value, name)
        last = values[-1]
        if found is not None and FIXED not in last.meta:
            seen = {*last.all_input_nodes, *(n for source in last.all_input_nodes for n in source.all_input_nodes)}
            others = (self._values[name] for name in node.input if name in self._values)
            last.meta[ALSO] = tuple(other for other in others if other not in seen and other.op != "get_attr")

    def _understood(self, node: Any) -> Any:
        """Return the values of a node's outputs, None if it can't be interpreted."""
        read = {**LINEAR, **VIEWS}.get(node.op_type) if node.domain in OWN else None
        if read is None or not self._is_floating(node):
            return None
        onnx = library("onnx", "onnx")
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        op = Operator(node.op_type, node.name, attributes, tuple(node.input), tuple(node.output), self)
        try:
            return read(op)
        except UnbranchError:
            raise
        except (KeyError, IndexError, ValueError, TypeError, RuntimeError, ZeroDivisionError):
            return None  # attributes that don't fit its inputs: it stays as it is

    def _is_floating(self, node: Any) -> bool:
        dtype = DTYPES.get(self.element(node.output[0]))
        return dtype is not None and dtype.is_floating_point

    def _opaque(self, node: Any) -> Any:
        names = [*node.input, *captured(node)]
        inputs = tuple(self._operand(name) for name in names if name)
        whole = self._module(node.name or node.output[0], Opaque(node.op_type), inputs)
        if len(node.output) == 1:
            return whole
        return [self.function(output_of, whole, j) for j in range(len(node.output))]

    def _operand(self, name: str) -> fx.Node:
        """Return the node of a value; constants get one when they are first read."""
        if name in self._values:
            return self._values[name]
        value = self.constants.value(name) if name in self.constants else None
        if name not in self.constants and name not in self._types[0]:
            raise InputError(f"{self.model.name}: the value {name!r} is read, but nothing computes it")
        attribute = f"constant_{len(self._values)}"
        setattr(self.root, attribute, value)
        with self.fx.inserting_before(self._first()):
            node = self.fx.create_node("get_attr", attribute)
        node.meta |= {"call": self._call, NODE: None}
        self._call.nodes.insert(0, node)
        self._values[name] = node
        node.meta[VALUE] = name
        return node

    def _first(self) -> fx.Node:
        first: fx.Node = next(iter(self.fx.nodes))
        return first

    def _module(self, name: str, module: nn.Module, inputs: tuple[fx.Node, ...]) -> fx.Node:
        path = _free(re.sub(r"\.", "_", name) or "operator", self.root)
        self.root.add_module(path, module)
        node = self.fx.call_module(path, inputs)
        call = Call(path, module, self._call, inputs, {}, node, [node], leaf=True)
        self._calls.append(call)
        self._call.nodes.append(node)
        node.meta |= {"call": call, NODE: self._index}
        return node

    def _placed(self, node: fx.Node) -> fx.Node:
        node.meta |= {"call": self._call, NODE: self._index}
        if node.op != "output":
            self._call.nodes.append(node)
        return node

    def _name(self, node: fx.Node, name: str) -> None:
        node.meta |= {VALUE: name, "call": node.meta.get("call", self._call), NODE: node.meta.get(NODE)}
        if node.op == "placeholder":
            self._call.nodes.append(node)
        self._values[name] = node

    def _known(self, node: fx.Node) -> Any:
        """Return shape-only values of a node at two sizes, or None."""
        if node.target is torch.split:
            parts = sorted(node.users, key=lambda user: user.args[1])  # type: ignore[arg-type,return-value]
            known = [self._known(part) for part in parts]
            return None if None in known else tuple(tuple(k[j] for k in known) for j in range(2))
        name = node.meta.get(VALUE)
        shapes = None if name is None else self.shapes(name)
        return None if shapes is None else tuple(torch.empty(shape, device="meta") for shape in shapes)


def read_trace(model: Model, constants: Constants, types: tuple[Types, ...]) -> Trace:
    """Return the trace of a model's main graph."""
    trace = GraphReader(model, constants, types).read()
    trace.retrace = functools.partial(read_trace, model, constants, types)
    return trace


def _free(name: str, root: nn.Module) -> str:
    """Return a name that a module doesn't have yet."""
    found, j = name, 1
    while hasattr(root, found):
        found, j = f"{name}_{j}", j + 1
    return found
