"""Numbers computed from the sizes of the input that are the same at many sizes, and not at all of them."""

from __future__ import annotations

from tests.onnx.graphs import BOOL, FLOAT, INT64, Graph
from tests.onnx.table import row, rows

UNLIKE = ({"N": 7, "H": 12, "W": 12}, {"N": 1, "H": 300, "W": 9}, {"N": 2, "H": 64, "W": 65}, {"N": 1, "H": 7, "W": 7})
"""Sizes at which such numbers differ from those at usual sizes."""


def size(g: Graph, x: str, axis: int) -> str:
    return g.add("Gather", g.add("Shape", x), g.constant(axis, dtype=INT64))


def number(g: Graph, value: int) -> str:
    return g.constant(value, dtype=INT64)


@rows("{op} of a size and {bound}, as a factor", (2, 0, 0, 7), [
    {"op": op, "axis": axis, "bound": bound}
    for op, axis, bound in (
        ("Min", 2, 20), ("Max", 2, 200), ("Div", 2, 2000), ("Div", 2, 256), ("Less", 2, 30), ("Greater", 0, 6),
        ("Equal", 2, 12), ("Mod", 0, 71),
    )
], sizes=UNLIKE)  # fmt: skip
def bounded(g: Graph, op: str, axis: int, bound: int) -> None:
    x = g.input("N", 3, "H", "W")
    found = g.add("Cast", g.add(op, size(g, x, axis), number(g, bound)), to=FLOAT)
    g.output(g.conv(g.add("Mul", g.conv(x, 3, 4), found), 4, 3))


@row("factor that depends on whether two sizes are equal", (2, 0, 0, 9), sizes=UNLIKE)
def equal(g: Graph) -> None:
    x = g.input("N", 3, "H", "W")
    found = g.add("Equal", size(g, x, 2), size(g, x, 3))
    factor = g.add("Where", found, g.constant(2.0), g.constant(3.0))
    g.output(g.conv(g.add("Mul", g.conv(x, 3, 4), factor), 4, 3))


@row("size of a slice that is longer than small images", (2, 0, 0, 7), sizes=UNLIKE)
def size_of_slice(g: Graph) -> None:
    x = g.slice(g.input("N", 3, "H", "W"), [0], [50], [2])
    found = g.add("Cast", size(g, x, 2), to=FLOAT)
    g.output(g.conv(g.add("Mul", g.conv(x, 3, 4), found), 4, 3))


@row("automatic padding behind a slice that is longer than small images", (2, 0, 0, 3), sizes=UNLIKE)
def automatic_after_slice(g: Graph) -> None:
    x = g.slice(g.input("N", 3, "H", "W"), [0, 0], [50, 50], [2, 3])
    y = g.add("Conv", x, g.weight(4, 3, 3, 3), auto_pad="SAME_UPPER", strides=[2, 2])
    g.output(g.conv(y, 4, 3, (1, 1)))


@row("size divided and multiplied by one, minus itself", (1, 0, 0, 1), sizes=UNLIKE)
def one(g: Graph) -> None:
    x = g.input("N", 3, "H", "W")
    found = g.add("Div", g.add("Mul", size(g, x, 2), number(g, 3)), number(g, 3))
    amount = g.add("Add", g.add("Sub", found, size(g, x, 2)), number(g, 2))
    g.output(g.conv(g.add("Mul", g.conv(x, 3, 4), g.add("Cast", amount, to=FLOAT)), 4, 3, (1, 1)))


@row("constant that has more channels than the value it is added to", (2, 0, 0, 3))
def more_channels(g: Graph) -> None:
    y = g.add("Add", g.conv(g.input("N", 4, "H", "W"), 4, 1), g.constant(g.array(4, 1, 1)))
    g.output(g.conv(y, 4, 4, (1, 1)))


@row("sum that reads an input twice through another sum", (0, 0, 0, 3))
def read_twice(g: Graph) -> None:
    x, y = g.input("N", 4, "H", "W"), g.input("N", 4, "H", "W", name="y")
    inner = g.add("Add", x, y)
    g.output(g.add("Add", y, inner), g.add("Add", y, x))


@row("names in a branch that a merged operator would take", (1, 0, 0, 4))
def names_in_branch(g: Graph) -> None:
    y = g.conv(g.conv(g.input("N", 3, "H", "W"), 3, 4), 4, 4, (1, 1))
    condition = g.input(name="condition", dtype=BOOL)
    g.output(
        g.add(
            "If",
            condition,
            then_branch=g.body(lambda inner: inner.output(inner.add("Relu", y, into=f"{y}/weight"))),
            else_branch=g.body(lambda inner: inner.output(inner.add("Relu", y, into=f"{y}/bias"))),
        )
    )
