"""The cost of an ONNX graph."""

from __future__ import annotations

from math import prod
from typing import Any

from unbranch.convert.report import NetworkCost
from unbranch.onnx.files import Model
from unbranch.onnx.shapes import Types, types_of

VIEWS = frozenset(
    {"Constant", "Flatten", "Identity", "Reshape", "Shape", "Squeeze", "Unsqueeze", "Dropout", "ConstantOfShape"}
)
"""Operators that compute nothing from the numbers of an image."""
KINDS = {
    "convolution": {"Conv", "ConvTranspose"}, "linear": {"Gemm", "MatMul"}, "batch norm": {"BatchNormalization"},
    "average pool": {"AveragePool", "GlobalAveragePool"},
}  # fmt: skip


def cost_of(proto: Any, types: Types | None = None) -> NetworkCost:
    """Return the cost of a model's main graph, for inputs of the first size."""
    types = types or types_of(Model(proto, None, "the model"))
    read = {name for node in proto.graph.node for name in node.input}
    params = sum(prod(t.dims) for t in proto.graph.initializer if t.name in read and t.data_type in (1, 10, 11, 16))
    own = [node for node in proto.graph.node if node.domain in ("", "ai.onnx")]
    kinds = [node.op_type for node in own]
    counts = {name: sum(kind in group for kind in kinds) for name, group in KINDS.items()}
    macs = [_macs(node, types) for node in own]
    known = all(m is not None for m in macs)
    return NetworkCost(
        int(params), int(sum(m for m in macs if m is not None)) if known else None,
        len(proto.graph.node) - sum(kind in VIEWS for kind in kinds), counts,
    )  # fmt: skip


def _macs(node: Any, types: Types) -> int | None:
    if node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul"):
        return 0
    found = [types.get(name) for name in (node.input[0], node.input[1], node.output[0])]
    x, weight, out = (None if t is None else t.shape for t in found)
    if x is None or weight is None or out is None or not out:
        return None
    if node.op_type == "Conv":
        return prod(out) * prod(weight[1:])
    if node.op_type == "ConvTranspose":
        return prod(x) * prod(weight[1:])
    return prod(out) * x[-1]
