"""Shapes of the values of an ONNX graph, for inputs of several sizes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from unbranch.extras import library
from unbranch.onnx.files import Model
from unbranch.onnx.protos import without_weights

BATCHES = (2, 3, 1, 5, 4, 70, 1)
SIDES = (
    (96, 160, 97, 115, 134, 1061, 13), (128, 192, 131, 86, 117, 1301, 11), (64, 224, 75, 121, 98, 1187, 9),
    (192, 288, 83, 126, 109, 1423, 7),
)  # fmt: skip
VOLUMES = (
    (32, 64, 33, 43, 38, 523, 7), (64, 96, 35, 38, 45, 619, 6), (32, 64, 37, 41, 50, 709, 5),
    (64, 32, 34, 47, 39, 811, 9),
)  # fmt: skip
"""Sizes of axes that depend on the input, in some runs; those of tensors with more than four axes are smaller. In the
first two runs they are multiples of 32, so that sizes that are halved and doubled again stay equal. The others have
different remainders: what is the same in all runs doesn't depend on the size. The last two are large and small, so
that a bound shows, such as the end of a slice; they are left out for networks that don't take such sizes."""
RUNS = len(BATCHES)
USUAL = 5  # runs that every network takes part in


@dataclass(frozen=True, eq=False)
class Type:
    """Element type and shape of a value; the shape is None if it isn't known."""

    element: int
    shape: tuple[int, ...] | None


Types = dict[str, Type]


def sizes_of_inputs(proto: Any, run: int) -> dict[str, tuple[int, ...] | None]:
    """Return the shapes of the inputs in one of the runs, None where the rank isn't known.

    An axis with a name has the same size everywhere; the first axis is taken to be the batch.
    """
    named: dict[str, int] = {}
    found: dict[str, tuple[int, ...] | None] = {}
    for value in proto.graph.input:
        if not value.type.tensor_type.HasField("shape"):
            found[value.name] = None
            continue
        sizes: list[int] = []
        sides = VOLUMES if len(value.type.tensor_type.shape.dim) > 4 else SIDES
        for axis, dim in enumerate(value.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and dim.dim_value > 0:
                sizes.append(int(dim.dim_value))
                continue
            size = BATCHES[run] if axis == 0 else sides[(axis - 1) % len(sides)][run]
            sizes.append(named.setdefault(dim.dim_param, size) if dim.dim_param else size)
        found[value.name] = tuple(sizes)
    return found


def types_of(model: Model, run: int = 0, computed: Mapping[str, Any] | None = None) -> Types:
    """Return the types of all values by name, with the symbolic axes of the inputs at the sizes of a run.

    Args:
        model: the model.
        run: the number of the run.
        computed: small constants as initialisers, by the names of the operators' outputs that they stand for.
    """
    computed = computed or {}
    onnx = library("onnx", "onnx")
    light = without_weights(model.proto)
    light.ir_version = max(light.ir_version, 8)  # before 4, initialisers had to be inputs
    sizes = sizes_of_inputs(light, run)
    nodes = [node for node in light.graph.node if not computed.keys() & set(node.output)]
    del light.graph.node[:]
    light.graph.node.extend(nodes)
    light.graph.initializer.extend(computed.values())
    del light.graph.value_info[:]  # it may have the names of axes that are numbers here
    for value in light.graph.input:
        shape = sizes[value.name]
        if shape is not None:
            _set_shape(value, shape)
    for value in light.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        light = onnx.shape_inference.infer_shapes(light, data_prop=True)
    except Exception:  # a shape that contradicts another: what is known without it
        return _given(model.proto)
    graph = light.graph
    found = {v.name: _type_of(v) for v in (*graph.input, *graph.value_info, *graph.output)}
    return found | _of_tensors([*model.proto.graph.initializer, *computed.values()])


def _of_tensors(tensors: Iterable[Any]) -> Types:
    return {tensor.name: Type(tensor.data_type, tuple(tensor.dims)) for tensor in tensors}


def _given(proto: Any) -> Types:
    graph = proto.graph
    found = {v.name: Type(v.type.tensor_type.elem_type, None) for v in (*graph.input, *graph.output)}
    return found | _of_tensors(graph.initializer)


def _set_shape(value: Any, shape: tuple[int, ...]) -> None:
    value.type.tensor_type.shape.ClearField("dim")
    for size in shape:
        value.type.tensor_type.shape.dim.add().dim_value = size


def _type_of(value: Any) -> Type:
    tensor = value.type.tensor_type
    dims = tensor.shape.dim
    known = tensor.HasField("shape") and all(d.HasField("dim_value") and d.dim_value >= 0 for d in dims)
    return Type(tensor.elem_type, tuple(int(d.dim_value) for d in dims) if known else None)
