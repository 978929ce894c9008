"""Convolutions with norms, paddings, pools and each other, in a row."""

from __future__ import annotations

from typing import Any

from tests.onnx.graphs import Graph
from tests.onnx.kinds.branches import SPATIAL
from tests.onnx.table import product, row, rows


@rows("convolution and norm: {title}", (1, 0, 0, 2), [
    {"title": "1-D", "dims": 1},
    {"title": "3-D", "dims": 3},
    {"title": "groups", "attributes": {"groups": 2}},
    {"title": "depthwise", "attributes": {"groups": 4}},
    {"title": "dilated", "attributes": {"dilations": [2, 3]}},
    {"title": "strided", "attributes": {"strides": [2, 3]}},
    {"title": "asymmetric padding", "attributes": {"pads": [0, 1, 2, 3]}},
    {"title": "SAME_UPPER", "attributes": {"auto_pad": "SAME_UPPER", "strides": [2, 2]}},
    {"title": "SAME_LOWER", "attributes": {"auto_pad": "SAME_LOWER", "strides": [2, 2]}},
    {"title": "VALID", "attributes": {"auto_pad": "VALID"}},
    {"title": "NOTSET", "attributes": {"auto_pad": "NOTSET", "pads": [1, 1, 1, 1]}},
    {"title": "bias", "attributes": {"bias": True}},
])  # fmt: skip
def conv_norm(g: Graph, title: str, dims: int = 2, attributes: dict[str, Any] | None = None) -> None:
    x = g.input("N", 4, *SPATIAL[dims])
    y = g.conv(x, 4, 8, (3,) * dims, **{"bias": False, **(attributes or {})})
    g.output(g.relu(g.norm(y, 8, epsilon=1e-3)))


@rows("branches padded by {auto_pad}, kernels {kernels}", (1, 0, 0, 2), product(
    auto_pad=["SAME_UPPER", "SAME_LOWER"], kernels=[(3, 1), (4, 2)],
))  # fmt: skip
def same_branches(g: Graph, auto_pad: str, kernels: tuple[int, int]) -> None:
    x = g.input("N", 4, "H", "W")
    g.output(g.relu(g.sum(*[g.conv_norm(x, 4, 4, (k, k), auto_pad=auto_pad) for k in kernels])))


@rows("strided branches padded by {auto_pad} at a known size", (1, 0, 0, 2), [
    {"auto_pad": "SAME_UPPER"}, {"auto_pad": "SAME_LOWER"},
])  # fmt: skip
def same_strided(g: Graph, auto_pad: str) -> None:
    x = g.input("N", 4, 10, 7)
    same = {"auto_pad": auto_pad, "strides": [2, 2]}
    g.output(g.relu(g.sum(g.conv_norm(x, 4, 4, (3, 3), **same), g.conv_norm(x, 4, 4, (1, 1), **same))))


@row("convolution without the attribute kernel_shape", (1, 0, 0, 2))
def no_kernel_shape(g: Graph) -> None:
    y = g.add("Conv", g.input("N", 3, "H", "W"), g.weight(4, 3, 3, 3), pads=[1, 1, 1, 1])
    g.output(g.relu(g.norm(y, 4)))


@row("optional bias that is left empty", (1, 0, 0, 2))
def empty_bias(g: Graph) -> None:
    y = g.add("Conv", g.input("N", 3, "H", "W"), g.weight(4, 3, 3, 3), "")
    g.output(g.relu(g.norm(y, 4)))


@rows("norm before a convolution, padding {padding}", (1, 0, 0, 2), [
    {"padding": 0}, {"padding": 1, "left": (1, 0, 1, 3)},
])  # fmt: skip
def norm_conv(g: Graph, padding: int) -> None:
    y = g.conv(g.norm(g.input("N", 4, "H", "W"), 4), 4, 6, pads=[padding] * 4)
    g.output(g.relu(y))


@row("norm, activation, convolution (pre-activation)", (1, 0, 1, 3))
def pre_activation(g: Graph) -> None:
    g.output(g.conv(g.relu(g.norm(g.input("N", 4, "H", "W"), 4)), 4, 6))


