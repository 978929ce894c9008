"""Which tensors of a program integer engines quantise: those that 8-bit layers read and write.

Engines execute a layer on integers if they find quantised weights and inputs before it, and a quantised output behind
it, after its activation if that is a clamp. Sums of two activations, concatenations and averages are executed on
integers if all that they read is quantised.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

aten = torch.ops.aten
LAYERS = {
    aten.conv1d.default: 0, aten.conv1d.padding: 0, aten.conv2d.default: 0, aten.conv2d.padding: 0,
    aten.conv3d.default: 0, aten.conv3d.padding: 0, aten.linear.default: 0, aten.conv_transpose1d.default: 1,
    aten.conv_transpose2d.input: 1, aten.conv_transpose3d.input: 1,
}  # fmt: skip
"""Layers, and the axis of the output channels in their weight."""
CLAMPS = {aten.relu.default, aten.hardtanh.default, aten.relu6.default, aten.clamp.default, aten.clamp_min.default}
SUMS = {aten.add.Tensor, aten.cat.default}
AVERAGES = {
    aten.mean.dim, aten.avg_pool1d.default, aten.avg_pool2d.default, aten.adaptive_avg_pool1d.default,
    aten.adaptive_avg_pool2d.default,
}  # fmt: skip
MOVES = {
    aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.permute.default, aten.transpose.int,
    aten.unsqueeze.default, aten.squeeze.dim, aten.squeeze.dims, aten.dropout.default, aten.max_pool1d.default,
    aten.max_pool2d.default, aten.slice.Tensor, aten.clone.default, aten.alias.default, aten.contiguous.default,
}  # fmt: skip
"""Operations that commute with rounding: their result has the grid of what they read."""


@dataclass(frozen=True, eq=False)
class Placement:
    """What is quantised.

    Args:
        activations: nodes whose result is quantised for all operations that read it.
        weights: nodes of parameters that are weights of layers, with the axis of the output channels.
    """

    activations: tuple[fx.Node, ...]
    weights: dict[fx.Node, int]


def place(graph: fx.Graph) -> Placement:
    """Return what is to be quantised in the graph of a program."""
    weights: dict[fx.Node, int] = {}
    found: dict[fx.Node, None] = {}
    for node in graph.nodes:
        axis = LAYERS.get(node.target)
        if axis is not None and _is_parameter(node.args[1]):
            weights[node.args[1]] = axis
            found |= dict.fromkeys((node.args[0], _written(node)))
        elif node.target in SUMS and len(activations := list(_activations(node))) > 1:
            found |= dict.fromkeys((*activations, _written(node)))
        elif node.target in AVERAGES:
            found |= dict.fromkeys((*_activations(node), node))
    chosen = dict.fromkeys(map(origin, found))
    return Placement(tuple(node for node in chosen if _is_float(node) and _is_read(node)), weights)


def _activations(node: fx.Node) -> Iterator[fx.Node]:
    """Yield the tensors that an operation reads, without parameters."""
    yield from (arg for arg in node.all_input_nodes if _is_float(arg) and arg.op != "get_attr")


def _written(node: fx.Node) -> fx.Node:
    """Return what a layer or sum writes: the result of its activation, if nothing else reads its own."""
    (first, *others) = [*node.users, None]
    return first if first is not None and others == [None] and first.target in CLAMPS else node


def origin(node: fx.Node) -> fx.Node:
    """Return the node whose numbers a tensor has, before operations that only move or choose them."""
    while node.target in MOVES and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return node


def _is_parameter(node: object) -> bool:
    return isinstance(node, fx.Node) and node.op == "get_attr"


def _is_float(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float32 and value.dim() > 1


def _is_read(node: fx.Node) -> bool:
    """Whether an operation reads a tensor, rather than it being an output of the network alone."""
    return any(user.op != "output" and (user.target not in MOVES or _is_read(user)) for user in node.users)
