"""Forms of a graph: outputs in the middle, names, dead parts, listed weights, symbolic and known sizes."""

from __future__ import annotations

from onnx import TensorProto, helper, numpy_helper

from tests.onnx.graphs import DOUBLE, FLOAT, HALF, INT64, Graph
from tests.onnx.table import row, rows


def block(g: Graph, x: str, channels: int = 4) -> str:
    return g.sum(g.conv_norm(x, channels, channels), g.conv_norm(x, channels, channels, (1, 1)), g.norm(x, channels))


@row("operations that do nothing between convolution and norm", (1, 0, 0, 2))
def nothing_between(g: Graph) -> None:
    y = g.conv(g.input("N", 4, "H", "W"), 4, 4, bias=False)
    y = g.add("Cast", g.dropout(g.add("Identity", y)), to=FLOAT)
    g.output(g.relu(g.norm(y, 4)))


@row("operations that do nothing between branches", (1, 0, 0, 2))
def nothing_in_branches(g: Graph) -> None:
    x = g.add("Identity", g.input("N", 4, "H", "W"))
    g.output(g.relu(g.sum(g.dropout(g.conv_norm(x, 4, 4)), g.conv_norm(g.add("Identity", x), 4, 4), x)))


@row("cast that rounds between convolution and norm", (1, 0, 1, 5), exact=False)
def rounding_between(g: Graph) -> None:
    y = g.conv(g.input("N", 4, "H", "W"), 4, 4)
    y = g.add("Cast", g.add("Cast", y, to=HALF), to=FLOAT)
    g.output(g.relu(g.norm(y, 4)))


@row("cast to a wider type and back", (1, 0, 0, 4))
def wide_between(g: Graph) -> None:
    y = g.conv_norm(g.input("N", 4, "H", "W"), 4, 4)
    g.output(g.relu(g.add("Cast", g.add("Cast", y, to=DOUBLE), to=FLOAT)))


@row("value between convolution and norm is an output", (1, 0, 1, 3))
def output_between(g: Graph) -> None:
    y = g.conv(g.input("N", 3, "H", "W"), 3, 4)
    g.output(y, g.relu(g.norm(y, 4)))


@row("a branch is an output", (2, 0, 0, 4))
def branch_output(g: Graph) -> None:
    x = g.input("N", 4, "H", "W")
    first = g.conv_norm(x, 4, 4)
    g.output(first, g.relu(g.sum(first, g.conv_norm(x, 4, 4, (1, 1)))))


@row("merged value is the output", (1, 0, 0, 1))
def merged_output(g: Graph) -> None:
    g.output(block(g, g.input("N", 4, "H", "W")))


@row("one value as two outputs by Identity", (1, 0, 0, 3))
def output_twice(g: Graph) -> None:
    y = block(g, g.input("N", 4, "H", "W"))
    g.output(y, g.add("Identity", y, into="again"))


@row("an input as output, by Identity", (1, 0, 0, 3))
def input_as_output(g: Graph) -> None:
    x = g.input("N", 4, "H", "W")
    g.output(g.add("Identity", x, into="same"), g.relu(block(g, x)))


@row("a constant as output", (1, 0, 0, 3))
def constant_output(g: Graph) -> None:
    y = g.relu(block(g, g.input("N", 4, "H", "W")))
    g.output(y, g.constant(g.array(3), "anchors"))


@row("a constant is an output and a bias", (1, 0, 0, 2))
def bias_output(g: Graph) -> None:
    bias = g.constant(g.array(4), "both")
    y = g.add("Conv", g.input("N", 3, "H", "W"), g.weight(4, 3, 1, 1), bias)
    g.output(g.relu(g.norm(y, 4)), bias)


@row("several inputs and outputs", (2, 0, 0, 5))
def several(g: Graph) -> None:
    x, y = g.input("N", 4, "H", "W", name="left"), g.input("N", 4, "H", "W", name="right")
    first, second = g.relu(block(g, x)), g.relu(block(g, y))
    g.output(second, first, g.add("Concat", first, second, axis=1))


@row("an input that nothing reads", (1, 0, 0, 2))
def unread_input(g: Graph) -> None:
    x = g.input("N", 4, "H", "W")
    g.input("N", 3, name="unread")
    g.output(g.relu(block(g, x)))


@row("batch of one, all sizes known", (1, 0, 0, 2))
def all_known(g: Graph) -> None:
    g.output(g.relu(block(g, g.input(1, 4, 8, 9))))


@row("batch of one, sizes symbolic", (1, 0, 0, 2))
def batch_known(g: Graph) -> None:
    g.output(g.relu(block(g, g.input(1, 4, "H", "W"))))


@row("nodes that nothing reads", (1, 0, 0, 2))
def dead(g: Graph) -> None:
    x = g.input("N", 4, "H", "W")
    g.add("Sigmoid", g.conv_norm(x, 4, 4))
    g.vector(12, "unread")
    g.output(g.relu(block(g, x)))


@row("no types of inner values", (1, 0, 0, 2), known=False)
def unknown_types(g: Graph) -> None:
    g.output(g.relu(block(g, g.input("N", 4, "H", "W"))))