@row("two norms in a row behind a convolution", (1, 0, 0, 2))
def two_norms(g: Graph) -> None:
    g.output(g.relu(g.norm(g.conv_norm(g.input("N", 3, "H", "W"), 3, 4), 4)))


@rows("transposed convolution and norm: {title}", (1, 0, 0, 2), [
    {"title": "plain", "attributes": {"strides": [2, 2]}},
    {"title": "output padding", "attributes": {"strides": [2, 2], "output_padding": [1, 0]}},
    {"title": "SAME_UPPER", "attributes": {"strides": [2, 2], "auto_pad": "SAME_UPPER"}},
    {"title": "dilated", "attributes": {"dilations": [2, 1]}},
    {"title": "1-D", "attributes": {"strides": [3]}},
    {"title": "3-D", "attributes": {"strides": [2, 1, 2]}},
])  # fmt: skip
def transposed_norm(g: Graph, title: str, attributes: dict[str, Any]) -> None:
    dims = {"1-D": 1, "3-D": 3}.get(title, 2)
    x = g.input("N", 4, *SPATIAL[dims])
    y = g.conv(x, 4, 6, (3,) * dims, op="ConvTranspose", bias=False, same=False, **attributes)
    g.output(g.relu(g.norm(y, 6)))


@row("transposed convolution and norm: groups", (1, 0, 0, 2), exact=False)  # onnx's evaluator has no groups there
def transposed_groups(g: Graph) -> None:
    x = g.input("N", 4, "H", "W")
    y = g.conv(x, 4, 6, op="ConvTranspose", bias=False, same=False, groups=2, strides=[2, 1])
    g.output(g.relu(g.norm(y, 6)))


@row("norm before a transposed convolution, scale only", (1, 0, 0, 2))
def scale_transposed(g: Graph) -> None:
    x = g.add("Mul", g.input("N", 4, "H", "W"), g.constant(g.array(4, 1, 1)))
    g.output(g.relu(g.conv(x, 4, 3, (2, 2), op="ConvTranspose", strides=[2, 2], same=False)))


@row("1×1, then 3×3 without padding", (1, 0, 0, 2))
def pointwise_first(g: Graph) -> None:
    g.output(g.relu(g.conv(g.conv_norm(g.input("N", 4, "H", "W"), 4, 8, (1, 1)), 8, 4, same=False)))


@row("3×3, then 1×1", (1, 0, 0, 2))
def pointwise_second(g: Graph) -> None:
    g.output(g.relu(g.conv_norm(g.conv(g.input("N", 4, "H", "W"), 4, 8), 8, 4, (1, 1))))


@row("1×1, norm with a bias, then 3×3 with padding", (2, 0, 0, 3))
def biased_border(g: Graph) -> None:
    g.output(g.relu(g.conv(g.conv_norm(g.input("N", 4, "H", "W"), 4, 4, (1, 1)), 4, 4)))


@row("depthwise, then pointwise: merging would cost more", (2, 0, 0, 3))
def separable(g: Graph) -> None:
    x = g.input("N", 16, "H", "W")
    g.output(g.relu(g.conv_norm(g.conv_norm(x, 16, 16, groups=16), 16, 24, (1, 1))))


@row("a chain of pointwise convolutions with norms", (1, 0, 0, 2))
def pointwise_chain(g: Graph) -> None:
    y = g.input("N", 4, "H", "W")
    for _ in range(4):
        y = g.conv_norm(y, 4, 4, (1, 1))
    g.output(g.relu(y))


@row("one kernel for two convolutions with norms of their own", (2, 0, 0, 4))
def shared_kernel(g: Graph) -> None:
    x, kernel = g.input("N", 3, "H", "W"), g.weight(3, 3, 3, 3)
    y = g.relu(g.norm(g.add("Conv", x, kernel, pads=[1, 1, 1, 1]), 3))
    g.output(g.relu(g.norm(g.add("Conv", y, kernel, pads=[1, 1, 1, 1]), 3)))


