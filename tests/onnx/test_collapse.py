"""What `unbranch.onnx.collapse` promises, checked on every row of the corpus."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import ModelProto, numpy_helper

import unbranch as ub
from tests.onnx.corpus import MORE_LEFT, ROWS
from tests.onnx.evaluate import difference, feeds, run, run_in_float64, unit
from tests.onnx.graphs import FEED
from tests.onnx.promises import changed_fields, changed_nodes, unknown_values, unread_constants, wrong_types
from tests.onnx.table import Left, Row, all_nodes, subgraphs_of

pytest.importorskip("unbranch.onnx", exc_type=ImportError)

FEWEST_UNITS = 16  # of rounding, that outputs may differ by if the source itself is exact


@dataclass(frozen=True)
class Outcome:
    """A source, its bytes before and after, its conversion and its result."""

    source: ModelProto
    before: bytes
    after: bytes
    conversion: Any
    result: ModelProto


@cache
def converted(name: str) -> Outcome:
    source = ROWS[name].make()
    before = source.SerializeToString(deterministic=True)
    conversion = ub.onnx.explain(source, given(ROWS[name], source))
    result = conversion.apply()
    return Outcome(source, before, source.SerializeToString(deterministic=True), conversion, result)


def given(row: Row, model: ModelProto) -> Any:
    """Inputs for the proof where random ones don't do."""
    fed = any(entry.key.startswith(FEED) for entry in model.metadata_props)
    return feeds(model, row.sizes[0]) if fed else None


def cases(rows: list[Row]) -> Callable[[Any], Any]:
    """A test's rows; one process converts each once."""
    marked = [pytest.param(row.name, id=row.name, marks=pytest.mark.xdist_group(f"onnx {row.name}")) for row in rows]

    def marks(test: Any) -> Any:
        return pytest.mark.sweep(2)(pytest.mark.parametrize("name", marked)(test))

    return marks


ALL = list(ROWS.values())


@cases(ALL)
def test_source_untouched(name: str) -> None:
    outcome = converted(name)
    assert outcome.after == outcome.before


@cases(ALL)
def test_result_is_a_valid_model_of_the_same_interface(name: str) -> None:
    outcome = converted(name)
    onnx.checker.check_model(outcome.result, full_check=True)
    assert changed_fields(outcome.source, outcome.result) == []


@cases(ALL)
def test_other_nodes_stay(name: str) -> None:
    outcome = converted(name)
    assert changed_nodes(outcome.source, outcome.result) == []


@cases(ALL)
def test_nothing_is_left_over(name: str) -> None:
    result = converted(name).result
    assert unread_constants(result) == set()
    assert unknown_values(result) == set()


@cases(ALL)
def test_merges(name: str) -> None:
    outcome = converted(name)
    left = Left.of(outcome.result)
    most = MORE_LEFT.get(name, ROWS[name].left)
    assert left.within(most), f"{left}\n{outcome.conversion.report}"


@cases([row for row in ALL if row.runs])
def test_same_outputs_in_onnx_runtime(name: str) -> None:
    row, outcome = ROWS[name], converted(name)
    rounding = FEWEST_UNITS * unit(outcome.source)
    for seed, sizes in enumerate(row.sizes):
        inputs = feeds(outcome.source, sizes, seed)
        expected, found = run(outcome.source, inputs), run(outcome.result, inputs)
        assert [kind_of(value) for value in found] == [kind_of(value) for value in expected]
        if row.exact:
            exact = run_in_float64(outcome.source, inputs)
            assert difference(found, exact) <= max(rounding, 4 * difference(expected, exact))
        else:
            assert difference(found, expected) <= 4 * rounding


@cases([row for row in ALL if row.exact])
def test_same_outputs_in_float64(name: str) -> None:
    """Only weights are rounded, once."""
    row, outcome = ROWS[name], converted(name)
    inputs = feeds(outcome.source, row.sizes[1], 1)
    found, expected = (run_in_float64(model, inputs) for model in (outcome.result, outcome.source))
    assert difference(found, expected) <= FEWEST_UNITS * unit(outcome.source)


