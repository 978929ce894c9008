"""Gemm and MatMul, with what exporters write around them."""

from __future__ import annotations

from typing import Any

from tests.onnx.graphs import Graph
from tests.onnx.table import row, rows


def linear(g: Graph, x: str, inputs: int, outputs: int) -> str:
    """As PyTorch exports nn.Linear on rank 3."""
    return g.add("Add", g.add("MatMul", x, g.constant(g.array(inputs, outputs) / inputs**0.5)), g.vector(outputs))


@rows("chain of Gemm: {title}", (0, 1, 0, 2), [
    {"title": "transB", "first": {"transB": 1}, "second": {"transB": 1}},
    {"title": "plain", "first": {}, "second": {}},
    {"title": "alpha and beta", "first": {"transB": 1, "alpha": 0.5, "beta": 2.0}, "second": {"alpha": -1.5}},
    {"title": "beta 0", "first": {"beta": 0.0}, "second": {"transB": 1}},
])  # fmt: skip
def gemms(g: Graph, title: str, first: dict[str, Any], second: dict[str, Any]) -> None:
    y = g.input("N", 6)
    for attributes in (first, second):
        y = g.add("Gemm", y, g.weight(6, 6), g.vector(6), **attributes)
    g.output(g.relu(y))


@row("Gemm without C, then one with a C that broadcasts", (0, 1, 0, 2))
def gemm_without_bias(g: Graph) -> None:
    y = g.add("Gemm", g.input("N", 4), g.weight(5, 4), transB=1)
    g.output(g.relu(g.add("Gemm", y, g.weight(3, 5), g.constant(0.3), transB=1)))


@row("Gemm that transposes what it reads", (0, 1, 0, 2))
def gemm_transposed(g: Graph) -> None:
    g.output(g.relu(g.add("Gemm", g.input(4, "N"), g.weight(4, 3), g.vector(3), transA=1)))


@row("Gemm whose bias is no constant", (0, 1, 0, 2))
def gemm_of_two(g: Graph) -> None:
    x, y = g.input("N", 4), g.input("N", 3, name="y")
    g.output(g.relu(g.add("Gemm", x, g.weight(4, 3), y, beta=0.5)))


@row("Gemm of two values", (0, 1, 0, 2))
def gemm_of_values(g: Graph) -> None:
    g.output(g.relu(g.add("Gemm", g.input("N", 4), g.input("N", 4, name="y"), transB=1)))


@row("Gemm and a norm of rank 2", (0, 1, 0, 2))
def gemm_norm(g: Graph) -> None:
    y = g.add("Gemm", g.input("N", 5), g.weight(4, 5), g.vector(4), transB=1)
    g.output(g.relu(g.norm(y, 4)))


@row("norm of rank 2 before a Gemm", (0, 1, 0, 2))
def norm_gemm(g: Graph) -> None:
    y = g.norm(g.input("N", 5), 5)
    g.output(g.relu(g.add("Gemm", y, g.weight(4, 5), g.vector(4), transB=1)))


@rows("chain of linear layers, rank {rank}", (0, 1, 0, 3), [{"rank": 2}, {"rank": 3}, {"rank": 4}])
def linears(g: Graph, rank: int) -> None:
    y = g.input("N", *{2: (), 3: ("L",), 4: ("H", "W")}[rank], 6)
    g.output(g.relu(linear(g, linear(g, y, 6, 6), 6, 6)))


@row("linear layers side by side", (0, 1, 0, 3))
def linear_branches(g: Graph) -> None:
    x = g.input("N", "L", 6)
    g.output(g.relu(g.sum(linear(g, x, 6, 6), linear(g, x, 6, 6), x)))


@row("linear layer with a scale and a shift behind", (0, 1, 0, 3))
def linear_scaled(g: Graph) -> None:
    y = g.add("Mul", linear(g, g.input("N", "L", 6), 6, 4), g.vector(4))
    g.output(g.relu(g.add("Sub", g.vector(4), y)))


@row("scale and shift before a linear layer", (0, 1, 0, 3))
def scaled_linear(g: Graph) -> None:
    y = g.add("Add", g.add("Mul", g.input("N", "L", 6), g.vector(6)), g.vector(6))
    g.output(g.relu(linear(g, y, 6, 4)))


@row("low rank: merging would cost more", (0, 2, 0, 4))
def low_rank(g: Graph) -> None:
    y = g.add("MatMul", g.input("N", "L", 32), g.constant(g.array(32, 2)))
    g.output(g.relu(linear(g, y, 2, 32)))


@row("wide between: merging saves", (0, 1, 0, 3))
def high_rank(g: Graph) -> None:
    g.output(g.relu(linear(g, linear(g, g.input("N", "L", 4), 4, 64), 64, 4)))


@row("constant on the left of a MatMul", (0, 1, 0, 2))
def left_constant(g: Graph) -> None:
    g.output(g.relu(g.add("MatMul", g.weight(5, 4), g.input("N", 4, "L"))))


