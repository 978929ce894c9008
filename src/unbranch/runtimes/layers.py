"""Single layers with random weights, as modules and as ONNX files, so that runtimes can be timed layer by layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unbranch.grids import CONV_LAYERS, TRANSPOSED_CONV_LAYERS

OPSET, IR_VERSION = 20, 9  # the first opset with Gelu

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "relu6": nn.ReLU6, "silu": nn.SiLU, "hardswish": nn.Hardswish, "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid, "hardsigmoid": nn.Hardsigmoid, "leaky_relu": nn.LeakyReLU, "tanh": nn.Tanh,
}  # fmt: skip
"""Activations that runtimes compute together with the layer before them, by the names of ``torch.ops.aten``."""

ONNX_NODES: dict[str, tuple[tuple[str, tuple[str, ...], dict[str, Any]], ...]] = {
    "relu": (("Relu", ("y",), {}),),
    "relu6": (("Clip", ("y", "zero", "six"), {}),),
    "silu": (("Sigmoid", ("y",), {}), ("Mul", ("y", "0"), {})),
    "hardswish": (("HardSwish", ("y",), {}),),
    "gelu": (("Gelu", ("y",), {}),),
    "sigmoid": (("Sigmoid", ("y",), {}),),
    "hardsigmoid": (("HardSigmoid", ("y",), {"alpha": 1 / 6}),),
    "leaky_relu": (("LeakyRelu", ("y",), {"alpha": 0.01}),),
    "tanh": (("Tanh", ("y",), {}),),
}
"""Nodes of an activation: operator, inputs, attributes. ``y`` is the layer's output, a number an earlier node's."""


@dataclass(frozen=True)
class Layer:
    """A convolution or a linear layer with some number of channels, for one example.

    Args:
        inputs, outputs: number of channels.
        size: of the input without batch and channels: ``(H, W)`` of a 2d convolution; ``()`` for a linear layer of
            vectors, ``(tokens,)`` for one of sequences.
        kernel: size of the kernel along each axis; None for a linear layer.
        stride, padding, dilation: along each axis.
        groups: of the convolution.
        bias: whether it has a bias.
        transposed: whether it is a transposed convolution.
        activation: a name of ``ACTIVATIONS``, or empty.
    """

    inputs: int
    outputs: int
    size: tuple[int, ...] = ()
    kernel: tuple[int, ...] | None = None
    stride: tuple[int, ...] = ()
    padding: tuple[int, ...] = ()
    dilation: tuple[int, ...] = ()
    groups: int = 1
    bias: bool = True
    transposed: bool = False
    activation: str = ""

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Layer:
        """Read a layer from plain values, as JSON has them."""
        given: dict[str, Any] = {
            key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
        }
        return cls(**given)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of its input."""
        return (1, *self.size, self.inputs) if self.kernel is None else (1, self.inputs, *self.size)

    def make(self) -> nn.Module:
        """Return it as a module in evaluation mode, with its activation."""
        return nn.Sequential(self._module(), *([ACTIVATIONS[self.activation]()] if self.activation else [])).eval()

    def _module(self) -> nn.Module:
        if self.kernel is None:
            return nn.Linear(self.inputs, self.outputs, self.bias)
        kinds: Any = TRANSPOSED_CONV_LAYERS if self.transposed else CONV_LAYERS
        made: nn.Module = kinds[len(self.kernel)](
            self.inputs, self.outputs, self.kernel, self.stride, self.padding, dilation=self.dilation,
            groups=self.groups, bias=self.bias,
        )  # fmt: skip
        return made

    def example(self) -> Tensor:
        """Return a random input."""
        return torch.randn(self.shape)


def write_program(layer: Layer, path: Path) -> None:
    """Write a layer as an ``ExportedProgram``."""
    with torch.no_grad():
        torch.export.save(torch.export.export(layer.make(), (layer.example(),)), path)


def write_onnx(layer: Layer, path: Path) -> None:
    """Write a layer as an ONNX file; the exporter would take a hundred times as long."""
    import onnx
    from onnx import helper

    module: Any = layer._module()
    weight = module.weight.detach()
    tensors = {"w": weight.t() if layer.kernel is None else weight}
    if layer.bias:
        tensors["b"] = module.bias.detach()
    if layer.activation == "relu6":
        tensors |= {"zero": torch.tensor(0.0), "six": torch.tensor(6.0)}
    nodes = _layer_nodes(layer, helper)
    last = "y"
    for number, (operator, inputs, attributes) in enumerate(ONNX_NODES.get(layer.activation, ())):
        nodes.append(helper.make_node(operator, list(inputs), [str(number)], **attributes))
        last = str(number)
    output = layer.make()(layer.example())
    graph = helper.make_graph(
        nodes, "layer",
        [helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, layer.shape)],
        [helper.make_tensor_value_info(last, onnx.TensorProto.FLOAT, output.shape)],
        [onnx.numpy_helper.from_array(value.numpy().copy(), name) for name, value in tensors.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
    onnx.save(model, path)


def _layer_nodes(layer: Layer, helper: Any) -> list[Any]:
    if layer.kernel is None:
        if not layer.size:
            return [helper.make_node("Gemm", ["x", "w", *(["b"] if layer.bias else [])], ["y"])]
        product = helper.make_node("MatMul", ["x", "w"], ["product" if layer.bias else "y"])
        return [product, *([helper.make_node("Add", ["product", "b"], ["y"])] if layer.bias else [])]
    operator = "ConvTranspose" if layer.transposed else "Conv"
    return [
        helper.make_node(
            operator, ["x", "w", *(["b"] if layer.bias else [])], ["y"], kernel_shape=layer.kernel,
            strides=layer.stride, pads=layer.padding * 2, dilations=layer.dilation, group=layer.groups,
        )
    ]  # fmt: skip
