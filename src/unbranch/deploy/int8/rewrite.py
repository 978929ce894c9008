"""Equal Q/DQ models that runtimes execute faster."""

from __future__ import annotations

from typing import Any

SHIFT = 128


def with_unsigned_activations(model: Any) -> Any:
    """Store signed 8-bit activations of an ONNX model as unsigned ones, in place, and return the model.

    ``q`` with zero point ``z`` and ``q + 128`` with zero point ``z + 128`` stand for the same number, s (q − z), and
    the range −128 … 127 becomes 0 … 255, so the model computes the same function bit by bit. ONNX Runtime merges
    DequantizeLinear, Conv and QuantizeLinear into an integer convolution only if input and output have one type.

    Args:
        model: an ``onnx.ModelProto``, in which weights are initializers.
    """
    import numpy
    from onnx import numpy_helper

    stored = {value.name: value for value in model.graph.initializer}
    zeros: dict[str, str] = {}  # names of new zero points, by the name of the quantised tensor
    for node in model.graph.node:
        if node.op_type != "QuantizeLinear" or node.input[0] in stored or len(node.input) < 3:
            continue
        zero = stored.get(node.input[2])
        values = None if zero is None else numpy_helper.to_array(zero)
        if values is None or values.dtype != numpy.int8 or not _only_dequantized(model, node.output[0], node.input[2]):
            continue
        name = f"{node.output[0]}_unsigned_zero_point"
        shifted = (values.astype(numpy.int16) + SHIFT).astype(numpy.uint8)
        model.graph.initializer.append(numpy_helper.from_array(shifted, name))
        node.input[2] = zeros[node.output[0]] = name
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" and node.input[0] in zeros:
            node.input[2] = zeros[node.input[0]]
    typed = [value for value in model.graph.value_info if value.name not in zeros]
    del model.graph.value_info[:]
    model.graph.value_info.extend(typed)
    return model


def _only_dequantized(model: Any, name: str, zero: str) -> bool:
    """Whether a quantised tensor is read only by DequantizeLinear with the same zero point."""
    readers = [node for node in model.graph.node if name in node.input]
    same = all(n.op_type == "DequantizeLinear" and len(n.input) > 2 and n.input[2] == zero for n in readers)
    return same and name not in {value.name for value in model.graph.output}