@row("one norm's parameters for two norms", (2, 0, 0, 4))
def shared_norm(g: Graph) -> None:
    y, values = g.input("N", 3, "H", "W"), [g.constant([0.3, 1.5, -0.7]) for _ in range(3)]
    variance = g.constant([0.5, 1.0, 2.0])
    for _ in range(2):
        y = g.relu(g.add("BatchNormalization", g.conv(y, 3, 3), *values, variance))
    g.output(y)


@rows("Pad {mode} before a convolution", (1, 0, 0, 3), [
    {"mode": "constant", "left": (1, 0, 0, 2)}, {"mode": "reflect"}, {"mode": "edge"},
])  # fmt: skip
def padded(g: Graph, mode: str) -> None:
    x = g.pad(g.input("N", 3, "H", "W"), [0, 0, 1, 2, 0, 0, 2, 1], mode)
    g.output(g.relu(g.conv_norm(x, 3, 4, same=False)))


@rows("Pad {mode} before branches", (1, 0, 0, 3), [{"mode": "reflect"}, {"mode": "edge"}])
def padded_branches(g: Graph, mode: str) -> None:
    x = g.pad(g.input("N", 4, "H", "W"), [0, 0, 1, 1, 0, 0, 1, 1], mode)
    y = g.sum(g.conv_norm(x, 4, 4, same=False), g.conv(x, 4, 4, same=False))
    g.output(g.relu(y))


@row("Pad with another value than zero before a convolution", (1, 0, 0, 3))
def padded_by_value(g: Graph) -> None:
    x = g.pad(g.input("N", 3, "H", "W"), [0, 0, 1, 1, 0, 0, 1, 1], value=2.0)
    g.output(g.relu(g.conv_norm(x, 3, 4, same=False)))


@row("Pad that crops before a convolution", (1, 0, 0, 3), exact=False)  # onnx's evaluator takes no negative pads
def cropped(g: Graph) -> None:
    x = g.pad(g.input("N", 3, "H", "W"), [0, 0, -1, 0, 0, 0, -1, -2])
    g.output(g.relu(g.conv_norm(x, 3, 4)))


@row("Pad by nothing", (1, 0, 0, 2))
def padded_by_nothing(g: Graph) -> None:
    g.output(g.relu(g.conv_norm(g.pad(g.input("N", 3, "H", "W"), [0] * 8), 3, 4)))


@row("average pool behind a pointwise convolution", (1, 0, 0, 3))
def pooled(g: Graph) -> None:
    y = g.conv_norm(g.input("N", 4, "H", "W"), 4, 4, (1, 1))
    g.output(g.relu(g.add("AveragePool", y, kernel_shape=[2, 2], strides=[2, 2])))


@row("global pool between two convolutions (squeeze and excitation)", (3, 0, 0, 7))
def squeeze_excite(g: Graph) -> None:
    y = g.conv_norm(g.input("N", 4, "H", "W"), 4, 4)
    gate = g.relu(g.conv(g.add("GlobalAveragePool", y), 4, 2, (1, 1)))
    g.output(g.add("Mul", y, g.add("Sigmoid", g.conv(gate, 2, 4, (1, 1)))))


@row("convolution whose kernel is an input", (1, 0, 1, 3))
def dynamic_kernel(g: Graph) -> None:
    x, kernel = g.input("N", 3, "H", "W"), g.input(4, 3, 3, 3, name="kernel")
    g.output(g.relu(g.norm(g.add("Conv", x, kernel), 4)))


@rows("another kind of norm: {op}", (1, 0, 0, 3), [
    {"op": "InstanceNormalization"}, {"op": "LRN"}, {"op": "LayerNormalization"},
], exact=False)  # fmt: skip
def other_norms(g: Graph, op: str) -> None:
    y = g.conv(g.input("N", 4, 6, 5), 4, 4)
    shape = {"InstanceNormalization": [(4,), (4,)], "LayerNormalization": [(5,), (5,)], "LRN": []}[op]
    attributes = {"size": 3} if op == "LRN" else {}
    g.output(g.relu(g.add(op, y, *[g.constant(g.array(*s)) for s in shape], **attributes)))
