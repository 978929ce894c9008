"""Operators of ONNX as layers and functions with rules: one function for each operator.

A function returns the value of the operator's output, or several, or None if it isn't interpreted.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from unbranch.grids import NORM_LAYERS, last_axis_first
from unbranch.onnx.layers import AveragePool, Conv, ConvTranspose, total

EPSILON = 9.999999747378752e-06  # 1e-5 as ONNX stores it, in float32
FIXED = "fixed"
"""Key of a reshape's ``meta``: the shape that it always gives, where the file computes it."""
Shapes = tuple[tuple[int, ...], tuple[int, ...]]


class Graph(Protocol):
    """What a function needs of the graph that is read."""

    opset: int

    def constant(self, name: str) -> Tensor | None: ...
    def variable(self, name: str) -> fx.Node | None: ...
    def node_of(self, name: str) -> fx.Node | None: ...
    def shapes(self, name: str) -> Shapes | None: ...
    def is_fixed(self, name: str) -> bool: ...
    def element(self, name: str) -> int: ...
    def layer(self, name: str, module: nn.Module, x: fx.Node) -> fx.Node: ...
    def function(self, function: Callable[..., Any], *arguments: Any) -> fx.Node: ...


@dataclass(frozen=True, eq=False)
class Operator:
    """One operator: its attributes and the names of its inputs and outputs."""

    kind: str
    name: str
    attributes: dict[str, Any]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    graph: Graph

    def given(self, index: int) -> str:
        """Return the name of an input, empty if it isn't given."""
        return self.inputs[index] if index < len(self.inputs) else ""

    def constant(self, index: int) -> Tensor | None:
        """Return the numbers of a constant input, None if it isn't given or not constant."""
        return self.graph.constant(self.given(index))

    def numbers(self, index: int, attribute: str = "") -> list[int] | None:
        """Return integers that are an attribute, or in later opsets a constant input."""
        if attribute and attribute in self.attributes:
            return [int(v) for v in self.attributes[attribute]]
        found = self.constant(index)
        return None if found is None else [int(v) for v in found.flatten().tolist()]

    def absent(self, index: int) -> bool:
        """Whether an optional input isn't given."""
        return not self.given(index)

    def x(self) -> fx.Node | None:
        """Return the first input, None if it is constant."""
        return self.graph.variable(self.given(0))

    def shapes(self) -> Shapes | None:
        """Return the shape of the first input at two sizes."""
        return self.graph.shapes(self.given(0))

    def layer(self, module: nn.Module | None) -> fx.Node | None:
        """Return the output of a layer that reads the first input."""
        x = self.x()
        return None if x is None or module is None else self.graph.layer(self.name or self.outputs[0], module.eval(), x)


@dataclass(frozen=True, eq=False)
class Kernel:
    """Constant weights of a convolution, and their geometry."""

    weight: Tensor
    bias: Tensor | None
    stride: list[int]
    dilation: list[int]
    groups: int

    @classmethod
    def of(cls, op: Operator) -> Kernel | None:
        """Return the kernel of ``Conv`` or ``ConvTranspose``, None if it isn't constant."""
        weight, bias = op.constant(1), op.constant(2)
        if weight is None or weight.dim() not in (3, 4, 5) or (bias is None and not op.absent(2)):
            return None
        n, groups = weight.dim() - 2, int(op.attributes.get("group", 1))
        return cls(weight, bias, _per_axis(op, "strides", n), _per_axis(op, "dilations", n), groups)


def conv(op: Operator) -> fx.Node | None:
    k = Kernel.of(op)
    if k is None or k.weight.shape[0] % k.groups:
        return None
    size = list(k.weight.shape[2:])
    pads = _pads(op, size, k.stride, k.dilation)
    if pads is None or list(op.attributes.get("kernel_shape", size)) != size:
        return None
    return op.layer(Conv(k.weight, k.bias, k.stride, *pads, k.dilation, k.groups))


def conv_transpose(op: Operator) -> fx.Node | None:
    k = Kernel.of(op)
    if k is None:
        return None
    n = len(k.stride)
    pads = op.attributes.get("pads", [0] * 2 * n)
    explicit = op.attributes.get("auto_pad", b"NOTSET") in (b"NOTSET", b"VALID")
    if not explicit or "output_shape" in op.attributes or pads[:n] != pads[n:] or min(pads, default=0) < 0:
        return None
    extra = op.attributes.get("output_padding", [0] * n)
    return op.layer(ConvTranspose(k.weight, k.bias, k.stride, pads[:n], extra, k.groups, k.dilation))


