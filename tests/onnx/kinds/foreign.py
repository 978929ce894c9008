"""Operators that aren't read: quantised ones, of other domains, recurrent, random, of strings."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from tests.onnx.graphs import FLOAT, INT64, Graph
from tests.onnx.kinds.structure import block
from tests.onnx.table import row, rows

UINT8, INT8, INT32, STRING = TensorProto.UINT8, TensorProto.INT8, TensorProto.INT32, TensorProto.STRING


def quantised(g: Graph, x: str, scale: float = 0.03) -> str:
    """A value that is rounded to 8 bits and back."""
    values = g.constant(scale), g.constant(128, dtype=UINT8)
    return g.add("DequantizeLinear", g.add("QuantizeLinear", x, *values), *values)


def quantised_weight(g: Graph, *shape: int) -> str:
    kernel = g.constant(g.random.integers(-127, 128, shape), dtype=INT8)
    scale = g.constant(0.002 + 0.004 * g.random.random(shape[0]))
    return g.add("DequantizeLinear", kernel, scale, g.constant(np.zeros(shape[0]), dtype=INT8), axis=0)


@row("quantised and dequantised values around convolutions (QDQ)", (2, 0, 0, 12), exact=False)
def qdq(g: Graph) -> None:
    y = quantised(g, g.input("N", 3, "H", "W"))
    for channels in (3, 4):
        y = g.add("Conv", y, quantised_weight(g, 4, channels, 3, 3), g.vector(4), pads=[1, 1, 1, 1])
        y = quantised(g, g.relu(y))
    g.output(y)


@row("quantised branches (QDQ)", (2, 0, 0, 12), exact=False)
def qdq_branches(g: Graph) -> None:
    x = quantised(g, g.input("N", 4, "H", "W"))
    wide = g.add("Conv", x, quantised_weight(g, 4, 4, 3, 3), pads=[1, 1, 1, 1])
    narrow = g.add("Conv", x, quantised_weight(g, 4, 4, 1, 1))
    g.output(g.relu(g.add("Add", quantised(g, wide), quantised(g, narrow))))


@row("weights in 8 bits only", (1, 0, 0, 4), exact=False)
def weight_only(g: Graph) -> None:
    y = g.add("Conv", g.input("N", 3, "H", "W"), quantised_weight(g, 4, 3, 3, 3))
    g.output(g.relu(g.add("Mul", y, g.constant(0.5))))


@row("a float block in a quantised network", (2, 0, 0, 6), exact=False)
def partly_quantised(g: Graph) -> None:
    y = g.relu(block(g, g.input("N", 4, "H", "W")))
    y = quantised(g, y)
    g.output(g.add("Conv", y, quantised_weight(g, 4, 4, 1, 1)))


@row("operators on integers (QLinearConv)", (1, 0, 0, 5), exact=False)
def integer_operators(g: Graph) -> None:
    y = g.relu(block(g, g.input("N", 4, "H", "W")))
    scale, zero = g.constant(0.05), g.constant(128, dtype=UINT8)
    kernel = g.constant(g.random.integers(-127, 128, (4, 4, 1, 1)), dtype=INT8)
    q = g.add("QuantizeLinear", y, scale, zero)
    none = g.constant(0, dtype=INT8)
    q = g.add("QLinearConv", q, scale, zero, kernel, g.constant(0.004), none, g.constant(0.1), zero)
    g.output(g.add("DequantizeLinear", q, g.constant(0.1), zero))


@row("activations quantised as they come", (1, 0, 0, 7), exact=False)
def dynamically_quantised(g: Graph) -> None:
    y = g.relu(block(g, g.input("N", 4, "H", "W")))
    stem = ["q", "q.scale", "q.zero"]
    g.add("DynamicQuantizeLinear", y, into=stem)
    kernel = g.constant(g.random.integers(-127, 128, (4, 4, 1, 1)), dtype=INT8)
    whole = g.add("ConvInteger", "q", kernel, "q.zero")
    scale = g.add("Mul", "q.scale", g.constant(0.004))
    g.output(g.add("Mul", g.add("Cast", whole, to=FLOAT), scale))


@row("operator of a domain that nobody knows", (2, 0, 0, 5), runs=False, exact=False, known=False)
def custom(g: Graph) -> None:
    y = g.relu(block(g, g.input("N", 4, "H", "W")))
    y = g.add("Deformable", y, g.constant(g.array(4)), domain="org.example.ops", radius=2, note=b"\x00\xff")
    g.output_of(g.relu(block(g, y)), "N", 4, "H", "W")


@row("operator that is called like a standard one", (2, 0, 0, 6), runs=False, exact=False, known=False)
def custom_norm(g: Graph) -> None:
    y = g.conv(g.input("N", 4, "H", "W"), 4, 4)
    y = g.add("BatchNormalization", y, *[g.vector(4) for _ in range(4)], domain="org.example.ops")
    g.output_of(
        g.relu(g.sum(g.conv(y, 4, 4), g.add("Conv", y, g.weight(4, 4, 1, 1), domain="org.example.ops"))),
        "N",
        4,
        "H",
        "W",
    )


@row("operators of ONNX Runtime's own domain", (1, 0, 0, 4), exact=False, known=False)
def microsoft(g: Graph) -> None:
    y = g.relu(block(g, g.input("N", 4, "H", "W")))
    fused = {"activation": "Relu", "kernel_shape": [1, 1], "domain": "com.microsoft"}
    y = g.add("FusedConv", y, g.weight(4, 4, 1, 1), g.vector(4), **fused)
    g.output_of(g.add("QuickGelu", y, domain="com.microsoft", alpha=1.5), "N", 4, "H", "W")


@row("classical models (skl2onnx)", (0, 0, 0, 5), exact=False)
def classical(g: Graph) -> None:
    ml = {"domain": "ai.onnx.ml"}
    y = g.add("Scaler", g.input("N", 3), offset=[0.1, 0.2, 0.3], scale=[1.0, 2.0, 0.5], **ml)
    g.domains["ai.onnx.ml"] = 3
    g.add(
        "LinearClassifier", y, into=["label", "scores"], coefficients=g.array(6).tolist(), intercepts=[0.1, -0.2],
        classlabels_ints=[0, 1], multi_class=0, post_transform="NONE", **ml,
    )  # fmt: skip
    scores = g.add("Normalizer", "scores", norm="L1", **ml)
    g.add("ZipMap", scores, into="probabilities", classlabels_int64s=[0, 1], **ml)
    g.output(g.add("Cast", "label", to=INT64), "probabilities")


@row("recurrent layers beside linear ones", (1, 1, 0, 9))
def recurrent(g: Graph) -> None:
    y = g.relu(g.norm(g.conv(g.input("N", 4, "L"), 4, 6, (3,)), 6))
    y = g.add("Transpose", y, perm=[2, 0, 1])
    g.add("LSTM", y, g.weight(1, 20, 6), g.weight(1, 20, 5), g.constant(g.array(1, 40)), "", "", "",
          into=["states", "last", ""], hidden_size=5)  # fmt: skip
    y = g.add("MatMul", g.squeeze("states", 1), g.weight(5, 3))
    g.output(g.add("Add", g.add("Mul", y, g.constant(0.5)), g.vector(3)), "last")


@row("strings and integers beside a block", (1, 0, 0, 5), exact=False)
def strings(g: Graph) -> None:
    y = g.relu(block(g, g.input("N", 4, "H", "W")))
    words = g.input(2, name="words", dtype=STRING, feed=["a", "b"])
    index = g.add("ArgMax", y, axis=1, keepdims=0)
    g.output(index, g.add("Identity", words), g.add("Shape", y))


@row("sizes that depend on values", (1, 0, 0, 6))
def data_dependent(g: Graph) -> None:
    y = g.relu(block(g, g.input("N", 4, "H", "W")))
    found = g.add("NonZero", g.add("Greater", y, g.constant(0.5)))
    g.output(g.add("Transpose", found, perm=[1, 0]), y)


@rows("resize between blocks: {mode}", (2, 0, 0, 5), [{"mode": "nearest"}, {"mode": "linear"}], exact=False)
def resized(g: Graph, mode: str) -> None:
    y = g.relu(block(g, g.input("N", 4, "H", "W")))
    y = g.add("Resize", y, "", g.constant([1, 1, 2, 2], dtype=FLOAT), mode=mode)
    g.output(g.relu(block(g, y)))


@row("einsum", (0, 0, 0, 2))
def einsum(g: Graph) -> None:
    g.output(g.relu(g.add("Einsum", g.input("N", 4, "L"), g.weight(3, 4), equation="ncl,oc->nol")))


@row("norm in training mode", (1, 0, 1, 3), runs=False, exact=False)
def training_mode(g: Graph) -> None:
    y = g.conv(g.input("N", 3, "H", "W"), 3, 4)
    values: list[Any] = [g.vector(4) for _ in range(3)]
    outputs = ["normed", "running_mean", "running_variance"]
    g.add("BatchNormalization", y, *values, g.constant(0.5 + g.random.random(4)), into=outputs, training_mode=1)
    g.output(g.relu("normed"), *outputs[1:])
