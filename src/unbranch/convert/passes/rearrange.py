"""Operations that change the axes of a tensor and keep its elements: reshapes, transpositions and the like."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, fx, nn

from unbranch.convert.trace.execute import run_node
from unbranch.convert.trace.trace import Trace
from unbranch.errors import NotAffineError
from unbranch.graph.operations import AXIS_ATTRIBUTES, AXIS_CHANGES, RESHAPES, named_arguments
from unbranch.rules.arrangement import Arrangement, Shapes

_PRIMES = (2, 3, 5, 7, 11, 13, 17)


def _name(trace: Trace, node: fx.Node) -> str:
    """Return the name of an operation as a method of tensors, or ``""``."""
    if node.op == "call_module" and not node.meta.get("passes"):
        layer = trace.layer_of(node)
        return {nn.Flatten: "flatten", nn.Unflatten: "unflatten"}.get(type(layer), "")
    if node.op == "call_method":
        return str(node.target)
    if node.op == "call_function" and node.target is getattr:
        return str(node.args[1]) if node.args[1] in AXIS_ATTRIBUTES else ""
    name = getattr(node.target, "__name__", "") if node.op == "call_function" else ""
    return name if getattr(torch, name, None) is node.target else ""


def rearranges(trace: Trace, node: fx.Node) -> bool:
    """Whether an operation changes the axes of a tensor."""
    name = _name(trace, node)
    known = name in AXIS_CHANGES or name in RESHAPES or name in AXIS_ATTRIBUTES or name == "unflatten"
    return known and bool(node.all_input_nodes) and not any(isinstance(a, torch.dtype) for a in node.args)


def shapes_of(trace: Trace, node: fx.Node) -> Shapes | None:
    """Return a tensor's shapes for inputs of two sizes; None if they aren't known or differ in rank."""
    known = trace.known(node)
    if known is None or not all(isinstance(v, Tensor) for v in known) or known[0].dim() != known[1].dim():
        return None
    return tuple(known[0].shape), tuple(known[1].shape)


def source_of(node: fx.Node) -> fx.Node:
    """Return the tensor whose axes an operation changes."""
    return node.all_input_nodes[0]


def rearranged(trace: Trace, node: fx.Node, before: Arrangement, channels: int = 0) -> Arrangement:
    """Return the arrangement of axes after such an operation.

    Args:
        trace: the trace.
        node: the operation.
        before: the arrangement of its input.
        channels: the number of channels, if the arrangement has any.

    Raises:
        NotAffineError: if it isn't known, or elements are mixed.
    """
    name, source = _name(trace, node), source_of(node)
    shapes, after = shapes_of(trace, source), shapes_of(trace, node)
    if shapes is None or after is None or before.rank != len(shapes[0]) or 0 in (*shapes[0], *shapes[1]):
        raise NotAffineError("a tensor of unknown shape")
    if name == "squeeze" and any(shapes[0][j] != shapes[1][j] for j in _squeezed_axes(node, before.rank)):
        raise NotAffineError("an axis that squeeze removes only at some input sizes")
    if name in RESHAPES:
        return before if shapes == after else before.reshaped(0, before.rank, after, channels)
    if name == "unflatten":
        divided = _divided_axis(trace, node)
        if not isinstance(divided, int):
            raise NotAffineError("an axis that depends on the input")
        axis = divided % before.rank
        stop = axis + 1 + len(after[0]) - before.rank
        return before.reshaped(axis, axis + 1, (after[0][axis:stop], after[1][axis:stop]), channels)
    if before.rank > len(_PRIMES) or len(node.all_input_nodes) > 1:
        raise NotAffineError("a tensor of very high rank, or axes that depend on the input")
    primes = _PRIMES[: before.rank]
    result = run_node(node, {source: torch.empty(primes, device="meta")}, trace.module)
    groups = [[j for j, p in enumerate(primes) if n % p == 0] for n in result.shape]
    if not isinstance(result, Tensor) or prod(result.shape) != prod(primes) or len(groups) != len(after[0]):
        raise NotAffineError("an unknown operation on axes")
    return before.made_of(groups)


def _squeezed_axes(node: fx.Node, rank: int) -> list[int]:
    given = named_arguments(node, "input", "dim")
    axes = given.get("dim", tuple(range(rank)))
    axes = axes if isinstance(axes, tuple | list) else (axes,)
    if not all(isinstance(j, int) for j in axes) or len(node.args) > 2:
        raise NotAffineError("axes that depend on the input")
    return [j % rank for j in axes]


def _divided_axis(trace: Trace, node: fx.Node) -> Any:
    if node.op == "call_module":
        return trace.layer_of(node).dim
    given = named_arguments(node, "input", "dim")
    return given.get("dim")
