"""Constants of an ONNX graph: initialisers, constant nodes, and what is computed from them and from fixed sizes.

Exporters compute shapes, paddings and masks from the sizes of tensors. So the graph is followed at several sizes of the
inputs: a number that is the same at all of them is a constant.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from unbranch.extras import library
from unbranch.onnx.dependence import Sizes, depends
from unbranch.onnx.files import Model
from unbranch.onnx.protos import captured, overridable
from unbranch.onnx.shapes import RUNS, USUAL, Types, types_of
from unbranch.onnx.values import DTYPES, NUMBERS, of_array, to_array, to_proto, to_tensor

COMPUTES_ANEW = ("Random", "Sequence", "Optional", "Quantize", "Dequantize", "Dynamic", "String")
"""Beginnings of the names of operators that aren't computed: of chance, of other types, of integer networks."""
NOT_COMPUTED = frozenset({"If", "Loop", "Scan", "Multinomial", "Bernoulli", "NonZero", "Unique", "Dropout", "Split"})
SMALL = 1024  # numbers of a constant that may be a shape
LARGEST = 1 << 24  # numbers of a computed constant
LARGER = 16  # a computed constant has at most so many times the numbers of its inputs, unless it is small


class Constants:
    """The constants of the main graph by name, read when they are needed.

    Args:
        model: the model.
        types: of all values, at each size.
    """

    def __init__(self, model: Model, types: tuple[Types, ...]) -> None:
        self._model, self._types = model, types
        graph = model.proto.graph
        defaults = overridable(model.proto)
        self._protos = {t.name: t for t in graph.initializer if t.name not in defaults}
        self._nodes: dict[str, Any] = {}
        self._values: dict[str, Tensor | None] = {}
        self._sizes: dict[str, Sizes] = {}
        self._read = {n for node in graph.node for n in (*node.input, *captured(node))} | {v.name for v in graph.output}

    def __contains__(self, name: str) -> bool:
        return name in self._protos or name in self._nodes

    def value(self, name: str) -> Tensor | None:
        """Return a constant's numbers; None if the name is of no constant, or PyTorch has no such dtype."""
        if name not in self._values and name in self._protos:
            self._values[name] = to_tensor(self._protos[name], self._model)
        return self._values.get(name)

    def is_computed(self, name: str) -> bool:
        """Whether a constant is the output of an operator."""
        return name in self._nodes

    def small(self, run: int) -> dict[str, Any]:
        """Return small numbers that operators compute in one run, as initialisers by name."""
        found = {name: self._values[name] for name in self._nodes} | {n: v.values[run] for n, v in self._sizes.items()}
        return {n: to_proto(v, n) for n, v in found.items() if v is not None and v.numel() <= SMALL}

    def take(self, node: Any) -> None:
        """Record the output of a node if it is constant, or known at each size."""
        own = node.domain in ("", "ai.onnx") and node.output and node.output[0]
        if not own or any(name in self._read for name in node.output[1:]):
            return
        if not _is_computable(node) or not all(not n or self._is_known(n, node) for n in node.input):
            return
        follows = node.op_type == "Shape" or any(n in self._sizes for n in node.input)
        values = []
        for run in range(len(self._types)) if follows else (0,):
            value = self._computed(node, run)
            if value is None:
                return
            values.append(value)
        self._record(node, Sizes(tuple(values), self._chance(node, values) if follows else None))

    def _record(self, node: Any, found: Sizes) -> None:
        name = node.output[0]
        if found.is_constant:
            self._nodes[name], self._values[name] = node, found.values[0]
        elif max(v.numel() for v in found.values) <= SMALL:
            self._sizes[name] = found

    def _chance(self, node: Any, values: list[Tensor]) -> Tensor | None:
        """Return which of the numbers that a node computes from sizes may be equal at other sizes by chance."""
        if node.op_type == "Shape":
            return None
        inputs = [self._sizes.get(n) or Sizes((self.value(n),), None) for n in node.input if n]  # type: ignore[arg-type]
        return depends(node, inputs, values, lambda marks: _run(node, marks, self._model))

    def _is_known(self, name: str, node: Any) -> bool:
        if node.op_type == "Shape":
            return all((t := types.get(name)) is not None and t.shape is not None for types in self._types)
        if node.op_type == "CastLike" and name == node.input[1] and name in self._types[0]:
            return True
        return name in self or name in self._sizes

    def _at(self, name: str, run: int) -> Tensor | None:
        return self._sizes[name].values[run] if name in self._sizes else self.value(name)

    def _computed(self, node: Any, run: int) -> Tensor | None:
        """Compute a node's output at one size."""
        if node.op_type == "Constant":
            return _stored(node, self._model)
        if node.op_type == "Shape":
            known = self._types[run][node.input[0]].shape
            assert known is not None
            given = {a.name: a.i for a in node.attribute}
            return torch.tensor(known[given.get("start", 0) : given.get("end", len(known))], dtype=torch.int64)
        if node.op_type == "CastLike":
            value, dtype = self._at(node.input[0], run), DTYPES.get(self._types[0][node.input[1]].element)
            return None if value is None or dtype is None else value.to(dtype)
        found = {name: self._at(name, run) for name in node.input if name}
        known_values = {name: value for name, value in found.items() if value is not None}
        if len(known_values) < len(found) or any(v.numel() > LARGEST for v in known_values.values()):
            return None
        try:
            result = _run(node, known_values, self._model)
        except Exception:  # an operator that the evaluator hasn't, or arguments that don't fit
            return None
        most = max(SMALL * SMALL, LARGER * sum(v.numel() for v in known_values.values()))
        return None if result is None or result.numel() > most else result


