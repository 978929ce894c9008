"""Blocks with parallel branches, as PyTorch's exporters write them."""

from __future__ import annotations

from tests.onnx.graphs import Graph
from tests.onnx.table import row, rows

SPATIAL = {1: ("L",), 2: ("H", "W"), 3: ("D", "H", "W")}


@rows("RepVGG block in {dims}-D", (1, 0, 0, 2), [{"dims": dims} for dims in SPATIAL])
def repvgg(g: Graph, dims: int) -> None:
    x = g.input("N", 4, *SPATIAL[dims])
    branches = [g.conv_norm(x, 4, 4, (k,) * dims) for k in (3, 1)]
    g.output(g.relu(g.sum(*branches, g.norm(x, 4))))


@rows("RepVGG block with stride {stride}, groups {groups}", (1, 0, 0, 2), [
    {"stride": 2, "groups": 1}, {"stride": 1, "groups": 2}, {"stride": 2, "groups": 4}, {"stride": 1, "groups": 8},
])  # fmt: skip
def repvgg_strided(g: Graph, stride: int, groups: int) -> None:
    x = g.input("N", 8, "H", "W")
    branches = [g.conv_norm(x, 8, 8, (k, k), strides=[stride] * 2, groups=groups) for k in (3, 1)]
    if stride == 1:
        branches.append(g.norm(x, 8))
    g.output(g.relu(g.sum(*branches)))


@row("RepVGG block whose norms are folded", (1, 0, 0, 2))
def repvgg_folded(g: Graph) -> None:
    x = g.input("N", 4, "H", "W")
    g.output(g.relu(g.sum(g.conv(x, 4, 4), g.conv(x, 4, 4, (1, 1)), x)))


@row("two RepVGG blocks and a strided one", (3, 0, 0, 6))
def repvgg_stages(g: Graph) -> None:
    x = g.input("N", 3, "H", "W")
    x = g.relu(g.sum(g.conv_norm(x, 3, 4, strides=[2, 2]), g.conv_norm(x, 3, 4, (1, 1), strides=[2, 2])))
    for _ in range(2):
        x = g.relu(g.sum(g.conv_norm(x, 4, 4), g.conv_norm(x, 4, 4, (1, 1)), g.norm(x, 4)))
    g.output(x)


@row("branches added by Sum", (1, 0, 0, 2))
def sum_of_three(g: Graph) -> None:
    x = g.input("N", 4, "H", "W")
    total = g.add("Sum", g.conv_norm(x, 4, 4), g.conv_norm(x, 4, 4, (1, 1)), g.norm(x, 4))
    g.output(g.relu(total))


@row("asymmetric convolutions (ACB)", (1, 0, 0, 2))
def acb(g: Graph) -> None:
    x = g.input("N", 3, "H", "W")
    g.output(g.relu(g.sum(*[g.conv_norm(x, 3, 5, kernel) for kernel in ((3, 3), (1, 3), (3, 1))])))


@row("diverse branches (DBB), padded between", (1, 0, 0, 2))
def dbb(g: Graph) -> None:
    x = g.input("N", 4, "H", "W")
    narrow = g.pad(g.conv(x, 4, 4, (1, 1), bias=False), [0, 0, 1, 1, 0, 0, 1, 1])
    sequence = g.norm(g.conv(narrow, 4, 4, same=False, bias=False), 4)
    padded = g.pad(g.conv(x, 4, 4, (1, 1), bias=False), [0, 0, 1, 1, 0, 0, 1, 1])
    average = g.norm(g.add("AveragePool", padded, kernel_shape=[3, 3], strides=[1, 1]), 4)
    g.output(g.relu(g.sum(g.conv_norm(x, 4, 4), g.conv_norm(x, 4, 4, (1, 1)), sequence, average)))


@row("average that counts its padding, beside a convolution", (1, 0, 0, 2))
def average_branch(g: Graph) -> None:
    x = g.input("N", 4, "H", "W")
    pool = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 1}
    g.output(g.relu(g.sum(g.conv_norm(x, 4, 4), g.norm(g.add("AveragePool", x, **pool), 4))))


@row("average that doesn't count its padding, beside a convolution", (1, 0, 1, 5))
def average_of_fewer(g: Graph) -> None:
    x = g.input("N", 4, "H", "W")
    pool = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1], "count_include_pad": 0}
    g.output(g.relu(g.sum(g.conv_norm(x, 4, 4), g.norm(g.add("AveragePool", x, **pool), 4))))


@row("MobileOne block: several depthwise branches and a scale", (1, 0, 0, 2))
def mobileone(g: Graph) -> None:
    x = g.input("N", 6, "H", "W")
    branches = [g.conv_norm(x, 6, 6, groups=6) for _ in range(4)]
    g.output(g.relu(g.sum(*branches, g.conv_norm(x, 6, 6, (1, 1), groups=6), g.norm(x, 6))))


