"""Operator sets and types: the same networks as each version writes them."""

from __future__ import annotations

from tests.onnx.graphs import BFLOAT, DOUBLE, HALF, Graph
from tests.onnx.kinds.structure import block
from tests.onnx.table import NEWEST, OPSETS, row, rows

EACH = [*OPSETS, NEWEST]
LISTED = [{**each, "constants": "listed" if each["ir"] == 3 else "initializers"} for each in EACH]


@rows("RepVGG block at opset {opset}", (1, 0, 0, 2), LISTED)
def repvgg(g: Graph) -> None:
    g.output(g.relu(block(g, g.input("N", 4, "H", "W"))))


@rows("all that moves at opset {opset}", (3, 1, 0, 14), LISTED)
def moving(g: Graph) -> None:
    x = g.pad(g.input("N", 8, 6, 8), [0, 0, 1, 1, 0, 0, 1, 1])
    first, second = g.split(x, [4, 4])
    y = g.sum(g.conv_norm(first, 4, 4, same=False), g.slice(g.conv(second, 4, 6, same=False), [1], [5], [1]))
    y = g.clip(g.dropout(y), 0.0, 6.0)
    y = g.norm(g.squeeze(g.unsqueeze(g.conv(y, 4, 4, (1, 1)), 4), 4), 4)
    y = g.squeeze(g.mean(g.relu(y), [2, 3]), 2, 3)
    y = g.add("Reshape", y, g.integers(-1, 4))
    g.output(g.add("Gemm", y, g.weight(4, 5), g.vector(5)))


@rows("matrices at opset {opset}", (0, 2, 0, 10), LISTED)
def matrices(g: Graph) -> None:
    y = g.add("Flatten", g.relu(g.input("N", 3, 2)))
    y = g.add("Gemm", g.add("Gemm", y, g.weight(6, 6), g.vector(6), transB=1), g.weight(6, 4), g.vector(4))
    y = g.add("Cast", g.relu(g.norm(y, 4)), to=1)
    y = g.add("Transpose", g.unsqueeze(y, 1), perm=[1, 0, 2])
    y = g.add("Sum" if g.opset >= 8 else "Add", g.add("MatMul", y, g.weight(4, 4)), g.vector(4))
    g.output(g.add("Softmax", g.squeeze(y, 0), axis=-1 if g.opset >= 11 else 1))


@rows("RepVGG block in {title}", (1, 0, 0, 2), [
    {"title": "float16", "dtype": HALF},
    {"title": "float64", "dtype": DOUBLE, "runs": False},
    {"title": "bfloat16", "dtype": BFLOAT, "runs": False, "opset": 22, "ir": 10},
])  # fmt: skip
def typed(g: Graph, title: str) -> None:
    g.output(g.relu(block(g, g.input("N", 4, "H", "W"))))


@rows("linear layers in {title}", (0, 1, 0, 3), [
    {"title": "float16", "dtype": HALF},
    {"title": "float64", "dtype": DOUBLE},
    {"title": "bfloat16", "dtype": BFLOAT, "runs": False, "opset": 22, "ir": 10},
])  # fmt: skip
def typed_linears(g: Graph, title: str) -> None:
    y = g.input("N", "L", 4)
    for _ in range(2):
        y = g.add("Add", g.add("MatMul", y, g.weight(4, 4)), g.vector(4))
    g.output(g.relu(y))


@row("norms in float32 in a network in float16", (1, 0, 1, 5), dtype=HALF)
def mixed(g: Graph) -> None:
    y = g.add("Cast", g.conv(g.input("N", 4, "H", "W"), 4, 4, bias=False), to=1)
    g.dtype = 1
    y = g.add("Cast", g.norm(y, 4), to=HALF)
    g.dtype = HALF
    g.output(g.add("Add", y, y))


@row("weights as Constant nodes at opset 7", (1, 0, 0, 2), opset=7, ir=3, constants="nodes")
def constants_at_seven(g: Graph) -> None:
    g.output(g.relu(block(g, g.input("N", 4, "H", "W"))))
