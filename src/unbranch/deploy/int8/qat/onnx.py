"""The fake-quantised network as ONNX with QuantizeLinear and DequantizeLinear (Q/DQ)."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, fx, nn

from unbranch.deploy.int8.qat.network import FakeQuantizedNetwork
from unbranch.deploy.int8.qat.placement import origin
from unbranch.errors import InputError
from unbranch.quantize.fake_quantize import FakeQuantize
from unbranch.runtimes.signature import Signature
from unbranch.runtimes.source import write_onnx_of

OPSET = 19  # of the operators; earlier ones can't say the type of what they return


class _QuantizeDequantize(nn.Module):
    """QuantizeLinear and DequantizeLinear of an activation, with unsigned 8-bit integers."""

    scale: Tensor
    zero_point: Tensor

    def __init__(self, fake: FakeQuantize) -> None:
        super().__init__()
        self.register_buffer("scale", fake.positive_scale.detach()[0].clone())
        self.register_buffer("zero_point", fake.zero_point[0].to(torch.uint8))

    def forward(self, x: Tensor) -> Tensor:
        grid = self.scale, self.zero_point
        made = torch.onnx.ops.symbolic("QuantizeLinear", (x, *grid), dtype=torch.uint8, shape=x.shape, version=OPSET)
        return torch.onnx.ops.symbolic("DequantizeLinear", (made, *grid), dtype=x.dtype, shape=x.shape, version=OPSET)


class _Dequantize(nn.Module):
    """DequantizeLinear of a parameter that is stored as signed integers."""

    integers: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, integers: Tensor, scale: Tensor, axis: int) -> None:
        super().__init__()
        self.register_buffer("integers", integers)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.zeros(len(scale), dtype=integers.dtype))
        self.axis = axis

    @classmethod
    def of_weight(cls, fake: FakeQuantize, weight: Tensor) -> _Dequantize:
        """Return a module for a weight in 8 bits."""
        axis, scale = fake.axis or 0, fake.positive_scale.detach().clone()
        steps = fake(weight).detach() / scale.reshape(*(-1 if i == axis else 1 for i in range(weight.dim())))
        return cls(steps.round().to(torch.int8), scale, axis)

    def forward(self, parameter: Tensor) -> Tensor:
        grid = self.scale, self.zero_point
        return torch.onnx.ops.symbolic(
            "DequantizeLinear", (self.integers, *grid), attrs={"axis": self.axis}, dtype=parameter.dtype,
            shape=parameter.shape, version=OPSET,
        )  # fmt: skip


def write_qdq(network: FakeQuantizedNetwork, example: Tensor, signature: Signature, path: Path) -> None:
    """Write a fake-quantised network as an ONNX file, in which weights are 8-bit integers.

    Biases of linear layers are 32-bit integers, without which ONNX Runtime computes these layers in float32; it rounds
    biases of convolutions itself.

    Args:
        example: one image ``(1, C, H, W)``.
        signature: names of inputs and outputs, and which axes are dynamic.
        path: of the file.

    Raises:
        InputError: if torch can't export it, or its integers have more than 8 bits.
    """
    graph = copy.deepcopy(network.graph).eval()
    _round_biases(graph)
    for node in list(graph.graph.nodes):
        fake = _fake_of(graph, node)
        if fake is None:
            continue
        if fake.high > (255 if fake.axis is None else 127):
            raise InputError(f"integers must have at most 8 bits to be written to ONNX, got {fake.high} as the largest")
        made: nn.Module = _QuantizeDequantize(fake)
        if fake.axis is not None:
            made = _Dequantize.of_weight(fake, graph.get_parameter(str(node.args[0].target)))
        graph.set_submodule(str(node.target), made)
    graph.recompile()
    if problem := write_onnx_of(graph, example, signature, path):
        raise InputError(problem)


def _round_biases(graph: fx.GraphModule) -> None:
    """Replace biases of linear layers by integers of the scale of the layer's products."""
    for node in list(graph.graph.nodes):
        if node.target is not torch.ops.aten.linear.default or len(node.args) < 3 or node.meta["val"].dim() != 2:
            continue
        x, weight, bias = _fake_of(graph, origin(node.args[0])), _fake_of(graph, node.args[1]), node.args[2]
        if x is None or weight is None or bias is None or bias.op != "get_attr":
            continue
        scale = (x.positive_scale * weight.positive_scale).detach()
        steps = (graph.get_parameter(bias.target).detach().double() / scale).round()
        if steps.abs().max() >= 2**31:
            continue
        name = f"bias_quantizer_{bias.name}"
        graph.add_submodule(name, _Dequantize(steps.to(torch.int32), scale, 0))
        with graph.graph.inserting_before(node):
            node.replace_input_with(bias, graph.graph.call_module(name, (bias,)))


def _fake_of(graph: fx.GraphModule, node: fx.Node) -> FakeQuantize | None:
    """Return the module that a node calls, if it is one that rounds."""
    module = graph.get_submodule(str(node.target)) if node.op == "call_module" else None
    return module if isinstance(module, FakeQuantize) else None
