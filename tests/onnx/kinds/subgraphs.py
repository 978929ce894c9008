"""Models with branches, loops and functions, whose bodies read outer values."""

from __future__ import annotations

from collections.abc import Sequence

from onnx import helper

from tests.onnx.graphs import BOOL, INT64, Graph
from tests.onnx.kinds.structure import block
from tests.onnx.table import row, rows


@row("If whose branches read an outer value", (3, 0, 2, 9))
def branches(g: Graph) -> None:
    y = g.relu(block(g, g.input("N", 4, "H", "W")))
    condition = g.input(name="condition", dtype=BOOL)

    def then(inner: Graph) -> None:
        inner.output(inner.relu(inner.conv_norm(y, 4, 4)))

    def otherwise(inner: Graph) -> None:
        inner.output(inner.add("Sigmoid", inner.conv_norm(y, 4, 4, (1, 1))))

    g.output(g.add("If", condition, then_branch=g.body(then), else_branch=g.body(otherwise)))


@row("If that reads a value between convolution and norm", (1, 0, 1, 5))
def captured(g: Graph) -> None:
    between = g.conv(g.input("N", 3, "H", "W"), 3, 4)
    y = g.norm(between, 4)
    condition = g.input(name="condition", dtype=BOOL)
    chosen = g.add(
        "If",
        condition,
        then_branch=g.body(lambda inner: inner.output(inner.relu(between))),
        else_branch=g.body(lambda inner: inner.output(inner.relu(y))),
    )
    g.output(chosen)


@row("If whose branch uses an outer weight", (3, 0, 0, 5))
def outer_weight(g: Graph) -> None:
    x = g.input("N", 3, "H", "W")
    kernel = g.weight(3, 3, 1, 1)
    y = g.relu(g.norm(g.add("Conv", x, kernel), 3))
    condition = g.input(name="condition", dtype=BOOL)
    g.output(
        g.add(
            "If",
            condition,
            then_branch=g.body(lambda inner: inner.output(inner.add("Conv", y, kernel))),
            else_branch=g.body(lambda inner: inner.output(inner.conv(y, 3, 3))),
        )
    )


@row("If within If", (2, 0, 1, 8))
def nested(g: Graph) -> None:
    y = g.relu(block(g, g.input("N", 4, "H", "W")))
    condition = g.input(name="condition", dtype=BOOL)

    def then(inner: Graph) -> None:
        deeper = {
            "then_branch": inner.body(lambda last: last.output(last.conv_norm(y, 4, 4))),
            "else_branch": inner.body(lambda last: last.output(last.add("Neg", y))),
        }
        inner.output(inner.add("If", condition, **deeper))

    otherwise = g.body(lambda inner: inner.output(inner.add("Identity", y)))
    g.output(g.add("If", condition, then_branch=g.body(then), else_branch=otherwise))


@row("Loop whose body is a block", (3, 0, 3, 11))
def loop(g: Graph) -> None:
    y = g.conv_norm(g.input("N", 4, "H", "W"), 4, 4)
    trips = g.input(name="trips", dtype=INT64, feed=3)
    condition = g.constant(True, dtype=BOOL)

    def body(inner: Graph) -> None:
        inner.input(name="step", dtype=INT64)
        going = inner.input(name="going", dtype=BOOL)
        state = inner.input("n", 4, "h", "w", name="state")
        inner.output(inner.add("Identity", going), inner.relu(block(inner, state)))

    g.output_of(g.add("Loop", trips, condition, y, body=g.body(body)), "N", 4, "H", "W")


@row("Scan over a sequence", (0, 2, 0, 8))
def scan(g: Graph) -> None:
    x = g.input(5, 4)
    start = g.constant(g.array(4))
    kernel = g.weight(4, 4)

    def body(inner: Graph) -> None:
        state, item = inner.input(4, name="state"), inner.input(4, name="item")
        new = inner.add("Tanh", inner.add("Add", inner.add("MatMul", state, kernel), item))
        inner.output(new, inner.add("Identity", new))

    g.add("Scan", start, x, body=g.body(body), num_scan_inputs=1, into=["last", "all"])
    g.output(g.relu(g.add("Add", g.add("MatMul", "all", g.weight(4, 3)), g.vector(3))))


NORM = ("scale", "bias", "mean", "variance")


def define(g: Graph, name: str, inputs: Sequence[str], outputs: Sequence[str], nodes: Sequence[tuple[str, ...]],
           domain: str = "org.example.blocks", **attributes: list[str]) -> None:  # fmt: skip
    """A function of the model: nodes are given by operator, output and inputs."""
    made = [helper.make_node(op, list(read), [out], name=f"inner_{out}") for op, out, *read in nodes]
    for node in made:
        if node.op_type == "Conv":
            node.attribute.append(helper.make_attribute("pads", [1, 1, 1, 1]))
    opsets = [helper.make_opsetid("", g.opset)]
    g.functions.append(helper.make_function(domain, name, list(inputs), list(outputs), made, opsets))
    g.domains[domain] = 1


@rows("function of the model's own domain, called {calls} times", (2, 0, 1, 6), [
    {"calls": 1}, {"calls": 2, "left": (3, 0, 1, 8)},
], ir=9)  # fmt: skip
def function(g: Graph, calls: int) -> None:
    define(g, "ConvNorm", ("x", "kernel", *NORM), ["y"], [
        ("Conv", "convolved", "x", "kernel"), ("BatchNormalization", "y", "convolved", *NORM),
    ])  # fmt: skip
    y = g.relu(g.conv_norm(g.input("N", 4, "H", "W"), 4, 4))
    for _ in range(calls):
        values = [g.weight(4, 4, 3, 3), *[g.vector(4) for _ in range(3)], g.constant(0.5 + g.random.random(4))]
        y = g.relu(g.add("ConvNorm", y, *values, domain="org.example.blocks"))
    g.output(y)


@row("function whose result is a branch", (2, 0, 0, 6), ir=9)
def function_branch(g: Graph) -> None:
    define(g, "Scaled", ("x", "factor"), ["y"], [("Mul", "y", "x", "factor")])
    x = g.input("N", 4, "H", "W")
    scaled = g.add("Scaled", g.conv_norm(x, 4, 4), g.constant(0.3), domain="org.example.blocks")
    g.output(g.relu(g.sum(scaled, g.conv(x, 4, 4, (1, 1)))))


@row("function that is called like an operator", (1, 0, 0, 4), ir=9)
def function_like_operator(g: Graph) -> None:
    define(g, "Conv", ("x", "k"), ["y"], [("Relu", "positive", "x"), ("Mul", "y", "positive", "k")])
    y = g.conv_norm(g.input("N", 4, "H", "W"), 4, 4)
    g.output(g.add("Conv", y, g.constant(-0.5), domain="org.example.blocks"))


@row("sequences and optional values", (1, 0, 0, 5))
def sequences(g: Graph) -> None:
    y = g.relu(block(g, g.input("N", 4, "H", "W")))
    pair = g.add("SequenceConstruct", y, g.add("Sigmoid", y))
    g.output(g.add("SequenceAt", pair, g.constant(1, dtype=INT64)), pair)
