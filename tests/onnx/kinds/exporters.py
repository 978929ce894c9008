"""Graphs as exporters of other frameworks write them."""

from __future__ import annotations

from typing import Any

import numpy as np

from tests.onnx.graphs import FLOAT, INT64, Graph
from tests.onnx.table import row


@row("tf2onnx: channels last outside, transposes, norms as they are", (3, 1, 0, 11), opset=13)
def tensorflow(g: Graph) -> None:
    x = g.input("N", 8, 10, 3, name="serving_default_input:0")
    y = g.add("Transpose", x, perm=[0, 3, 1, 2], name="conv2d/Conv2D__6")
    same = {"auto_pad": "NOTSET", "strides": [2, 2], "pads": [0, 0, 1, 1]}
    y = g.relu(g.conv_norm(y, 3, 4, **same))
    y = g.clip(g.conv_norm(y, 4, 4, groups=4), 0.0, 6.0)
    y = g.conv_norm(y, 4, 6, (1, 1))
    y = g.add("Transpose", y, perm=[0, 2, 3, 1])
    y = g.add("Transpose", g.add("Add", y, g.constant(g.array(6))), perm=[0, 3, 1, 2])
    y = g.squeeze(g.mean(y, [2, 3]), 2, 3)
    g.output(g.add("Softmax", g.add("Add", g.add("MatMul", y, g.weight(6, 3)), g.vector(3)), axis=-1))


@row("tf2onnx: bias added behind a transpose", (1, 0, 0, 4), opset=13)
def tensorflow_bias(g: Graph) -> None:
    y = g.add("Transpose", g.input("N", 8, 10, 3), perm=[0, 3, 1, 2])
    y = g.add("Transpose", g.conv(y, 3, 4, bias=False), perm=[0, 2, 3, 1])
    g.output(g.relu(g.add("Add", y, g.vector(4))))


@row("paddle2onnx: scales as operators, Identity everywhere, constants as nodes", (2, 0, 0, 7), opset=11, ir=6,
     constants="nodes")  # fmt: skip
def paddle(g: Graph) -> None:
    y = g.add("Identity", g.input("N", 3, "H", "W"))
    y = g.add("Add", g.add("Mul", y, g.constant([0.0078125])), g.constant([-1.0]))
    y = g.add("Identity", g.conv_norm(y, 3, 4, strides=[2, 2]))
    y = g.relu(y)
    bias = g.add("Reshape", g.vector(4), g.integers(1, -1, 1, 1))
    y = g.add("Add", g.conv(y, 4, 4, (1, 1), bias=False), bias)
    g.output(g.add("Identity", g.add("HardSigmoid", y, alpha=0.2, beta=0.5), into="save_infer_model/scale_0.tmp_1"))


@row("paddle2onnx: linear layer as MatMul, sum and a scale", (0, 1, 0, 3), opset=11)
def paddle_linear(g: Graph) -> None:
    y = g.add("Add", g.add("MatMul", g.input("N", "L", 6), g.weight(6, 4)), g.vector(4))
    g.output(g.add("Softmax", g.add("Mul", g.add("Identity", y), g.constant([0.5])), axis=2))


@row("torch 1.0: numbers as names, listed weights, attributes", (2, 1, 0, 9), opset=9, ir=3, constants="listed")
def old_torch(g: Graph) -> None:
    x = g.input("N", 3, 16, 12, name="0")
    y = g.relu(g.conv_norm(x, 3, 4, strides=[2, 2]))
    y = g.conv_norm(g.pad(y, [0, 0, 1, 1, 0, 0, 1, 1]), 4, 4, same=False)
    y = g.add("MaxPool", g.relu(y), kernel_shape=[2, 2], strides=[2, 2])
    y = g.add("Reshape", y, g.integers(0, -1))
    g.output(g.add("Gemm", y, g.weight(5, 48), g.vector(5), transB=1, alpha=1.0, beta=1.0))


