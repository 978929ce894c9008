"""The comparison of two files: what counts as a difference, and what can't be compared."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from onnx import TensorProto, helper, numpy_helper  # noqa: E402

import unbranch as ub  # noqa: E402
from unbranch.onnx.proof import _difference  # noqa: E402

FLOAT = np.array([1.0, 2.0], np.float32)
SAME: list[tuple[Any, Any]] = [
    (FLOAT, FLOAT), (FLOAT * np.nan, FLOAT * np.nan), ([FLOAT], [FLOAT]), (np.array(["a"]), np.array(["a"])),
    (FLOAT + 1j, FLOAT + 1j), (FLOAT[:0], FLOAT[:0]), ([], []),
]  # fmt: skip
OTHER: list[tuple[Any, Any]] = [
    (FLOAT, FLOAT + 1), (FLOAT, FLOAT * np.nan), (FLOAT, FLOAT[:1]), ([FLOAT], [FLOAT, FLOAT]), ([FLOAT], [FLOAT + 1]),
    (np.array(["a"]), np.array(["b"])), (FLOAT + 1j, FLOAT + 2j), ([FLOAT], FLOAT),
]  # fmt: skip


@pytest.mark.parametrize("pair", SAME, ids=str)
def test_equal_results_do_not_differ(pair: tuple[Any, Any]) -> None:
    assert _difference(*pair) == 0


@pytest.mark.parametrize("pair", OTHER, ids=str)
def test_other_results_differ(pair: tuple[Any, Any]) -> None:
    assert _difference(*pair) > 0.1


def model(value: Any, output: Any, *nodes: Any, weights: tuple[Any, ...] = ()) -> Any:
    graph = helper.make_graph(list(nodes), "g", [value], [output], list(weights))
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.mark.parametrize("element", [TensorProto.STRING, TensorProto.COMPLEX64, None])
def test_inputs_other_than_numbers_are_not_compared(element: int | None) -> None:
    if element is None:
        value = helper.make_tensor_sequence_value_info("x", TensorProto.FLOAT, None)
        source = model(value, helper.make_tensor_value_info("y", TensorProto.INT64, []),
                       helper.make_node("SequenceLength", ["x"], ["y"]))  # fmt: skip
    else:
        x, y = (helper.make_tensor_value_info(name, element, [2]) for name in "xy")
        source = model(x, y, helper.make_node("Identity", ["x"], ["y"]))
    comparison = ub.onnx.explain(source).comparison
    assert comparison.problem
    assert not comparison.same


def test_one_weight_in_half_precision_excuses_nothing() -> None:
    """The limit is that of float32, in which the network computes."""
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", 4]) for name in "xy")
    kernel = np.random.default_rng(0).standard_normal((4, 4)).astype(np.float32)
    half = numpy_helper.from_array(np.eye(4, dtype=np.float16), "half")
    nodes = [
        helper.make_node("MatMul", ["x", "kernel"], ["z"]), helper.make_node("Cast", ["half"], ["one"], to=1),
        helper.make_node("MatMul", ["z", "one"], ["y"]),
    ]  # fmt: skip
    first, second = (
        model(x, y, *nodes, weights=(numpy_helper.from_array(kernel * factor, "kernel"), half))
        for factor in (np.float32(1), np.float32(1.001))
    )
    assert ub.onnx.verify(first, first).same
    assert not ub.onnx.verify(first, second).same
