"""Run models: in ONNX Runtime, and in float64 by onnx's own evaluator."""

from __future__ import annotations

import ast
from typing import Any

import numpy as np
import onnxruntime
from onnx import AttributeProto, ModelProto, TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from tests.onnx.graphs import FEED
from tests.onnx.table import all_graphs, all_nodes

FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
Arrays = dict[str, Any]


class BatchNormalization(OpRun):
    """A norm in evaluation: onnx's own evaluator mixes momentum into the statistics below opset 14."""

    op_domain = ""

    def _run(self, x: Any, *parameters: Any, epsilon: float = 1e-5, **_: Any) -> tuple[Any]:
        shape = (-1, *[1] * (x.ndim - 2))
        scale, bias, mean, variance = (value.reshape(shape) for value in parameters)
        return ((x - mean) / np.sqrt(variance + epsilon) * scale + bias,)


def feeds(model: ModelProto, sizes: dict[str, int], seed: int = 0) -> Arrays:
    """Random inputs: normal numbers, and for inputs of other types what the model's metadata says.

    A boolean that isn't given alternates with the seed.
    """
    generator = np.random.default_rng(seed + 1)
    given = {p.key.removeprefix(FEED): p.value for p in model.metadata_props if p.key.startswith(FEED)}
    initialised = {tensor.name for tensor in model.graph.initializer}
    found: Arrays = {}
    for value in model.graph.input:
        if value.name in initialised:
            continue
        tensor = value.type.tensor_type
        kind = helper.tensor_dtype_to_np_dtype(tensor.elem_type)
        shape = [sizes[d.dim_param] if d.dim_param else d.dim_value for d in tensor.shape.dim]
        if value.name in given:
            found[value.name] = np.array(ast.literal_eval(given[value.name]), kind)
        elif kind == np.bool_:
            found[value.name] = np.full(shape, seed % 2 == 0)
        else:
            found[value.name] = generator.standard_normal(shape).astype(kind)
    return found


def run(model: ModelProto, inputs: Arrays, optimise: bool = True) -> list[Any]:
    """Outputs in ONNX Runtime."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 4, 1
    if not optimise:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
    outputs: list[Any] = session.run(None, inputs)
    return outputs


def run_in_float64(model: ModelProto, inputs: Arrays) -> list[Any]:
    """Outputs with every float in float64."""
    wide = {k: v.astype(np.float64) if is_float(v) else v for k, v in inputs.items()}
    outputs: list[Any] = ReferenceEvaluator(in_float64(model), new_ops=[BatchNormalization]).run(None, wide)
    return outputs


def is_float(value: Any) -> bool:
    return value.dtype.kind == "f" or value.dtype.name == "bfloat16"


def in_float64(model: ModelProto) -> ModelProto:
    """A copy whose floats are float64: weights, constants, inputs, outputs and casts."""
    wide = ModelProto()
    wide.CopyFrom(model)
    for graph in all_graphs(wide):
        graph.ClearField("value_info")
        for tensor in graph.initializer:
            _widen(tensor)
        for value in (*graph.input, *graph.output):
            if value.type.tensor_type.elem_type in FLOATS:
                value.type.tensor_type.elem_type = TensorProto.DOUBLE
    for node in all_nodes(wide):
        for attribute in node.attribute:
            if attribute.type == AttributeProto.TENSOR:
                _widen(attribute.t)
            elif node.op_type == "Constant" and attribute.name in ("value_float", "value_floats"):
                value = np.array(helper.get_attribute_value(attribute), np.float64)
                attribute.CopyFrom(helper.make_attribute("value", numpy_helper.from_array(value)))
            elif node.op_type == "Cast" and attribute.name == "to" and attribute.i in FLOATS:
                attribute.i = TensorProto.DOUBLE
    return wide


def _widen(tensor: TensorProto) -> None:
    if tensor.data_type in FLOATS:
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float64), tensor.name))


def difference(found: list[Any], expected: list[Any]) -> float:
    """Largest difference of any output, relative to its largest value; infinite if types or shapes differ."""
    worst = 0.0
    for mine, theirs in zip(found, expected, strict=True):
        if isinstance(theirs, (list, tuple)):
            worst = max(worst, difference(mine, theirs))
            continue
        if isinstance(theirs, dict):
            worst = max(worst, difference([*mine, *mine.values()], [*theirs, *theirs.values()]))
            continue
        mine, theirs = np.asarray(mine), np.asarray(theirs)
        if theirs.dtype.kind not in "fV":
            worst = max(worst, 0.0 if np.array_equal(mine, theirs) else np.inf)
            continue
        if mine.shape != theirs.shape or not np.isfinite(theirs.astype(np.float64)).all():
            return np.inf
        if theirs.size:
            wide, exact = mine.astype(np.float64), theirs.astype(np.float64)
            worst = max(worst, float(np.abs(wide - exact).max() / max(np.abs(exact).max(), 1e-30)))
    return worst


def unit(model: ModelProto) -> float:
    """Unit of rounding of the coarsest float that the model stores."""
    kinds = {tensor.data_type for graph in all_graphs(model) for tensor in graph.initializer}
    kinds |= {a.t.data_type for node in all_nodes(model) for a in node.attribute if a.type == AttributeProto.TENSOR}
    units = {TensorProto.FLOAT: 2**-23, TensorProto.FLOAT16: 2**-10, TensorProto.BFLOAT16: 2**-7}
    return max((units.get(kind, 2**-52) for kind in kinds), default=2**-23)
