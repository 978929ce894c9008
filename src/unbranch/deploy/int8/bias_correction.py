"""An equal ONNX file that gets through NNCF's full bias correction, whatever branches the network has.

To correct the bias of a layer, NNCF cuts a part of the network out of the file, with the output of the layer as an
output of the part, and runs it in ONNX Runtime. Two things go wrong there in networks with branches:

- NNCF names the inputs of a part by layer, and cuts at tensors. If a layer reads a tensor that others read as well, a
  part gets the same input twice, or lacks a layer; a part without outputs gets all of the network's. So layers and
  outputs get tensors of their own, through Identities.
- ONNX Runtime fuses Conv, Add and activation even if the output of Conv is an output of the part. So the file asks for
  basic optimisations only, as a property that NNCF copies to its parts.

The quantised file has neither.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

VARIABLE, PROPERTY = "ORT_LOAD_CONFIG_FROM_MODEL", "ort_config"
BASIC = 1  # ONNX Runtime's level of optimisations that don't fuse layers
LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
PREFIX = "unbranch_own_"


@contextmanager
def separable(model: Any) -> Iterator[Any]:
    """Context of an equal ``onnx.ModelProto`` that NNCF can cut; it is made in place.

    While it lasts, sessions of ONNX Runtime follow the settings in the properties of their models.
    """
    import onnx

    with_own_tensors(model)
    onnx.helper.set_model_props(model, {PROPERTY: json.dumps({"session_options": {"graph_optimization_level": BASIC}})})
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    try:
        yield model
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


def restored(model: Any) -> Any:
    """Return a model without what ``separable`` has added, in place."""
    _set(model.metadata_props, [value for value in model.metadata_props if value.key != PROPERTY])
    return without_own_tensors(model)


def with_own_tensors(model: Any) -> Any:
    """Insert Identities in place, so that NNCF can name the inputs and outputs of any part.

    A layer that reads a tensor with other readers gets one, and so does every reader of an input of the model that has
    several. In a model with several outputs, each output gets one.
    """
    from onnx import helper

    graph = model.graph
    _separate_outputs(graph)
    readers = Counter(name for node in graph.node for name in node.input)
    readers.update(value.name for value in graph.output)
    given = {value.name for value in graph.input}
    types: Mapping[str, Any] = {value.name: value for value in (*graph.input, *graph.value_info)}
    nodes = []
    for node in graph.node:
        for place, name in enumerate(node.input):
            reads_data = name in given or (node.op_type in LAYERS and place == 0)
            if not reads_data or readers[name] < 2 or name not in types:
                continue
            own = f"{PREFIX}{node.output[0]}_{place}"
            nodes.append(helper.make_node("Identity", [name], [own], name=own))
            _add_type(graph, types[name], own)
            node.input[place] = own
        nodes.append(node)
    _set(graph.node, nodes)
    return model


def _separate_outputs(graph: Any) -> None:
    """Let an Identity compute each output of a graph that has several."""
    from onnx import helper

    computed = {name for node in graph.node for name in node.output}
    values = [value for value in graph.output if value.name in computed] if len(graph.output) > 1 else []
    own = {value.name: f"{PREFIX}{value.name}" for value in values}
    _rename(graph, own)
    for value in values:
        _add_type(graph, value, own[value.name])
        graph.node.append(helper.make_node("Identity", [own[value.name]], [value.name], name=own[value.name]))


def without_own_tensors(model: Any) -> Any:
    """Remove the Identities of ``with_own_tensors`` again, in place."""
    graph = model.graph
    added = [node for node in graph.node if node.op_type == "Identity" and node.name.startswith(PREFIX)]
    outputs = {value.name for value in graph.output}
    names: dict[str, str] = {}
    for node in added:
        source, copy = node.input[0], node.output[0]
        names.update({source: copy} if copy in outputs else {copy: source})
    names = {name: _last(names, name) for name in names}
    _set(graph.node, [node for node in graph.node if node not in added])
    _rename(graph, names)
    _set(graph.value_info, [value for value in graph.value_info if value.name not in names])
    return model


def _last(names: Mapping[str, str], name: str) -> str:
    """Return the name at the end of a chain: a layer may have read an output of the model."""
    while name in names:
        name = names[name]
    return name


def _rename(graph: Any, names: Mapping[str, str]) -> None:
    """Rename tensors wherever nodes read or compute them."""
    for node in graph.node:
        for field in (node.input, node.output):
            field[:] = [names.get(name, name) for name in field]


def _add_type(graph: Any, value: Any, name: str) -> None:
    """Add the type of a tensor under another name."""
    graph.value_info.add().CopyFrom(value)
    graph.value_info[-1].name = name


def _set(field: Any, values: list[Any]) -> None:
    """Replace the messages of a repeated field, which may be among the new ones."""
    copies = [type(value).FromString(value.SerializeToString()) for value in values]
    del field[:]
    field.extend(copies)
