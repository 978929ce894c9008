"""Questions about protobufs of ONNX."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from unbranch.extras import library

_SMALL = frozenset({8, 21, 22, 23, 25, 26})  # strings, integers and floats of four or two bits


def tensors_of(proto: Any) -> list[Any]:
    """Return the initialisers of a model, and the tensors in attributes, in subgraphs and functions too."""
    found: list[Any] = []

    def visit(nodes: Any, initializers: Any) -> None:
        found.extend(initializers)
        for node in nodes:
            for attribute in node.attribute:
                found.extend([attribute.t] if attribute.HasField("t") else [])
                found.extend(attribute.tensors)
            for graph in subgraphs(node):
                visit(graph.node, graph.initializer)

    visit(proto.graph.node, proto.graph.initializer)
    for function in proto.functions:
        visit(function.node, ())
    return found


def captured(node: Any) -> list[str]:
    """Return the names of outer values that a node's subgraphs read."""
    found: list[str] = []
    for graph in subgraphs(node):
        own = {v.name for v in (*graph.input, *graph.initializer)} | {t.values.name for t in graph.sparse_initializer}
        for inner in graph.node:
            found += [name for name in (*inner.input, *captured(inner)) if name and name not in own]
            own |= set(inner.output)
        found += [value.name for value in graph.output if value.name not in own]
    return list(dict.fromkeys(found))


def subgraphs(node: Any) -> Iterator[Any]:
    """Yield the graphs in a node's attributes."""
    for attribute in node.attribute:
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def without_weights(proto: Any, limit: int = 1024) -> Any:
    """Return a copy whose large initialisers have shapes but no numbers: small enough for every tool."""
    onnx = library("onnx", "onnx")
    light = onnx.ModelProto()
    for field in ("ir_version", "producer_name", "producer_version", "domain", "model_version", "doc_string"):
        setattr(light, field, getattr(proto, field))
    for field in ("opset_import", "metadata_props", "functions"):
        getattr(light, field).extend(getattr(proto, field))
    light.graph.name = proto.graph.name or "graph"
    for field in ("node", "input", "output", "value_info", "sparse_initializer"):
        getattr(light.graph, field).extend(getattr(proto.graph, field))
    for tensor in proto.graph.initializer:
        _add_light(onnx, light, tensor, limit)
    return light


def _add_light(onnx: Any, light: Any, tensor: Any, limit: int) -> None:
    """Add an initialiser; a large or external one becomes an input of its type."""
    external = tensor.data_location == onnx.TensorProto.EXTERNAL
    size = bytes_of(onnx, tensor)
    if not external and (tensor.ByteSize() if size is None else size) <= limit:
        light.graph.initializer.append(tensor)
    elif tensor.name not in {value.name for value in light.graph.input}:
        light.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))


def bytes_of(onnx: Any, tensor: Any) -> int | None:
    """Return the bytes that a tensor's shape needs, None for types of less than a byte and strings."""
    try:
        itemsize = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    except Exception:
        return None
    if tensor.data_type in _SMALL:
        return None
    count = 1
    for n in tensor.dims:
        count *= n
    return int(count * itemsize)


def opset_of(proto: Any) -> int:
    """Return the version of ONNX's own operators that a model uses, 0 if it names none."""
    return next((int(entry.version) for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0)


def overridable(proto: Any) -> set[str]:
    """Return the initialisers that are inputs as well, which a caller may replace; before IR 4, all had to be."""
    inputs = {value.name for value in proto.graph.input} if proto.ir_version >= 4 else set()
    return inputs & {tensor.name for tensor in proto.graph.initializer}
