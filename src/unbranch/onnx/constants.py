"""Constants of an ONNX graph: initialisers, constant nodes, and what is computed from them alone."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unbranch.extras import library
from unbranch.onnx.files import Model
from unbranch.onnx.shapes import Types, types_at_two_sizes
from unbranch.onnx.values import DTYPES, NUMBERS, of_array, to_array, to_proto, to_tensor

FOLDED = frozenset(
    {"Abs", "Add", "Cast", "Concat", "ConstantOfShape", "Div", "Exp", "Expand", "Flatten", "Gather", "Identity", "Mul"}
    | {"Neg", "Pow", "Reciprocal", "Reshape", "Shape", "Slice", "Sqrt", "Squeeze", "Sub", "Tile", "Transpose"}
    | {"Unsqueeze"}
)
"""Operators that are computed if all their inputs are constant. QuantizeLinear and the like aren't among them."""
SMALL = 1024  # numbers of a constant that may be a shape
LARGEST = 1 << 26  # numbers of a computed constant


class Constants:
    """The constants of the main graph by name, read when they are needed.

    Args:
        model: the model.
        types: of all values, at two sizes. Shapes that are equal at both are constants.
    """

    def __init__(self, model: Model, types: tuple[Types, Types]) -> None:
        self._model, self._types = model, types
        graph = model.proto.graph
        overridable = {value.name for value in graph.input} if model.proto.ir_version >= 4 else set()
        self._protos = {t.name: t for t in graph.initializer if t.name not in overridable}
        self._nodes: dict[str, Any] = {}
        self._values: dict[str, Tensor | None] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._protos or name in self._nodes

    def computed(self) -> dict[str, Any]:
        """Return small constants that operators compute, as initialisers by name."""
        values = {name: self._values[name] for name in self._nodes}
        return {n: to_proto(v, n) for n, v in values.items() if v is not None and v.numel() <= SMALL}

    def take(self, node: Any) -> bool:
        """Record the output of a node if it is constant, and return whether it is."""
        if node.domain not in ("", "ai.onnx") or len(node.output) != 1:
            return False
        value = self._of_types(node)
        if value is None and (
            node.op_type == "Constant" or (node.op_type in FOLDED and all(not n or n in self for n in node.input))
        ):
            value = self._computed(node)
        if value is None:
            return False
        self._nodes[node.output[0]] = node
        self._values[node.output[0]] = value
        return True

    def value(self, name: str) -> Tensor | None:
        """Return a constant's numbers; None if the name is of no constant, or PyTorch has no such dtype."""
        if name not in self._values and name in self._protos:
            self._values[name] = to_tensor(self._protos[name], self._model)
        return self._values.get(name)

    def _of_types(self, node: Any) -> Tensor | None:
        """Return what follows from the types of variables: a shape, or a constant in the type of a variable."""
        if node.op_type == "Shape" and not node.attribute:
            first, second = (types.get(node.input[0]) for types in self._types)
            known = first is not None and second is not None and first.shape is not None
            return torch.tensor(first.shape) if known and first.shape == second.shape else None  # type: ignore[union-attr]
        if node.op_type == "CastLike" and node.input[0] in self:
            like = self._types[0].get(node.input[1])
            value = self.value(node.input[0])
            dtype = None if like is None else DTYPES.get(like.element)
            return None if dtype is None or value is None else value.to(dtype)
        return None

    def _computed(self, node: Any) -> Tensor | None:
        """Compute a node's output from constants."""
        values = [self.value(name) for name in node.input if name]
        if any(v is None or v.numel() > LARGEST for v in values):
            return None
        known = {n: v for n, v in zip(filter(None, node.input), values, strict=True) if v is not None}
        try:
            return _run(node, known, self._model)
        except Exception:  # an operator that the evaluator hasn't, or arguments that don't fit
            return None


def settle(model: Model) -> tuple[Constants, tuple[Types, Types]]:
    """Return the constants of a model and the types of its values, which follow from each other."""
    computed: dict[str, Any] = {}
    while True:
        types = types_at_two_sizes(model, computed)
        constants = Constants(model, types)
        for node in model.proto.graph.node:
            constants.take(node)
        found = constants.computed()
        if found.keys() <= computed.keys():
            return constants, types
        computed = found


def _run(node: Any, values: dict[str, Tensor], model: Model) -> Tensor | None:
    """Run one node in onnx's own evaluator."""
    onnx = library("onnx", "onnx")
    reference = library("onnx.reference", "onnx")
    helper = onnx.helper
    typed = [helper.make_tensor_value_info(n, NUMBERS[v.dtype], list(v.shape)) for n, v in values.items()]
    graph = helper.make_graph([node], "one", typed, [onnx.ValueInfoProto(name=node.output[0])])
    whole = helper.make_model(graph, opset_imports=list(model.proto.opset_import), ir_version=model.proto.ir_version)
    (array,) = reference.ReferenceEvaluator(whole).run(None, {n: to_array(v) for n, v in values.items()})
    return of_array(array)