def _per_axis(op: Operator, name: str, n: int) -> list[int]:
    return [int(v) for v in op.attributes.get(name, [1] * n)]


def _pads(
    op: Operator, size: Sequence[int], stride: Sequence[int], dilation: Sequence[int]
) -> tuple[list[int], list[int]] | None:
    """Return the padding before and after each axis, None if it depends on the size of the input."""
    n, mode = len(size), op.attributes.get("auto_pad", b"NOTSET")
    if mode in (b"NOTSET", b""):
        pads = [int(v) for v in op.attributes.get("pads", [0] * 2 * n)]
        return pads[:n], pads[n:]
    if mode == b"VALID":
        return [0] * n, [0] * n
    totals = []
    shapes = op.shapes()
    for j, (k, s, d) in enumerate(zip(size, stride, dilation, strict=True)):
        reach = d * (k - 1)
        if s == 1:
            totals.append(reach)
            continue
        if shapes is None or shapes[0][2 + j] != shapes[1][2 + j]:
            return None
        side = shapes[0][2 + j]
        totals.append(max(0, (-(-side // s) - 1) * s + reach + 1 - side))
    less, more = [t // 2 for t in totals], [t - t // 2 for t in totals]
    return (less, more) if mode == b"SAME_UPPER" else (more, less)


def batch_norm(op: Operator) -> fx.Node | None:
    shapes, vectors = op.shapes(), [op.constant(j) for j in range(1, 5)]
    trained = op.attributes.get("training_mode", 0) or not op.attributes.get("spatial", 1) or len(op.outputs) > 1
    if trained or shapes is None or len(shapes[0]) not in (2, 3, 4, 5):
        return None
    scale, shift, mean, variance = vectors
    if scale is None or shift is None or mean is None or variance is None:
        return None
    module: Any = NORM_LAYERS[max(1, len(shapes[0]) - 2)](
        len(scale), eps=float(op.attributes.get("epsilon", EPSILON)), device="meta"
    )  # fmt: skip
    module.weight, module.bias = (nn.Parameter(v, requires_grad=False) for v in (scale, shift))
    module.running_mean, module.running_var = mean, variance
    module.num_batches_tracked = None
    return op.layer(module)


def gemm(op: Operator) -> fx.Node | None:
    weight, bias = op.constant(1), op.constant(2)
    if weight is None or weight.dim() != 2 or op.attributes.get("transA", 0) or (bias is None and not op.absent(2)):
        return None
    weight = weight if op.attributes.get("transB", 0) else weight.T
    if bias is not None and (bias.dim() > 1 and bias.shape[:-1].numel() > 1):
        return None
    if bias is not None:
        bias = bias.flatten().expand(len(weight)) if bias.numel() == 1 else bias.flatten()
    alpha, beta = (float(op.attributes.get(key, 1.0)) for key in ("alpha", "beta"))
    if bias is not None and len(bias) != len(weight):
        return None
    scaled = weight if alpha == 1 else weight * alpha
    return op.layer(_linear(scaled, None if bias is None or not beta else bias if beta == 1 else bias * beta))


def matmul(op: Operator) -> fx.Node | None:
    weight, shapes = op.constant(1), op.shapes()
    if weight is None or weight.dim() != 2 or shapes is None or len(shapes[0]) < 2:
        return None
    return op.layer(_linear(weight.T, None))


def _linear(weight: Tensor, bias: Tensor | None) -> nn.Module:
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    module.weight = nn.Parameter(weight, requires_grad=False)
    if bias is not None:
        module.bias = nn.Parameter(bias.contiguous(), requires_grad=False)
    return module


def average_pool(op: Operator) -> fx.Node | None:
    shapes, size = op.shapes(), [int(v) for v in op.attributes["kernel_shape"]]
    n = len(size)
    one = all(d == 1 for d in op.attributes.get("dilations", [1] * n))
    if shapes is None or n not in (1, 2, 3) or op.attributes.get("ceil_mode", 0) or not one:
        return None
    stride = _per_axis(op, "strides", n)
    pads = _pads(op, size, stride, [1] * n)
    if pads is None or (any((*pads[0], *pads[1])) and not op.attributes.get("count_include_pad", 0)):
        return None
    return op.layer(AveragePool(shapes[0][1], size, stride, *pads))


def global_average_pool(op: Operator) -> fx.Node | None:
    shapes = op.shapes()
    kinds: dict[int, Any] = {3: nn.AdaptiveAvgPool1d, 4: nn.AdaptiveAvgPool2d, 5: nn.AdaptiveAvgPool3d}
    return None if shapes is None or len(shapes[0]) not in kinds else op.layer(kinds[len(shapes[0])](1))


def reduce_mean(op: Operator) -> fx.Node | None:
    x, shapes, axes = op.x(), op.shapes(), op.numbers(1, "axes")
    if x is None or shapes is None or not axes:
        return None
    keep = bool(op.attributes.get("keepdims", 1))
    return op.graph.function(torch.mean, x, tuple(j % len(shapes[0]) for j in axes), keep)


def pad(op: Operator) -> fx.Node | None:
    modes = {b"constant": "zeros", b"reflect": "reflect", b"edge": "replicate", b"wrap": "circular"}
    x, shapes = op.x(), op.shapes()
    mode, amounts = op.attributes.get("mode", b"constant"), op.numbers(1, "pads")
    if x is None or amounts is None or shapes is None or mode not in modes or not op.absent(3):
        return None
    value = op.attributes.get("value", 0.0)
    if not op.absent(2):
        border = op.constant(2)
        if border is None or border.numel() != 1:
            return None
        value = float(border)
    n = len(amounts) // 2
    pairs = list(zip(amounts[:n], amounts[n:], strict=True))
    if n != len(shapes[0]) or n < 3 or any((*pairs[0], *pairs[1])) or (mode != b"constant" and min(amounts) < 0):
        return None
    given = last_axis_first(pairs[2:])
    if mode == b"constant":
        return op.graph.function(F.pad, x, given, "constant", float(value))
    return op.graph.function(F.pad, x, given, modes[mode])


def _elementwise(function: Callable[..., Any]) -> Callable[[Operator], fx.Node | None]:
    def read(op: Operator) -> fx.Node | None:
        operands = [op.graph.node_of(name) for name in op.inputs]
        if any(v is None for v in operands) or "axis" in op.attributes or "broadcast" in op.attributes:
            return None
        return op.graph.function(function, *operands)

    return read


def sums(op: Operator) -> fx.Node | None:
    if len(op.inputs) == 2:
        return _elementwise(operator.add)(op)
    operands = [op.graph.variable(name) for name in op.inputs]
    shapes = {op.graph.shapes(name) for name in op.inputs}
    if None in operands or None in shapes or len(shapes) > 1:
        return None
    return op.graph.function(total, *operands) if len(operands) > 1 else op.layer(nn.Identity())


def same(op: Operator) -> fx.Node | None:
    return op.layer(nn.Identity()) if len([name for name in op.outputs if name]) == 1 else None


def dropout(op: Operator) -> fx.Node | None:
    """In inference; ``training_mode`` is an input."""
    training = op.constant(2)
    on = not op.absent(2) and (training is None or bool(training))
    return None if on or op.attributes.get("is_test", 1) == 0 else same(op)


def cast(op: Operator) -> fx.Node | None:
    return same(op) if op.graph.element(op.given(0)) == op.attributes.get("to") else None


LINEAR: dict[str, Callable[[Operator], Any]] = {
    "Conv": conv, "ConvTranspose": conv_transpose, "BatchNormalization": batch_norm, "Gemm": gemm, "MatMul": matmul,
    "AveragePool": average_pool, "GlobalAveragePool": global_average_pool, "Pad": pad, "Sum": sums,
    "ReduceMean": reduce_mean,
    "Add": _elementwise(operator.add), "Sub": _elementwise(operator.sub), "Mul": _elementwise(operator.mul),
    "Div": _elementwise(operator.truediv), "Neg": _elementwise(operator.neg), "Identity": same, "Dropout": dropout,
    "Cast": cast,
}  # fmt: skip