@row("weights listed among the inputs (IR 3)", (1, 0, 0, 2), opset=8, ir=3, constants="listed")
def listed(g: Graph) -> None:
    g.output(g.relu(block(g, g.input("N", 4, "H", "W"))))


@row("weights that a caller can override (IR 8)", (2, 0, 1, 5), constants="listed")
def overridable(g: Graph) -> None:
    x = g.input("N", 4, "H", "W")
    g.output(g.relu(g.sum(g.conv_norm(x, 4, 4), g.conv(x, 4, 4, (1, 1)))))


@row("one weight that a caller can override", (2, 0, 0, 4))
def one_overridable(g: Graph) -> None:
    x = g.input("N", 4, "H", "W")
    y = g.relu(block(g, x))
    kernel = g.weight(4, 4, 1, 1, name="tunable")
    g.inputs.append(helper.make_tensor_value_info(kernel, FLOAT, (4, 4, 1, 1)))
    g.output(g.relu(g.add("Conv", y, kernel)))


@row("weights as Constant nodes", (1, 0, 0, 2), constants="nodes")
def constant_nodes(g: Graph) -> None:
    g.output(g.relu(block(g, g.input("N", 4, "H", "W"))))


@rows("names of nodes: {title}", (1, 0, 0, 2), [
    {"title": "none", "names": ["", "", ""]},
    {"title": "odd", "names": ["9/ä b:c", "'\"\\", "self"]},
    {"title": "equal", "names": ["same", "same", "same"], "runs": False},
    {"title": "those of values", "names": ["x", "y", "k"]},
])  # fmt: skip
def node_names(g: Graph, title: str, names: list[str]) -> None:
    x = g.input("N", 3, "H", "W")
    kernel, bias = g.weight(3, 3, 3, 3, name="k"), g.vector(3)
    y = g.add("Conv", x, kernel, bias, pads=[1, 1, 1, 1], into="y", name=names[0])
    z = g.add("Add", y, x, into="z", name=names[1])
    g.output(g.add("Relu", z, into="out", name=names[2]))


@row("odd names of values", (2, 0, 0, 4))
def value_names(g: Graph) -> None:
    x = g.input("N", 3, "H", "W", name="input:0")
    names = iter(["0", "1/conv 2", "größe", "torch", "self", "lambda", "x.y[3]", "__class__", "%out", "None"])

    def conv(x: str) -> str:
        kernel, bias = g.weight(3, 3, 1, 1, name=next(names)), g.vector(3, name=next(names))
        return g.add("Conv", x, kernel, bias, into=next(names))

    y = g.add("Relu", g.add("Add", conv(x), x, into=next(names)), into=next(names))
    kernel = g.weight(3, 3, 1, 1, name="conv.weight")
    y = g.add("Mul", g.add("Conv", y, kernel, into="conv"), g.constant(0.5, "conv.bias"), into="merged")
    g.output(g.add("Relu", y, into="output:0"))


@row("a name that a merged weight may want is taken", (1, 0, 0, 3))
def taken_names(g: Graph) -> None:
    x = g.input("N", 3, "H", "W")
    kernel = g.weight(3, 3, 1, 1, name="w")
    y = g.add("Conv", x, kernel, into="conv", name="conv")
    merged = g.add("Add", y, x, into="conv.weight", name="merged")
    g.output(g.add("Relu", merged, into="conv.bias"), g.add("Sigmoid", merged, into="w_merged"))


@row("attributes, documentation and metadata of nodes", (1, 0, 0, 3), ir=10, opset=21)
def documented(g: Graph) -> None:
    y = g.conv_norm(g.input("N", 3, "H", "W"), 3, 4)
    g.output(g.add("HardSigmoid", g.add("LeakyRelu", y, alpha=0.3), alpha=0.25))
    for number, node in enumerate(g.nodes):
        node.doc_string = f"line {number} of a program"
        node.metadata_props.add(key="namespace", value=f"layer.{number}")


@row("weights in the fields of their type", (1, 0, 0, 2))
def typed_fields(g: Graph) -> None:
    g.output(g.relu(block(g, g.input("N", 4, "H", "W"))))
    for tensor in g.initializers:
        values = helper.make_tensor(tensor.name, FLOAT, tensor.dims, _floats(tensor))
        tensor.CopyFrom(values)


@row("sparse weights", (2, 0, 0, 4), exact=False)
def sparse(g: Graph) -> None:
    y = g.relu(block(g, g.input("N", 4, "H", "W")))
    values = helper.make_tensor("sparse_kernel", FLOAT, [3], [1.0, -2.0, 0.5])
    indices = helper.make_tensor("sparse_kernel_indices", INT64, [3], [0, 5, 14])
    kernel = helper.make_node("Constant", [], ["sparse_kernel"], "/sparse")
    kernel.attribute.append(
        helper.make_attribute("sparse_value", helper.make_sparse_tensor(values, indices, [4, 4, 1, 1]))
    )
    g.nodes.append(kernel)
    g.output(g.relu(g.add("Conv", y, "sparse_kernel")))


def _floats(tensor: TensorProto) -> list[float]:
    found: list[float] = numpy_helper.to_array(tensor).ravel().tolist()
    return found
