"""The fake-quantised network as ONNX with QuantizeLinear and DequantizeLinear (Q/DQ)."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from unbranch.deploy.int8.qat.network import FakeQuantizedNetwork
from unbranch.deploy.signature import Signature
from unbranch.deploy.source import write_onnx_of
from unbranch.errors import InputError
from unbranch.quantize.fake_quantize import FakeQuantize

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
    """DequantizeLinear of a weight that is stored as signed 8-bit integers."""

    integers: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, fake: FakeQuantize, weight: Tensor) -> None:
        super().__init__()
        axis = fake.axis or 0
        scale = fake.positive_scale.detach().clone()
        steps = fake(weight).detach() / scale.reshape(*(-1 if i == axis else 1 for i in range(weight.dim())))
        self.register_buffer("integers", steps.round().to(torch.int8))
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", torch.zeros(len(scale), dtype=torch.int8))
        self.axis = axis

    def forward(self, weight: Tensor) -> Tensor:
        grid = self.scale, self.zero_point
        return torch.onnx.ops.symbolic(
            "DequantizeLinear", (self.integers, *grid), attrs={"axis": self.axis}, dtype=weight.dtype,
            shape=weight.shape, version=OPSET,
        )  # fmt: skip


def write_qdq(network: FakeQuantizedNetwork, example: Tensor, signature: Signature, path: Path) -> None:
    """Write a fake-quantised network as an ONNX file, in which weights are 8-bit integers.

    Args:
        example: one image ``(1, C, H, W)``.
        signature: names of inputs and outputs, and which axes are dynamic.
        path: of the file.

    Raises:
        InputError: if torch can't export it, or its integers have more than 8 bits.
    """
    graph = copy.deepcopy(network.graph).eval()
    for node in list(graph.graph.nodes):
        if node.op != "call_module" or not isinstance(fake := graph.get_submodule(str(node.target)), FakeQuantize):
            continue
        if fake.high > 255 or (fake.axis is not None and fake.high > 127):
            raise InputError(f"integers must have at most 8 bits to be written to ONNX, got {fake.high} as the largest")
        made = (
            _QuantizeDequantize(fake)
            if fake.axis is None
            else _Dequantize(fake, graph.get_parameter(str(node.args[0].target)))
        )
        graph.set_submodule(str(node.target), made)
    if problem := write_onnx_of(graph, example, signature, path):
        raise InputError(problem)
