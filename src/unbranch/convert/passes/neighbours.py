"""Find the operations that a norm can move past, and kernels that can absorb it."""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional as F
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AvgPoolNd

from unbranch.convert.passes.rearrange import rearranges, shapes_of, source_of
from unbranch.convert.trace.trace import Trace
from unbranch.graph.operations import CONCATENATIONS, SPLITS, named_arguments

_MEANS = {torch.mean, "mean"}
_ADAPTIVE = {F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d}


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Queries about the operations around a norm."""

    trace: Trace

    def is_rearranged(self, node: fx.Node) -> bool:
        """Whether a value comes from a reshape or transposition that comes after any kernel."""
        while len(self.trace.readers(node)) == 1 and self.passes(node):
            node = source_of(node)
        return len(self.trace.readers(node)) == 1 and rearranges(self.trace, node)

    def is_averaged(self, node: fx.Node) -> bool:
        """Whether a norm is followed by an average before any kernel."""
        for _ in range(8):
            readers = self.trace.readers(node)
            if len(readers) != 1:
                return False
            (node,) = readers
            if self.is_mean(node) or self.is_kernel(node):
                return not self.is_kernel(node)
        return False

    def takes(self, node: fx.Node) -> bool:
        """Whether a value is the output of a kernel, or a sum of several, and has a single reader."""
        if len(self.trace.readers(node)) != 1:
            return False
        if self.is_kernel(node):
            return True
        rule = self.trace.rule(node)
        if rule is None or node.target in CONCATENATIONS | SPLITS or node.target is operator.getitem:
            return False
        sources = [n for n in node.all_input_nodes if n.op != "get_attr"]
        return bool(sources) and rule.kind in ("view", "elementwise") and all(self.takes(n) for n in sources)

    def passes(self, node: fx.Node) -> bool:
        """Whether an operation returns its input in evaluation mode."""
        if node.op == "call_module":
            module = self.trace.layer_of(node)
            return isinstance(module, nn.Identity | nn.Dropout) or bool(node.meta.get("passes"))
        return node.target is F.dropout or node.target in ("contiguous", "clone")

    def is_kernel(self, node: fx.Node) -> bool:
        """Whether an operation has a kernel."""
        rule = self.trace.rule(node)
        return rule is not None and rule.kind == "linear"

    def is_mean(self, node: fx.Node) -> bool:
        """Whether an operation averages over the image."""
        module = self.trace.layer_of(node) if node.op == "call_module" else None
        return node.target in _MEANS | _ADAPTIVE or isinstance(module, _AdaptiveAvgPoolNd | _AvgPoolNd)

    def keeps_channels(self, node: fx.Node, source: fx.Node) -> bool:
        """Whether each channel, on axis 1, is kept or averaged on its own."""
        before, after = self.shape_of(source), self.shape_of(node)
        if before is None or after is None or len(after) < 2 or after[1] != before[1] or len(node.all_input_nodes) != 1:
            return False
        if node.op == "call_module":
            module = self.trace.layer_of(node)
            if isinstance(module, _AdaptiveAvgPoolNd):
                return True
            if isinstance(module, _AvgPoolNd):
                padding: Any = module.padding
                padded = any(padding) if isinstance(padding, tuple) else bool(padding)
                return (
                    not getattr(module, "ceil_mode", False)
                    and not padded
                    and not getattr(module, "divisor_override", 0)
                )
            if isinstance(module, nn.Flatten):
                return module.start_dim >= 1 and self._flattens_channels_alone(before, module.start_dim)
        if self.passes(node) or node.target in _ADAPTIVE:
            return True
        given = named_arguments(node, "input", "dim", "end")
        if node.target in _MEANS:
            dims = given.get("dim")
            dims = [dims] if isinstance(dims, int) else dims
            return isinstance(dims, list | tuple) and all(isinstance(d, int) and d % len(before) > 1 for d in dims)
        if node.target in (torch.flatten, "flatten"):
            start = given.get("start_dim", given.get("dim", 0))
            ends = given.get("end_dim", given.get("end", -1)) in (-1, len(before) - 1)
            return isinstance(start, int) and start >= 1 and ends and self._flattens_channels_alone(before, start)
        if node.target in (torch.squeeze, "squeeze"):
            return all(n == 1 for n in before[2:])
        if node.target is operator.getitem:
            index: Any = node.args[1]
            index = index if isinstance(index, tuple) else (index,)
            return index[:2] == (slice(None), slice(None)) and all(i == 0 for i in index[2:])
        return False

    def _flattens_channels_alone(self, shape: tuple[int, ...], start: int) -> bool:
        return start > 1 or all(n == 1 for n in shape[2:])

    def shape_of(self, node: fx.Node) -> tuple[int, ...] | None:
        """Return a value's shape for the first of two input sizes."""
        shapes = shapes_of(self.trace, node)
        return None if shapes is None else shapes[0]