@row("MatMul of two values", (0, 3, 0, 5))
def attention(g: Graph) -> None:
    x = g.input("N", "L", 4)
    q, k = g.add("MatMul", x, g.weight(4, 4)), g.add("MatMul", x, g.weight(4, 4))
    scores = g.add("MatMul", q, g.add("Transpose", k, perm=[0, 2, 1]))
    g.output(g.add("Softmax", scores, axis=-1))


@row("MatMul with a constant of rank 3", (0, 1, 0, 2))
def batched_constant(g: Graph) -> None:
    g.output(g.relu(g.add("MatMul", g.input(3, "L", 4), g.constant(g.array(3, 4, 5)))))


@row("MatMul with a vector", (0, 1, 0, 2))
def vector(g: Graph) -> None:
    g.output(g.relu(g.add("MatMul", g.input("N", "L", 4), g.vector(4))))


@row("norm behind a linear layer, channels transposed to the front and back", (0, 1, 0, 5))
def transposed_norm(g: Graph) -> None:
    y = g.add("Transpose", linear(g, g.input("N", "L", 6), 6, 4), perm=[0, 2, 1])
    g.output(g.relu(g.add("Transpose", g.norm(y, 4), perm=[0, 2, 1])))


@row("classifier behind a global pool", (1, 1, 0, 5))
def classifier(g: Graph) -> None:
    y = g.relu(g.conv_norm(g.input("N", 3, "H", "W"), 3, 6))
    y = g.add("Flatten", g.add("GlobalAveragePool", y), axis=1)
    g.output(g.add("Gemm", y, g.weight(4, 6), g.vector(4), transB=1))


@row("norm between a pool and a Gemm", (1, 1, 0, 5))
def pooled_norm(g: Graph) -> None:
    y = g.relu(g.conv_norm(g.input("N", 3, "H", "W"), 3, 6))
    y = g.squeeze(g.norm(g.mean(y, [2, 3]), 6), 2, 3)
    g.output(g.add("Gemm", g.norm(y, 6), g.weight(4, 6), g.vector(4), transB=1))


@row("shape computed at run time between a convolution and a Gemm (older torch)", (1, 1, 0, 9))
def dynamic_flatten(g: Graph) -> None:
    y = g.add("GlobalAveragePool", g.relu(g.conv_norm(g.input("N", 3, "H", "W"), 3, 6)))
    batch = g.add("Gather", g.add("Shape", y), g.constant(0, dtype=7), axis=0)
    shape = g.add("Concat", g.unsqueeze(batch, 0), g.integers(-1), axis=0)
    g.output(g.add("Gemm", g.add("Reshape", y, shape), g.weight(4, 6), g.vector(4), transB=1))


@row("flattened map and a Gemm at a known size", (1, 1, 0, 4))
def conv_flatten_gemm(g: Graph) -> None:
    y = g.add("Flatten", g.conv(g.input("N", 2, 5, 4), 2, 3))
    g.output(g.relu(g.add("Gemm", y, g.weight(4, 60), g.vector(4), transB=1)))


@row("pointwise convolution as a linear layer between transposes (ConvNeXt)", (1, 2, 0, 9))
def channels_last(g: Graph) -> None:
    y = g.conv(g.input("N", 4, "H", "W"), 4, 4, (5, 5), groups=4)
    y = g.relu(linear(g, g.add("Transpose", y, perm=[0, 2, 3, 1]), 4, 8))
    y = g.add("Mul", linear(g, y, 8, 4), g.vector(4))
    g.output(g.add("Transpose", y, perm=[0, 3, 1, 2]))


@row("axes of one around a convolution in 1-D", (1, 0, 0, 4))
def axes_of_one(g: Graph) -> None:
    y = g.unsqueeze(g.input("N", 4, "L"), 3)
    y = g.norm(g.conv(y, 4, 6, (3, 1)), 6)
    g.output(g.relu(g.squeeze(y, 3)))


@row("reshapes and transposes that cancel between linear layers", (0, 2, 0, 9))
def cancelling(g: Graph) -> None:
    y = linear(g, g.input("N", 6, 4), 4, 4)
    y = g.add("Transpose", g.add("Transpose", y, perm=[0, 2, 1]), perm=[0, 2, 1])
    y = g.add("Reshape", g.add("Reshape", y, g.integers(-1, 24)), g.integers(-1, 6, 4))
    g.output(g.relu(linear(g, y, 4, 4)))


@row("norm of tokens behind a matrix, flattened for it", (0, 1, 0, 5))
def tokens(g: Graph) -> None:
    y = g.add("MatMul", g.input("N", 6, 5), g.weight(5, 4))
    y = g.norm(g.add("Reshape", y, g.integers(-1, 4)), 4)
    g.output(g.relu(g.add("Reshape", y, g.integers(-1, 6, 4))))
