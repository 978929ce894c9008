"""Signed activations become unsigned ones that stand for the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import helper, numpy_helper  # noqa: E402

from unbranch.deploy.int8.rewrite import with_unsigned_activations  # noqa: E402


def model(zero: Any, *, per_channel: bool = False, shared: bool = False, read: str = "dequantized") -> Any:
    """Return Q, DQ, convolution, Q, DQ, with zero points of the activations."""
    rng = np.random.default_rng(0)
    scale = np.full(4, 0.03, np.float32) if per_channel else np.float32(0.03)
    zeros = np.full(4, zero) if per_channel else np.asarray(zero)
    axis = {"axis": 1} if per_channel else {}
    initializers = {
        "s": np.asarray(scale), "z": zeros, "w8": rng.integers(-127, 128, (5, 4, 3, 3)).astype(np.int8),
        "ws": np.full(5, 0.01, np.float32), "wz": np.zeros(5, np.int8), "s2": np.float32(0.1),
        "z2": np.asarray(zero) if not shared else zeros,
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **axis),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], **axis),
        helper.make_node("DequantizeLinear", ["w8", "ws", "wz"], ["w"], axis=0),
        helper.make_node("Conv", ["d", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("QuantizeLinear", ["c", "s2", "z" if shared else "z2"], ["q2"]),
        helper.make_node("DequantizeLinear", ["q2", "s2", "z" if shared else "z2"], ["y"]),
    ]
    outputs = [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, ["n", 5, 6, 7])]
    if read == "output":
        outputs.append(helper.make_tensor_value_info("q", numpy_helper.from_array(zeros).data_type, ["n", 4, 6, 7]))
    if read == "cast":
        nodes.append(helper.make_node("Cast", ["q"], ["f"], to=onnx.TensorProto.FLOAT))
        outputs.append(helper.make_tensor_value_info("f", onnx.TensorProto.FLOAT, ["n", 4, 6, 7]))
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["n", 4, 6, 7])], outputs,
        [numpy_helper.from_array(np.asarray(value), name) for name, value in initializers.items()],
        value_info=[helper.make_tensor_value_info("q2", numpy_helper.from_array(zeros).data_type, ["n", 5, 6, 7])],
    )  # fmt: skip
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)])
    made.ir_version = 9
    return made


def outputs(of: Any, *, optimized: bool) -> list[Any]:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if not optimized:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(of.SerializeToString(), options, providers=["CPUExecutionProvider"])
    x = np.random.default_rng(1).standard_normal((2, 4, 6, 7)).astype(np.float32) * 3  # beyond the range, too
    found: list[Any] = session.run(None, {"x": x})
    return found


def activations(of: Any) -> set[str]:
    stored = {value.name: numpy_helper.to_array(value) for value in of.graph.initializer}
    return {str(stored[node.input[2]].dtype) for node in of.graph.node if node.op_type == "QuantizeLinear"}


@pytest.mark.parametrize("zero", [np.int8(-128), np.int8(-7), np.int8(0), np.int8(127)])
@pytest.mark.parametrize("options", [{}, {"per_channel": True}, {"shared": True}], ids=str)
def test_numbers_stay_the_same(zero: Any, options: dict[str, bool]) -> None:
    expected = outputs(model(zero, **options), optimized=False)
    changed = with_unsigned_activations(model(zero, **options))
    onnx.checker.check_model(changed, full_check=True)
    assert activations(changed) == {"uint8"}
    assert all(np.array_equal(a, b) for a, b in zip(outputs(changed, optimized=False), expected, strict=True))


def test_weights_stay_signed() -> None:
    changed = with_unsigned_activations(model(np.int8(3)))
    assert next(v for v in changed.graph.initializer if v.name == "w8").data_type == onnx.TensorProto.INT8


@pytest.mark.parametrize("read", ["output", "cast"])
def test_integers_that_others_read_stay(read: str) -> None:
    expected = outputs(model(np.int8(3), read=read), optimized=False)
    changed = with_unsigned_activations(model(np.int8(3), read=read))
    assert all(np.array_equal(a, b) for a, b in zip(outputs(changed, optimized=False), expected, strict=True))


def test_unsigned_activations_stay() -> None:
    before = model(np.uint8(5))
    assert with_unsigned_activations(model(np.uint8(5))) == before
