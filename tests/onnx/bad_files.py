"""Files that are no valid models, each by what is wrong."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from onnx import ModelProto, helper
from onnx.external_data_helper import set_external_data

from tests.onnx.corpus import ROWS


def good() -> ModelProto:
    return ROWS["RepVGG block in 2-D"].make()


def changed(change: Callable[[ModelProto], Any]) -> Callable[[Path], None]:
    """Write the good model with a change."""

    def write(path: Path) -> None:
        model = good()
        change(model)
        path.write_bytes(model.SerializeToString())

    return write


def written(content: bytes) -> Callable[[Path], Any]:
    return lambda path: path.write_bytes(content)


# Files that are no models


def truncated(path: Path) -> None:
    content = good().SerializeToString()
    path.write_bytes(content[: len(content) // 2])


def zipped(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"\x80\x02.")


def other_message(path: Path) -> None:
    path.write_bytes(good().graph.initializer[0].SerializeToString())


# Graphs that aren't valid


def cyclic(model: ModelProto) -> None:
    model.graph.node[0].input[0] = model.graph.node[-1].output[0]


def in_wrong_order(model: ModelProto) -> None:
    nodes = list(model.graph.node)
    del model.graph.node[:]
    model.graph.node.extend(reversed(nodes))


def made_twice(model: ModelProto) -> None:
    model.graph.node[1].output[0] = model.graph.node[0].output[0]


def made_by_nobody(model: ModelProto) -> None:
    model.graph.node[3].input[0] = "missing"


def output_made_by_nobody(model: ModelProto) -> None:
    model.graph.output[0].name = "missing"


def no_graph(model: ModelProto) -> None:
    model.ClearField("graph")


def empty_graph(model: ModelProto) -> None:
    for field in ("node", "input", "output", "initializer", "value_info"):
        model.graph.ClearField(field)


def unknown_operator(model: ModelProto) -> None:
    model.graph.node[0].op_type = "Convolution"


def unknown_attribute(model: ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("paddings", [1, 1]))


def attribute_of_other_type(model: ModelProto) -> None:
    for attribute in model.graph.node[0].attribute:
        if attribute.name == "pads":
            attribute.CopyFrom(helper.make_attribute("pads", "ones"))


def too_few_inputs(model: ModelProto) -> None:
    del model.graph.node[1].input[2:]


def unknown_opset(model: ModelProto) -> None:
    model.opset_import[0].version = 9999


def no_opset(model: ModelProto) -> None:
    model.ClearField("opset_import")


def unknown_format(model: ModelProto) -> None:
    model.ir_version = 9999


def wrong_channels(model: ModelProto) -> None:
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 5


def negative_size(model: ModelProto) -> None:
    model.graph.initializer[0].dims[0] = -4


def fewer_bytes(model: ModelProto) -> None:
    tensor = model.graph.initializer[0]
    tensor.raw_data = tensor.raw_data[:-4]


def more_bytes(model: ModelProto) -> None:
    model.graph.initializer[0].raw_data += b"1234"


def huge_size(model: ModelProto) -> None:
    model.graph.initializer[0].dims[0] = 2**40


def huge_product(model: ModelProto) -> None:
    model.graph.initializer[0].dims[:] = [2**32, 2**32, 1, 1]


def unknown_type(model: ModelProto) -> None:
    model.graph.initializer[0].data_type = 99


def groups_of_nothing(model: ModelProto) -> None:
    model.graph.node[0].attribute.append(helper.make_attribute("group", 0))


def itself_within(model: ModelProto) -> None:
    """A function that calls itself."""
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("own", 1)]
    node = helper.make_node("Again", ["x"], ["y"], domain="own")
    model.functions.append(helper.make_function("own", "Again", ["x"], ["y"], [node], opsets))
    model.opset_import.append(helper.make_opsetid("own", 1))
    model.ir_version = 9
    model.graph.node[-1].op_type, model.graph.node[-1].domain = "Again", "own"


# Data outside the file


def external(location: str, **values: int) -> Callable[[ModelProto], None]:
    """Move the first weight to a file, which isn't written."""

    def change(model: ModelProto) -> None:
        tensor = model.graph.initializer[0]
        set_external_data(tensor, location, **values)
        tensor.ClearField("raw_data")

    return change


FILES: dict[str, Callable[[Path], Any]] = {
    "truncated": truncated,
    "text": written(b"this is no model\n" * 9),
    "empty": written(b""),
    "zeros": written(bytes(999)),
    "zip": zipped,
    "another message": other_message,
    **{
        function.__name__.replace("_", " "): changed(function)
        for function in (
            cyclic, in_wrong_order, made_twice, made_by_nobody, output_made_by_nobody, no_graph, empty_graph,
            unknown_operator, unknown_attribute, attribute_of_other_type, too_few_inputs, unknown_opset, no_opset,
            unknown_format, wrong_channels, negative_size, fewer_bytes, more_bytes, huge_size, huge_product,
            unknown_type, groups_of_nothing, itself_within,
        )
    },
    "missing external data": changed(external("weights.bin")),
    "external data outside the folder": changed(external("../secret.bin")),
    "external data outside, by a detour": changed(external("sub/../../secret.bin")),
    "external data at an absolute path": changed(external("/etc/passwd")),
    "external data that is a folder": changed(external(".")),
    "external data without a name": changed(external("")),
    "external data beyond the end": changed(external("there.bin", offset=2**20, length=576)),
    "external data that is shorter": changed(external("short.bin")),
    "external data of negative length": changed(external("there.bin", offset=-8, length=-1)),
    "external data by a link": changed(external("link.bin")),
}  # fmt: skip
