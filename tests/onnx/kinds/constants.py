"""Sums and products with constants before and after convolutions, wherever the constant comes from."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from onnx import numpy_helper

from tests.onnx.graphs import FLOAT, INT64, Graph
from tests.onnx.table import product, row, rows

SHAPES = {"scalar": (), "[1]": (1,), "(C, 1, 1)": (4, 1, 1), "(1, C, 1, 1)": (1, 4, 1, 1)}
KINDS = [
    {"op": op, "shape": shape, "first": first}
    for j, (op, shape) in enumerate((op, shape) for op in ("Mul", "Add", "Sub", "Div") for shape in SHAPES)
    for first in ([False] if op == "Div" else [False, True] if j % 2 else [False])
]


def combined(g: Graph, op: str, x: str, constant: str, first: bool) -> str:
    return g.add(op, constant, x) if first else g.add(op, x, constant)


def numbers(g: Graph, shape: str) -> Any:
    """Away from zero, of both signs."""
    values = g.array(*SHAPES[shape])
    return values + np.copysign(0.5, values)


@rows("{op} behind a convolution, constant of shape {shape}, first {first}", (1, 0, 0, 2), KINDS)
def behind(g: Graph, op: str, shape: str, first: bool) -> None:
    y = g.conv(g.input("N", 3, "H", "W"), 3, 4)
    g.output(g.relu(combined(g, op, y, g.constant(numbers(g, shape)), first)))


@rows("{op} before a convolution without padding, constant of shape {shape}, first {first}", (1, 0, 0, 2), KINDS)
def before(g: Graph, op: str, shape: str, first: bool) -> None:
    x = combined(g, op, g.input("N", 4, "H", "W"), g.constant(numbers(g, shape)), first)
    g.output(g.relu(g.conv(x, 4, 3, same=False)))


@rows("{op} before a padded convolution", (1, 0, 0, 2), [
    {"op": "Mul"}, {"op": "Div"}, {"op": "Add", "left": (1, 0, 0, 3)}, {"op": "Sub", "left": (1, 0, 0, 3)},
])  # fmt: skip
def before_padded(g: Graph, op: str) -> None:
    x = g.add(op, g.input("N", 4, "H", "W"), g.constant(numbers(g, "(C, 1, 1)")))
    g.output(g.relu(g.conv(x, 4, 3)))


@row("normalised image: a difference, a quotient and a padded convolution", (1, 0, 0, 4))
def normalised(g: Graph) -> None:
    x = g.add("Sub", g.input("N", 3, "H", "W"), g.constant([[[0.485]], [[0.456]], [[0.406]]]))
    x = g.add("Div", x, g.constant([[[0.229]], [[0.224]], [[0.225]]]))
    g.output(g.relu(g.conv_norm(x, 3, 4)))


@row("constant divided by a value, before a convolution", (1, 0, 0, 3))
def divided_before(g: Graph) -> None:
    x = g.add("Div", g.constant(2.0), g.add("Exp", g.input("N", 4, "H", "W")))
    g.output(g.conv(x, 4, 4))


@row("constant divided by a convolution", (1, 0, 0, 2))
def divided_behind(g: Graph) -> None:
    y = g.add("Add", g.conv(g.input("N", 4, "H", "W"), 4, 4), g.constant(20.0))
    g.output(g.add("Div", g.constant(2.0), y))


@rows("product with a constant for each pixel, {op}", (1, 0, 0, 2), [{"op": "Mul"}, {"op": "Add"}])
def each_pixel(g: Graph, op: str) -> None:
    g.output(g.add(op, g.conv(g.input("N", 3, 6, 5), 3, 4), g.constant(g.array(6, 5))))


@row("product with a value that is no constant", (1, 0, 0, 4))
def gate(g: Graph) -> None:
    y = g.conv_norm(g.input("N", 3, "H", "W"), 3, 4)
    pooled = g.add("GlobalAveragePool", y)
    g.output(g.add("Mul", y, g.add("Sigmoid", pooled)))


@rows("Neg {where}", (1, 0, 0, 2), [{"where": "before"}, {"where": "behind"}])
def negated(g: Graph, where: str) -> None:
    x = g.input("N", 4, "H", "W")
    y = g.conv(g.add("Neg", x) if where == "before" else x, 4, 4)
    g.output(g.relu(g.add("Neg", y) if where == "behind" else y))


@row("a chain of ten sums and products", (1, 0, 0, 2))
def chain(g: Graph) -> None:
    y = g.conv(g.input("N", 4, "H", "W"), 4, 4)
    for j in range(5):
        y = g.add("Mul", y, g.constant(numbers(g, list(SHAPES)[j % 4])))
        y = g.add("Add", g.constant(numbers(g, list(SHAPES)[-1 - j % 4])), y)
    g.output(g.relu(y))


@row("bias of a 1-D convolution, added", (1, 0, 0, 2))
def bias_in_1d(g: Graph) -> None:
    y = g.conv(g.input("N", 3, "L"), 3, 4, (3,))
    g.output(g.relu(g.add("Add", y, g.constant(g.array(1, 4, 1)))))


@row("a sum that broadcasts to a higher rank", (1, 0, 0, 3))
def broadcast_to_rank(g: Graph) -> None:
    y = g.conv(g.input("N", 3, "L"), 3, 4, (3,))
    g.output(g.relu(g.add("Add", y, g.constant(g.array(2, 1, 4, 1)))))


@row("a sum that broadcasts channels", (1, 0, 0, 3))
def broadcast_channels(g: Graph) -> None:
    y = g.conv(g.input("N", 3, "H", "W"), 3, 1)
    g.output(g.relu(g.add("Add", y, g.constant(g.array(4, 1, 1)))))


@row("scale behind an activation", (2, 0, 0, 4))
def behind_activation(g: Graph) -> None:
    y = g.relu(g.conv(g.input("N", 3, "H", "W"), 3, 4))
    g.output(g.relu(g.conv(g.add("Mul", y, g.constant(numbers(g, "(C, 1, 1)"))), 4, 3)))


# Constants that are computed


def _unsqueezed(g: Graph) -> str:
    return g.unsqueeze(g.vector(4), 1, 2)


def _reshaped(g: Graph) -> str:
    return g.add("Reshape", g.vector(4), g.integers(1, -1, 1, 1))


def _multiplied(g: Graph) -> str:
    return g.add("Mul", g.constant(g.array(4, 1, 1)), g.constant(0.3))


def _expanded(g: Graph) -> str:
    return g.add("Expand", g.constant(g.array(1)), g.integers(4, 1, 1))


def _cast(g: Graph) -> str:
    return g.add("Cast", g.constant([[[3]], [[-1]], [[2]], [[5]]], dtype=INT64), to=FLOAT)


def _filled(g: Graph) -> str:
    return g.add("ConstantOfShape", g.integers(4, 1, 1), value=numpy_helper.from_array(np.float32([0.25])))


def _transposed(g: Graph) -> str:
    return g.add("Transpose", g.constant(g.array(1, 1, 4)), perm=[2, 0, 1])


def _joined(g: Graph) -> str:
    return g.add("Concat", g.constant(g.array(1, 1, 1)), g.constant(g.array(3, 1, 1)), axis=0)


def _sliced(g: Graph) -> str:
    return g.slice(g.constant(g.array(8, 1, 1)), [2], [6], [0])


def _root(g: Graph) -> str:
    variance = g.constant(0.5 + g.random.random((4, 1, 1)))
    return g.add("Sqrt", g.add("Add", variance, g.constant(1e-3)))


def _node(g: Graph) -> str:
    return g.constant(g.array(4, 1, 1), node=True)


def _float_attribute(g: Graph) -> str:
    return g.add("Constant", value_float=0.75)


def _floats_attribute(g: Graph) -> str:
    return g.unsqueeze(g.add("Constant", value_floats=[0.5, -2.0, 1.0, 3.0]), 1, 2)


def _through_identity(g: Graph) -> str:
    return g.add("Identity", g.constant(g.array(4, 1, 1)))


MADE: dict[str, Callable[[Graph], str]] = {
    function.__name__.strip("_").replace("_", " "): function
    for function in (
        _unsqueezed, _reshaped, _multiplied, _expanded, _cast, _filled, _transposed, _joined, _sliced, _root, _node,
        _float_attribute, _floats_attribute, _through_identity,
    )
}  # fmt: skip


@rows("{op} with a computed constant: {made}", (1, 0, 0, 2), product(op=["Mul", "Add"], made=list(MADE)))
def computed(g: Graph, op: str, made: str) -> None:
    y = g.conv(g.input("N", 3, "H", "W"), 3, 4)
    g.output(g.relu(g.add(op, y, MADE[made](g))))


@row("batch norm written as sums, a root and quotients", (1, 0, 0, 2))
def norm_by_hand(g: Graph) -> None:
    y = g.conv(g.input("N", 3, "H", "W"), 3, 4, bias=False)
    centred = g.add("Sub", y, g.unsqueeze(g.vector(4), 1, 2))
    scaled = g.add("Mul", g.add("Div", centred, _root(g)), g.add("Reshape", g.vector(4), g.integers(4, 1, 1)))
    g.output(g.relu(g.add("Add", scaled, g.constant(g.array(4, 1, 1)))))


@row("kernel computed from constants: a reshape, a product, a transpose", (2, 0, 0, 4))
def computed_kernel(g: Graph) -> None:
    flat = g.add("Reshape", g.weight(4, 27), g.integers(4, 3, 3, 3))
    y = g.add("Conv", g.input("N", 3, "H", "W"), g.add("Mul", flat, g.constant(0.5)), pads=[1, 1, 1, 1])
    kernel = g.add("Transpose", g.weight(3, 3, 4, 4), perm=[3, 2, 0, 1])  # as TensorFlow stores it
    second = g.add("Conv", g.relu(g.norm(y, 4)), kernel, auto_pad="SAME_UPPER", strides=[2, 2])
    g.output(g.relu(g.norm(second, 4)))
