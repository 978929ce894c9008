"""Borders that are the value of a bias: ``pad(y − c) + c`` pads y with c.

So exporters write the border of blocks such as DBB's, where a norm's output for zero surrounds its output. In the
file, c and the bias of y have been rounded separately, so they differ in the last bits of their type. The border is
taken to be the bias if the difference is that small; the comparison of the whole files covers it.
"""

from __future__ import annotations

import operator
from collections.abc import Collection

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from unbranch.convert.interpret.interpretation import Interpretation
from unbranch.convert.trace.trace import Trace
from unbranch.errors import UnbranchError
from unbranch.onnx.tracing import VALUE
from unbranch.rules.borders import bordered

ULPS = 16  # of the constant's type


def read_borders(trace: Trace, left: Collection[str]) -> list[fx.Node]:
    """Replace such sums by a padding with one value for each channel, except those with some names; returns them."""
    found = []
    for node in list(trace.graph.nodes):
        pattern = _pattern(trace, node)
        if pattern is None or node.meta.get(VALUE) in left:
            continue
        source, amounts, constant = pattern
        node.target, node.args = bordered, (source, amounts, constant)
        found.append(node)
    if found:
        trace.refresh()
        interpretation = Interpretation(trace)
        for node in found:
            _settle(trace, interpretation, node)
    return found


def _pattern(trace: Trace, node: fx.Node) -> tuple[fx.Node, tuple[int, ...], fx.Node] | None:
    """Return what is padded, by how much, and with what."""
    if node.target is not operator.add or len(node.args) != 2:
        return None
    for padded, constant in (node.args, reversed(node.args)):
        if not isinstance(padded, fx.Node) or not isinstance(constant, fx.Node) or constant.op != "get_attr":
            continue
        if padded.target is not F.pad or padded.args[2:] != ("constant", 0.0) or len(padded.users) != 1:
            continue
        inner = padded.args[0]
        assert isinstance(inner, fx.Node)
        if inner.target is operator.sub and inner.args[1] is constant and len(inner.users) == 1:
            source, amounts = inner.args[0], padded.args[1]
            if isinstance(source, fx.Node) and isinstance(amounts, tuple) and _is_vector(trace, source, constant):
                return source, amounts, constant  # type: ignore[return-value]
    return None


def _is_vector(trace: Trace, source: fx.Node, constant: fx.Node) -> bool:
    """Whether a constant has one number for each channel."""
    value, known = getattr(trace.module, str(constant.target)), trace.known(source)
    if not isinstance(value, Tensor) or known is None or known[0].dim() < 3:
        return False
    channels, axes = known[0].shape[1], known[0].dim() - 2
    return value.numel() == channels and tuple(value.shape[-axes - 1 :]) == (channels, *(1,) * axes)


def _settle(trace: Trace, interpretation: Interpretation, node: fx.Node) -> None:
    """Replace a border by the bias that it is but for rounding."""
    source, constant = node.args[0], node.args[2]
    assert isinstance(source, fx.Node)
    assert isinstance(constant, fx.Node)
    name = str(constant.target)
    value: Tensor = getattr(trace.module, name)
    for root in interpretation.values.get(source, {}):
        try:
            bias = interpretation.materialise(root, source).conv.bias
        except UnbranchError:
            continue
        if bias is None:
            continue
        allowed = ULPS * torch.finfo(value.dtype).eps * bias.abs().max()
        if bool(((bias - value.flatten()).abs() <= allowed).all()):
            setattr(trace.module, name, bias.reshape(value.shape))
            return
