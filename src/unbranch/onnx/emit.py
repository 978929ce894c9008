"""Operators of ONNX for the layers that the converter builds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from unbranch.errors import InternalError
from unbranch.extras import library
from unbranch.grids import first_axis_first, padding_amounts
from unbranch.onnx.protos import subgraphs
from unbranch.onnx.values import to_proto

MODES = {"zeros": "constant", "reflect": "reflect", "replicate": "edge", "circular": "wrap"}
INPUTS_OF_PAD = 11  # the opset in which amounts became an input
WRAP = 19  # the opset that has circular padding


@dataclass(eq=False)
class Emitter:
    """Writes layers as operators.

    Args:
        opset: of the model.
        taken: names that are used already; new ones are added.
        dtype: of the numbers.
    """

    opset: int
    taken: set[str]
    nodes: list[Any] = field(default_factory=list)
    initializers: list[Any] = field(default_factory=list)

    def layer(self, module: nn.Module, source: str, target: str, rank: int | None, dtype: torch.dtype) -> None:
        """Write operators that compute ``target`` from ``source``, a value of some rank."""
        steps: list[Any] = list(module.children()) if isinstance(module, nn.Sequential) else [module]
        names = [source, *(self.free_name(f"{target}/{j}") for j in range(len(steps) - 1)), target]
        if len(steps) == 2 and isinstance(steps[0], nn.ZeroPad1d | nn.ZeroPad2d | nn.ZeroPad3d):
            pairs = first_axis_first(steps[0].padding)
            if min(n for pair in pairs for n in pair) >= 0:  # ONNX's convolutions pad by themselves
                self._conv(steps[1], source, target, dtype, ([a for a, _ in pairs], [b for _, b in pairs]))
                return
        for step, before, after in zip(steps, names[:-1], names[1:], strict=True):
            self._step(step, before, after, rank if step is steps[0] else 2, dtype)

    def _step(self, step: Any, source: str, target: str, rank: int | None, dtype: torch.dtype) -> None:
        if isinstance(step, nn.Conv1d | nn.Conv2d | nn.Conv3d):
            if step.padding_mode != "zeros":
                lo, hi = padding_amounts(step.padding, step.dilation, step.kernel_size)
                source = self._pad(source, self.free_name(f"{target}/padded"), lo, hi, step.padding_mode)
                self._conv(step, source, target, dtype, ([0] * len(lo), [0] * len(lo)))
            else:
                self._conv(step, source, target, dtype, padding_amounts(step.padding, step.dilation, step.kernel_size))
        elif isinstance(step, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d):
            self._transposed(step, source, target, dtype)
        elif isinstance(step, nn.Linear):
            self._linear(step, source, target, rank, dtype)
        elif isinstance(step, nn.Flatten):
            self._add("Flatten", [source], target, axis=1)
        elif isinstance(step, nn.Unflatten):
            self._reshape(source, target, (-1, *step.unflattened_size))
        elif hasattr(step, "padding"):
            pairs = first_axis_first(step.padding)
            mode = _mode_of(step)
            self._pad(source, target, [a for a, _ in pairs], [b for _, b in pairs], mode)
        else:
            raise InternalError(f"no operator of ONNX for {type(step).__name__}")

    def _conv(
        self, layer: Any, source: str, target: str, dtype: torch.dtype, pads: tuple[Sequence[int], Sequence[int]]
    ) -> None:  # fmt: skip
        inputs = [source, *self._parameters(layer, target, dtype)]
        self._add(
            "Conv", inputs, target, kernel_shape=list(layer.weight.shape[2:]), strides=list(layer.stride),
            dilations=list(layer.dilation), group=layer.groups, pads=[*pads[0], *pads[1]],
        )  # fmt: skip

    def _transposed(self, layer: Any, source: str, target: str, dtype: torch.dtype) -> None:
        inputs = [source, *self._parameters(layer, target, dtype)]
        options = {"output_padding": list(layer.output_padding)} if any(layer.output_padding) else {}
        self._add(
            "ConvTranspose", inputs, target, kernel_shape=list(layer.weight.shape[2:]), strides=list(layer.stride),
            dilations=list(layer.dilation), group=layer.groups, pads=[*layer.padding, *layer.padding], **options,
        )  # fmt: skip

    def _linear(self, layer: Any, source: str, target: str, rank: int | None, dtype: torch.dtype) -> None:
        if rank == 2:
            names = self._parameters(layer, target, dtype)
            if len(names) == 1 and self.opset < INPUTS_OF_PAD:  # the bias was no option
                names.append(self._store(torch.zeros(layer.out_features), f"{target}/bias", dtype))
            self._add("Gemm", [source, *names], target, transB=1)
            return
        weight = self._store(layer.weight.T, f"{target}/weight", dtype)
        if layer.bias is None:
            self._add("MatMul", [source, weight], target)
            return
        product = self.free_name(f"{target}/product")
        self._add("MatMul", [source, weight], product)
        self._add("Add", [product, self._store(layer.bias, f"{target}/bias", dtype)], target)

    def _reshape(self, source: str, target: str, shape: Sequence[int]) -> None:
        sizes = self._store(torch.tensor(shape), f"{target}/shape", torch.int64)
        self._add("Reshape", [source, sizes], target)

    def _pad(self, source: str, target: str, lo: Sequence[int], hi: Sequence[int], mode: str) -> str:
        if mode == "circular" and self.opset < WRAP:
            raise InternalError(f"opset {self.opset} has no circular padding")
        amounts = [0, 0, *lo, 0, 0, *hi]
        if self.opset < INPUTS_OF_PAD:
            self._add("Pad", [source], target, pads=amounts, mode=MODES[mode])
        else:
            sizes = self._store(torch.tensor(amounts), f"{target}/pads", torch.int64)
            self._add("Pad", [source, sizes], target, mode=MODES[mode])
        return target

    def operator(self, kind: str, inputs: Sequence[str], target: str, **attributes: Any) -> None:
        """Write one operator."""
        self._add(kind, list(inputs), target, **attributes)

    def value(self, tensor: Tensor, name: str, dtype: torch.dtype) -> str:
        """Write an initialiser, and return its name."""
        return self._store(tensor, name, dtype)

    def _parameters(self, layer: Any, target: str, dtype: torch.dtype) -> list[str]:
        names = [self._store(layer.weight, f"{target}/weight", dtype)]
        return names if layer.bias is None else [*names, self._store(layer.bias, f"{target}/bias", dtype)]

    def _store(self, tensor: Tensor, name: str, dtype: torch.dtype) -> str:
        name = self.free_name(name)
        self.initializers.append(to_proto(tensor.to(dtype), name))
        return name

    def _add(self, kind: str, inputs: list[str], output: str, **attributes: Any) -> None:
        helper = library("onnx", "onnx").helper
        self.nodes.append(
            helper.make_node(kind, inputs, [output], name=self.free_name(f"{output}/{kind}"), **attributes)
        )

    def free_name(self, wanted: str) -> str:
        """Return a name that the model doesn't have yet, and take it."""
        name, j = wanted, 1
        while name in self.taken:
            name, j = f"{wanted}_{j}", j + 1
        self.taken.add(name)
        return name


def names_in(graph: Any) -> Iterator[str]:
    """Yield the names of all values and nodes of a graph and its subgraphs, which may not hide outer names."""
    yield from (value.name for value in (*graph.input, *graph.output, *graph.initializer))
    yield from (tensor.values.name for tensor in graph.sparse_initializer)
    for node in graph.node:
        yield from (node.name, *node.input, *node.output)
        for inner in subgraphs(node):
            yield from names_in(inner)


def _mode_of(layer: nn.Module) -> str:
    name = type(layer).__name__
    return next(
        mode
        for mode, prefix in (("reflect", "Refl"), ("replicate", "Repl"), ("circular", "Circ"), ("zeros", "Zero"))
        if name.startswith(prefix)
    )