def settle(model: Model) -> tuple[Constants, tuple[Types, ...]]:
    """Return the constants of a model and the types of its values at each size, which follow from each other."""
    known: list[dict[str, Any]] = [{}] * RUNS
    while True:
        types = _usable(tuple(types_of(model, run, known[run]) for run in range(len(known))))
        constants = Constants(model, types)
        for node in model.proto.graph.node:
            constants.take(node)
        found = [constants.small(run) for run in range(len(types))]
        if all(new.keys() <= old.keys() for new, old in zip(found, known, strict=False)):
            return constants, types
        known = found


def _usable(types: tuple[Types, ...]) -> tuple[Types, ...]:
    """Leave out large and small sizes at which less is known: the network doesn't take them."""
    known = {name for name, found in types[0].items() if found.shape is not None}
    if all((found := run.get(name)) is not None and found.shape is not None for run in types for name in known):
        return types
    return types[:USUAL]


def _stored(node: Any, model: Model) -> Tensor | None:
    """Return the numbers of a node ``Constant``, None for strings and sparse tensors."""
    kinds = {
        "value_float": torch.float32,
        "value_floats": torch.float32,
        "value_int": torch.int64,
        "value_ints": torch.int64,
    }
    for attribute in node.attribute:
        if attribute.name == "value":
            return to_tensor(attribute.t, model)
        if attribute.name in kinds:
            value = library("onnx", "onnx").helper.get_attribute_value(attribute)
            return torch.tensor(value, dtype=kinds[attribute.name])
    return None


def _is_computable(node: Any) -> bool:
    return node.op_type not in NOT_COMPUTED and not node.op_type.startswith(COMPUTES_ANEW)


def _run(node: Any, values: dict[str, Tensor], model: Model) -> Tensor | None:
    """Run one node in onnx's own evaluator."""
    onnx = library("onnx", "onnx")
    reference = library("onnx.reference", "onnx")
    helper = onnx.helper
    typed = [helper.make_tensor_value_info(n, NUMBERS[v.dtype], list(v.shape)) for n, v in values.items()]
    graph = helper.make_graph([node], "one", typed, [onnx.ValueInfoProto(name=node.output[0])])
    opsets = [entry for entry in model.proto.opset_import if entry.domain in ("", "ai.onnx")]
    whole = helper.make_model(graph, opset_imports=opsets, ir_version=model.proto.ir_version)
    array, *_ = reference.ReferenceEvaluator(whole).run(None, {n: to_array(v) for n, v in values.items()})
    return of_array(array)
