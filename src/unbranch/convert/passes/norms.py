"""Batch norms of a trace, as a scale and a shift for each channel."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx, nn

from unbranch.algebra import identity
from unbranch.convert.trace.trace import Trace
from unbranch.rules import rule_of_module
from unbranch.rules.value import Affine


def is_norm(trace: Trace, node: fx.Node) -> bool:
    """Whether an operation calls a batch norm of one argument."""
    if node.op != "call_module" or node.meta.get("passes") or len(node.args) != 1 or node.kwargs:
        return False
    module = trace.layer_of(node)
    rule = rule_of_module(module)
    norms = isinstance(module, nn.modules.batchnorm._BatchNorm) or "BatchNorm" in type(module).__name__
    return norms and rule is not None and rule.kind == "elementwise"


@dataclass(frozen=True, eq=False)
class Norm:
    """A layer that scales and shifts each channel; both are in float64, ``(C,)``."""

    node: fx.Node
    scale: Tensor
    shift: Tensor

    @classmethod
    def at(cls, trace: Trace, node: fx.Node) -> Norm | None:
        """Return the norm that a node calls; None if it is shared or its scale can't be determined."""
        module = trace.layer_of(node)
        rule = rule_of_module(module)
        if rule is None or trace.times_called()[id(module)] > 1:
            return None
        known = trace.known(node)
        if known is None or not isinstance(known[0], Tensor) or known[0].dim() < 2:
            return None
        channels, ndim = known[0].shape[1], known[0].dim() - 2
        try:
            device = next(iter((*module.parameters(), *module.buffers())), torch.empty(0)).device
            result = rule.apply(module, Affine(identity(channels, ndim, device=device)))
        except Exception:  # for example, without statistics
            return None
        value = result.map
        if not value.pointwise or not value.in_channels == value.out_channels == value.groups == channels:
            return None
        shape = (1, channels, *(1,) * ndim)
        ends = [result.map(torch.full(shape, v, dtype=torch.float64, device=device)).flatten() for v in (0, 1)]
        return cls(node, ends[1] - ends[0], ends[0])
