"""Networks of the zoo: exported in training form and collapsed as ONNX, or collapsed and exported, is the same."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import onnx
import pytest
from onnx import ModelProto, helper

import unbranch as ub
from tests.models.zoo_rows import ROWS
from tests.networks import randomised
from tests.onnx.table import CONVOLUTIONS, NORMS
from unbranch.deploy import write_onnx

pytest.importorskip("unbranch.onnx", exc_type=ImportError)

BLOCKS = ("acb", "dbb", "repvgg", "mobileone", "orepa")
CASES = {name: (name, {}) for name in ROWS} | {f"resnet18, {block}": ("resnet18", {"block": block}) for block in BLOCKS}
COUNTED = ("group", "strides", "dilations", "pads")


def kernels(model: ModelProto) -> Counter[Any]:
    """Convolutions by operator, shape of their kernel and attributes."""
    shapes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    found: Counter[Any] = Counter()
    for node in model.graph.node:
        if node.op_type in CONVOLUTIONS:
            values = {a.name: helper.get_attribute_value(a) for a in node.attribute if a.name in COUNTED}
            shape = shapes.get(node.input[1], ())  # of a computed kernel nothing is known
            dims = len(shape) - 2
            usual = {"group": 1, "strides": [1] * dims, "dilations": [1] * dims, "pads": [0] * 2 * dims}
            given = tuple((key, str(values.get(key, usual[key]))) for key in COUNTED)
            found[node.op_type, shape, given] += 1
    return found


def norms(model: ModelProto) -> int:
    return sum(node.op_type in NORMS for node in model.graph.node)


def operators(model: ModelProto) -> int:
    """Count what computes something: the reshapes around windows may differ."""
    return sum(node.op_type not in ("Reshape", "Flatten", "Transpose", "Identity") for node in model.graph.node)


@pytest.mark.slow
@pytest.mark.sweep(12)
@pytest.mark.parametrize("case", CASES)
def test_same_convolutions_as_the_collapsed_network(case: str, tmp_path: Path) -> None:
    name, options = CASES[case]
    row = ROWS[name]
    network, images = randomised(row.make(**options)), row.images()
    write_onnx(network, images, tmp_path / "branched.onnx")
    write_onnx(ub.collapse(network, images), images, tmp_path / "plain.onnx")
    source, expected = onnx.load(tmp_path / "branched.onnx"), onnx.load(tmp_path / "plain.onnx")
    found = ub.onnx.collapse(source)
    assert kernels(found) == kernels(expected)
    assert norms(found) <= norms(expected)
    assert operators(found) <= operators(expected)
    assert ub.onnx.verify(source, found).same
    if [value.name for value in expected.graph.output] == [value.name for value in found.graph.output]:
        assert ub.onnx.verify(expected, found).same
