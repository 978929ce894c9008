"""The corpus is sound: models that onnx accepts, that ONNX Runtime runs, and that onnx's own evaluator agrees with."""

from __future__ import annotations

import onnx
import pytest

from tests.onnx.corpus import ROWS
from tests.onnx.evaluate import difference, feeds, run, run_in_float64, unit
from tests.onnx.table import Left, Row

ROUNDING = 64  # units


@pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)
def test_model_is_valid(row: Row) -> None:
    model = row.make()
    onnx.checker.check_model(model, full_check=True)
    assert model.SerializeToString() == row.make().SerializeToString()
    assert Left.of(model).nodes > 0
    assert row.left.nodes <= Left.of(model).nodes, "more may be left than there is"


@pytest.mark.parametrize("row", [row for row in ROWS.values() if row.runs], ids=lambda row: row.name)
def test_model_runs(row: Row) -> None:
    model = row.make()
    for seed, sizes in enumerate(row.sizes):
        inputs = feeds(model, sizes, seed)
        found = run(model, inputs)
        assert found
        if row.exact:
            assert difference(found, run_in_float64(model, inputs)) <= ROUNDING * unit(model)
