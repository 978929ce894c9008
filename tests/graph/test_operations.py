"""The table of operations agrees with the schemas of PyTorch's own operators."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx

from unbranch.graph.operations import AUGMENTED_ASSIGNMENTS, VIEW_ATTRIBUTES, VIEWS, written_to

# Parts of sparse tensors, which no trace holds, and functions that don't take a tensor.
NOT_VIEWS = {
    "as_tensor", "ccol_indices", "coalesce", "col_indices", "crow_indices", "indices", "row_indices", "slice_inverse",
    "values",
}  # fmt: skip
NOT_WRITES = {"manual_seed", "record_stream", "retain_grad", "seed", "sort"}  # of tensors, nothing that is read


def public_schemas() -> Iterator[tuple[str, Any]]:
    """Schemas of operators that are functions of ``torch`` or methods of tensors."""
    for schema in torch._C._jit_get_all_schemas():
        space, _, name = schema.name.partition("::")
        if space == "aten" and not name.startswith("_") and (hasattr(Tensor, name) or hasattr(torch, name)):
            yield name, schema


def test_every_operator_whose_result_may_share_memory_is_a_view() -> None:
    returned = [(name, r.alias_info) for name, schema in public_schemas() for r in schema.returns]
    views = {name for name, alias in returned if alias is not None and not alias.is_write}
    assert views - VIEWS - VIEW_ATTRIBUTES == NOT_VIEWS


def test_every_operator_that_writes_to_its_first_argument_is_seen_to() -> None:
    graph = fx.Graph()
    x = graph.placeholder("x")
    for name, schema in public_schemas():
        first = schema.arguments[0].alias_info if schema.arguments else None
        if first is not None and first.is_write and schema.overload_name != "out" and name not in NOT_WRITES:
            assert written_to(graph.call_method(name, (x,))) is x, name


def test_every_augmented_assignment_of_python_is_in_the_table() -> None:
    functions = {name for name in dir(operator) if name.startswith("i") and hasattr(operator, f"__{name}__")}
    assert functions - {"index", "inv", "invert", "iconcat"} == AUGMENTED_ASSIGNMENTS