@cases([row for row in ALL if row.runs])
def test_types_of_values_are_true(name: str) -> None:
    row, outcome = ROWS[name], converted(name)
    for seed, sizes in enumerate(row.sizes):
        assert wrong_types(outcome.result, feeds(outcome.source, sizes, seed), sizes) == []


@cases(ALL)
def test_collapsing_again_changes_nothing(name: str) -> None:
    outcome = converted(name)
    again = ub.onnx.collapse(outcome.result, given(ROWS[name], outcome.source))
    assert again.SerializeToString(deterministic=True) == outcome.result.SerializeToString(deterministic=True)


@cases(ALL)
def test_report_counts_what_is_there(name: str) -> None:
    outcome = converted(name)
    report = outcome.conversion.report
    assert json.dumps(report.to_dict())
    assert report.summary
    if outcome.source.functions or any(list(subgraphs_of(node)) for node in all_nodes(outcome.source)):
        return
    for cost, model in ((report.before, outcome.source), (report.after, outcome.result)):
        left = Left.of(model)
        assert (cost.layers["convolution"], cost.layers["batch norm"]) == (left.convolutions, left.norms)
    if outcome.result.SerializeToString() == outcome.source.SerializeToString():
        assert report.merges == ()


def kind_of(value: Any) -> Any:
    """Type and shape of an output."""
    if isinstance(value, (list, tuple)):
        return [kind_of(item) for item in value]
    return (value.dtype, value.shape) if isinstance(value, np.ndarray) else type(value)


SOME = ["RepVGG block in 2-D", "chain of Gemm: transB", "several inputs and outputs", "weights as Constant nodes"]


@pytest.mark.parametrize("name", SOME)
def test_same_result_each_time_and_from_each_form(name: str, tmp_path: Any) -> None:
    source, path = ROWS[name].make(), tmp_path / "model.onnx"
    onnx.save(source, path)
    conversion = ub.onnx.explain(source)
    first, second = conversion.apply(), conversion.apply()
    assert first is not second
    others = [second, ub.onnx.collapse(source), ub.onnx.collapse(path), ub.onnx.collapse(str(path)),
              ub.collapse(source), ub.collapse(path), ub.explain(source).apply()]  # fmt: skip
    assert {model.SerializeToString(deterministic=True) for model in others} == {
        first.SerializeToString(deterministic=True)
    }
    first.graph.ClearField("node")
    assert conversion.apply().graph.node
    assert path.read_bytes() == source.SerializeToString()


@pytest.mark.parametrize("name", SOME)
def test_verify_tells_one_wrong_weight(name: str, tmp_path: Any) -> None:
    source = ROWS[name].make()
    result = ub.onnx.collapse(source)
    same = ub.onnx.verify(source, result)
    assert same.same
    assert same.error <= max(4 * same.noise, FEWEST_UNITS * unit(source))
    assert str(same)
    wrong = ModelProto()
    wrong.CopyFrom(result)
    _change_one_number(wrong)
    found = ub.onnx.verify(source, wrong)
    assert not found.same
    assert found.error > 4 * found.noise
    for number, model in enumerate((source, wrong)):
        onnx.save(model, tmp_path / f"{number}.onnx")
    assert not ub.onnx.verify(tmp_path / "0.onnx", str(tmp_path / "1.onnx")).same
    assert ub.onnx.verify(tmp_path / "0.onnx", source).same


def _change_one_number(model: ModelProto) -> None:
    tensors = [tensor for tensor in model.graph.initializer if len(tensor.dims) > 1]
    tensors += [node.attribute[0].t for node in model.graph.node if node.op_type == "Constant"]
    tensor = next(tensor for tensor in tensors if len(tensor.dims) > 1)
    values = numpy_helper.to_array(tensor).copy()
    values.flat[0] += 0.05
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))


@pytest.mark.parametrize("name", SOME[:2])
def test_given_inputs_are_used(name: str) -> None:
    """The same merges are found as with random inputs."""
    source = ROWS[name].make()
    inputs = feeds(source, ROWS[name].sizes[0])
    result = ub.onnx.collapse(source, inputs)
    assert Left.of(result).within(ROWS[name].left)
    assert ub.onnx.verify(source, result, inputs).same
