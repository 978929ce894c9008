"""What a collapsed model must keep of its source, as functions that return what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
from onnx import GraphProto, ModelProto, NodeProto, ValueInfoProto, helper

from tests.onnx.evaluate import Arrays, run
from tests.onnx.table import STANDARD, all_graphs, all_nodes, subgraphs_of

AFFINE = {
    "Conv", "ConvTranspose", "BatchNormalization", "Gemm", "MatMul", "Add", "Sub", "Mul", "Div", "Neg", "Sum",
    "AveragePool", "GlobalAveragePool", "ReduceMean", "Pad", "Concat", "Split", "Slice", "Gather", "Reshape", "Flatten",
    "Transpose", "Squeeze", "Unsqueeze", "Identity", "Dropout", "Cast", "Constant", "ConstantOfShape", "Expand",
    "Shape", "SpaceToDepth", "DepthToSpace", "Einsum",
}  # fmt: skip
PASSING = {"Identity", "Dropout", "Cast", "Pad", "Split", "Slice", "Reshape", "Transpose", "Squeeze", "Unsqueeze",
           "Concat", "Flatten"}  # fmt: skip
KEPT = (
    "ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string",
    "opset_import", "metadata_props",
)  # fmt: skip


def changed_fields(source: ModelProto, result: ModelProto) -> list[str]:
    """Fields of the model and its graph that must not change, and have."""
    changed = [name for name in KEPT if getattr(source, name) != getattr(result, name)]
    changed += [f"graph.{n}" for n in ("name", "doc_string") if getattr(source.graph, n) != getattr(result.graph, n)]
    listed = {tensor.name for tensor in source.graph.initializer} if source.ir_version < 4 else set()
    inputs = [[value for value in m.graph.input if value.name not in listed] for m in (source, result)]
    if source.ir_version < 4:
        inputs[1] = [v for v in inputs[1] if v.name not in {tensor.name for tensor in result.graph.initializer}]
    if inputs[0] != inputs[1]:
        changed.append("graph.input")
    if list(source.graph.output) != list(result.graph.output):
        changed.append("graph.output")
    return changed


def changed_nodes(source: ModelProto, result: ModelProto) -> list[NodeProto]:
    """Nodes of other than affine operators that the result doesn't have byte for byte.

    Where an operation beside the node may have been removed, its inputs and outputs may have other names.
    """
    passing = _names_of_passing(source)
    exact, loose = Counter[bytes](), Counter[bytes]()
    for node in all_nodes(result):
        exact[node.SerializeToString()] += 1
        loose[_without_names(node)] += 1
    wrong = []
    for node in _lasting(source):
        near = passing & {*node.input, *node.output}
        key, found = (_without_names(node), loose) if near else (node.SerializeToString(), exact)
        if not found[key]:
            wrong.append(node)
        found[key] -= 1
    return wrong


def _lasting(model: ModelProto) -> Iterator[NodeProto]:
    """Nodes that can't be merged, computed beforehand or removed; of If and loops, what is in their bodies."""
    constant = {tensor.name for graph in all_graphs(model) for tensor in graph.initializer}
    constant -= {value.name for value in model.graph.input if model.ir_version >= 4}
    read = _alive(model)
    for node in all_nodes(model):
        known = all(name in constant for name in node.input if name)
        if known and node.domain in STANDARD and not list(subgraphs_of(node)):
            constant.update(node.output)
        elif node.op_type in AFFINE and node.domain in STANDARD:
            continue
        elif not list(subgraphs_of(node)) and read & set(node.output):
            yield node


def _alive(model: ModelProto) -> set[str]:
    """Values that an output depends on; those in bodies and functions all count."""
    nodes = list(model.graph.node)
    alive = {value.name for graph in all_graphs(model) for value in graph.output}
    alive |= {name for function in model.functions for node in function.node for name in (*node.input, *node.output)}
    for node in reversed(nodes):
        inner = [name for graph in subgraphs_of(node) for name in _read_in(graph)]
        if alive & set(node.output):
            alive |= {*node.input, *inner}
    return alive | {name for graph in all_graphs(model) for name in _read_in(graph) if graph != model.graph}


def _read_in(graph: GraphProto) -> Iterator[str]:
    for node in graph.node:
        yield from node.input
        for inner in subgraphs_of(node):
            yield from _read_in(inner)
    yield from (value.name for value in graph.output)


def _names_of_passing(model: ModelProto) -> set[str]:
    nodes = [node for node in all_nodes(model) if node.op_type in PASSING]
    return {name for node in nodes for name in (*node.input, *node.output)}


def _without_names(node: NodeProto) -> bytes:
    copy = NodeProto()
    copy.CopyFrom(node)
    copy.ClearField("input")
    copy.ClearField("output")
    return copy.SerializeToString()


def unread_constants(model: ModelProto) -> set[str]:
    """Initialisers and Constant nodes that nothing reads; an input with a default value may stay."""
    found: set[str] = set()
    inputs = {value.name for value in model.graph.input} if model.ir_version >= 4 else set()
    read = set(_read_in(model.graph))
    for graph in all_graphs(model):
        constants = {tensor.name for tensor in graph.initializer}
        constants |= {tensor.values.name for tensor in graph.sparse_initializer}
        constants |= {name for node in graph.node if node.op_type == "Constant" for name in node.output}
        found |= constants - read - inputs
    return found


def unknown_values(model: ModelProto) -> set[str]:
    """Values that have a type in value_info and don't exist, or have two."""
    found: set[str] = set()
    for graph in all_graphs(model):
        made = {name for node in graph.node for name in node.output if name}
        made |= {value.name for value in graph.input} | {tensor.name for tensor in graph.initializer}
        names = Counter(value.name for value in graph.value_info)
        found |= {name for name, times in names.items() if name not in made or times > 1}
    return found


def wrong_types(model: ModelProto, inputs: Arrays, sizes: dict[str, int]) -> list[str]:
    """Values of the main graph whose type or shape in ONNX Runtime isn't that in value_info."""
    tensors = [v for v in model.graph.value_info if v.type.WhichOneof("value") == "tensor_type"]
    outputs = {value.name for value in model.graph.output}
    made = {name for node in model.graph.node if node.op_type != "Constant" for name in node.output}
    tensors = [value for value in tensors if value.name in made - outputs]
    every = ModelProto()
    every.CopyFrom(model)
    every.graph.output.extend(tensors)
    arrays = run(every, inputs, optimise=False)[len(model.graph.output) :]
    known = dict(sizes)
    return [v.name for v, array in zip(tensors, arrays, strict=True) if not _fits(v, array, known)]


def _fits(value: ValueInfoProto, array: Any, known: dict[str, int]) -> bool:
    kind = value.type.tensor_type
    array = np.asarray(array)
    same = array.dtype == helper.tensor_dtype_to_np_dtype(kind.elem_type) or array.dtype.kind in "OU"
    if not kind.HasField("shape"):
        return same
    same = same and len(kind.shape.dim) == array.ndim
    for dim, size in zip(kind.shape.dim, array.shape, strict=False):
        if dim.HasField("dim_value"):
            same = same and dim.dim_value == size
        elif dim.dim_param:
            same = same and known.setdefault(dim.dim_param, size) == size
    return same