@row("torch, traced: shapes computed node by node", (2, 0, 0, 16), opset=11)
def traced(g: Graph) -> None:
    x = g.input("N", 4, "H", "W")
    y = g.relu(g.conv_norm(x, 4, 6))
    shape = g.add("Shape", y)
    sizes = [g.unsqueeze(g.add("Gather", shape, g.constant(j, dtype=INT64, node=True)), 0) for j in (0, 2, 3)]
    target = g.add("Concat", sizes[0], g.integers(2, 3), sizes[1], sizes[2], axis=0)
    y = g.add("Transpose", g.add("Reshape", y, target), perm=[0, 2, 1, 3, 4])
    back = g.add("Concat", sizes[0], g.integers(6), sizes[1], sizes[2], axis=0)
    g.output_of(g.relu(g.conv_norm(g.add("Reshape", y, back), 6, 4, (1, 1))), "N", 4, "H", "W")


@row("keras: separable convolution, norm and swish", (2, 0, 0, 5), opset=13)
def keras(g: Graph) -> None:
    y = g.conv(g.input("N", 16, "H", "W"), 16, 16, bias=False, groups=16)
    y = g.norm(g.conv(y, 16, 24, (1, 1)), 24, epsilon=1e-3)
    g.output(g.add("Mul", y, g.add("Sigmoid", y)))


@row("mxnet: norm on the data, scale fixed, flatten before the last layer", (2, 1, 1, 7), opset=8, ir=3,
     constants="listed")  # fmt: skip
def mxnet(g: Graph) -> None:
    y = g.norm(g.input("N", 3, 9, 8, name="data"), 3, epsilon=2e-5)
    y = g.add("PRelu", g.conv_norm(y, 3, 4), g.constant(g.array(4, 1, 1)))
    y = g.conv_norm(y, 4, 2, strides=[2, 2])
    y = g.dropout(y)
    y = g.add("Flatten", y)
    g.output(g.norm(g.add("Gemm", y, g.weight(3, 40), g.vector(3), transB=1, beta=1.0), 3))


@row("darknet: upsampled and joined routes", (5, 0, 0, 10), opset=11)
def darknet(g: Graph) -> None:
    def leaky(x: str, channels: int, out: int, kernel: int, **attributes: Any) -> str:
        return g.add("LeakyRelu", g.conv_norm(x, channels, out, (kernel, kernel), **attributes), alpha=0.1)

    first = leaky(g.input("N", 3, 12, 8), 3, 4, 3)
    second = leaky(first, 4, 4, 3, strides=[2, 2])
    ways = {"mode": "nearest", "nearest_mode": "floor", "coordinate_transformation_mode": "asymmetric"}
    narrow = leaky(second, 4, 4, 1)
    up = g.add("Resize", narrow, g.constant([0.0] * 8), g.constant([1, 1, 2, 2], dtype=FLOAT), **ways)
    y = g.add("Concat", up, first, axis=1)
    g.output(g.conv(y, 8, 6, (1, 1)), g.conv(second, 4, 6, (1, 1)))


@row("detector: image scaled inside, boxes decoded with constants", (2, 0, 0, 14), opset=12)
def detector(g: Graph) -> None:
    x = g.add("Div", g.input("N", 3, 8, 8, name="images"), g.constant(255.0))
    y = g.conv(g.relu(g.conv_norm(x, 3, 4)), 4, 6, (1, 1))
    y = g.add("Transpose", g.add("Reshape", y, g.integers(0, 6, 64)), perm=[0, 2, 1])
    box = g.add("Add", g.slice(y, [0], [2], [2]), g.constant(np.indices((8, 8)).reshape(2, 64).T[None]))
    size = g.add("Mul", g.add("Exp", g.slice(y, [2], [4], [2])), g.constant(8.0))
    score = g.add("Sigmoid", g.slice(y, [4], [6], [2]))
    g.output(g.add("Concat", g.add("Mul", box, g.constant(8.0)), size, score, axis=-1))