@row("dilated branches of a large kernel (UniRepLKNet)", (1, 0, 0, 2))
def dilated(g: Graph) -> None:
    x = g.input("N", 4, "H", "W")
    branches = [g.conv_norm(x, 4, 4, (k, k), groups=4, dilations=[d, d]) for k, d in ((7, 1), (5, 1), (3, 2), (3, 3))]
    g.output(g.relu(g.sum(*branches)))


@row("branches whose dilations don't fit are one kernel with zeros", (1, 0, 0, 2))
def dilated_unlike(g: Graph) -> None:
    x = g.input("N", 2, "H", "W")
    g.output(g.relu(g.sum(g.conv(x, 2, 4, dilations=[2, 2]), g.conv(x, 2, 4, (5, 5)))))


@row("even kernel with asymmetric padding beside 1×1", (1, 0, 0, 2))
def even(g: Graph) -> None:
    x = g.input("N", 3, "H", "W")
    wide = g.conv(x, 3, 3, (2, 2), pads=[0, 0, 1, 1])
    g.output(g.relu(g.sum(wide, g.conv(x, 3, 3, (1, 1)), g.conv(x, 3, 3, (2, 3), pads=[1, 1, 0, 1]))))


@row("difference of two convolutions", (1, 0, 0, 2))
def minus(g: Graph) -> None:
    x = g.input("N", 3, "H", "W")
    g.output(g.relu(g.add("Sub", g.conv(x, 3, 4), g.conv(x, 3, 4, (1, 1)))))


@row("weighted sum of branches", (1, 0, 0, 2))
def weighted(g: Graph) -> None:
    x = g.input("N", 4, "H", "W")
    scaled = [g.add("Mul", g.conv_norm(x, 4, 4, (k, k)), g.constant(v)) for k, v in ((3, 0.7), (1, -0.2))]
    g.output(g.relu(g.sum(*scaled, g.add("Mul", g.constant(0.5), x))))


@row("mixer with a layer scale (FastViT)", (1, 0, 0, 2))
def mixer(g: Graph) -> None:
    x = g.input("N", 4, "H", "W")
    mixed = g.sum(g.conv_norm(x, 4, 4, groups=4), g.conv_norm(x, 4, 4, (1, 1), groups=4), g.norm(x, 4))
    scale = g.constant(g.array(4, 1, 1))
    g.output(g.relu(g.sum(x, g.add("Mul", scale, g.add("Sub", mixed, g.norm(x, 4))))))


@row("activations in the branches", (2, 0, 0, 6))
def active(g: Graph) -> None:
    x = g.input("N", 4, "H", "W")
    y = g.sum(g.relu(g.conv_norm(x, 4, 4)), g.relu(g.conv_norm(x, 4, 4, (1, 1))))
    g.output(g.relu(y))


@row("sum with what another input brings", (1, 0, 0, 3))
def two_inputs(g: Graph) -> None:
    x, y = g.input("N", 4, "H", "W"), g.input("N", 4, "H", "W", name="y")
    g.output(g.relu(g.sum(g.conv_norm(x, 4, 4), g.conv_norm(x, 4, 4, (1, 1)), y)))


@row("convolutions of two inputs, added", (2, 0, 0, 4))
def convolved_inputs(g: Graph) -> None:
    x, y = g.input("N", 4, "H", "W"), g.input("N", 2, "H", "W", name="y")
    g.output(g.relu(g.sum(g.conv_norm(x, 4, 4), g.conv_norm(y, 2, 4))))


@row("one branch is read by others, too", (2, 0, 0, 5))
def read_twice(g: Graph) -> None:
    x = g.input("N", 4, "H", "W")
    shared = g.conv_norm(x, 4, 4)
    g.output(g.relu(g.sum(shared, g.conv_norm(x, 4, 4, (1, 1)))), g.add("Sigmoid", shared))


@row("branches that end in one norm", (1, 0, 0, 2))
def norm_behind(g: Graph) -> None:
    x = g.input("N", 4, "H", "W")
    total = g.sum(g.conv(x, 4, 4, bias=False), g.conv(x, 4, 4, (1, 1), bias=False), x)
    g.output(g.relu(g.norm(total, 4)))


@row("strides that differ by a subsampled shortcut", (1, 0, 0, 2))
def shortcut(g: Graph) -> None:
    x = g.input("N", 4, "H", "W")
    pooled = g.add("AveragePool", x, kernel_shape=[1, 1], strides=[2, 2])
    g.output(g.relu(g.sum(g.conv_norm(x, 4, 4, strides=[2, 2]), g.norm(pooled, 4))))


@row("transposed convolutions side by side", (1, 0, 0, 2))
def transposed(g: Graph) -> None:
    x = g.input("N", 3, "H", "W")
    up = {"op": "ConvTranspose", "strides": [2, 2], "same": False}
    first, second = g.conv(x, 3, 4, (4, 4), pads=[1, 1, 1, 1], **up), g.conv(x, 3, 4, (2, 2), **up)
    g.output(g.relu(g.sum(g.norm(first, 4), g.norm(second, 4))))
