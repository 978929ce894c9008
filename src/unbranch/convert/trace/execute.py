"""Comparing an operator with what it replaces, on random input in float64."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from unbranch.graph.float64 import Float64
from unbranch.rules import rule_of_module
from unbranch.rules.arrangement import Shapes
from unbranch.rules.value import Affine

_FAR = 256


def random_inputs(value: Affine, device: torch.device, known: Shapes | None = None) -> list[Tensor]:
    """Seeded normal noise for the root of a value, ``(2, channels, *grid)``.

    The grid is the root's own where the graph fixes it; otherwise its sizes differ and exceed the kernel's reach. With
    channels on the last axis there are two candidates, of rank 3 and of rank 2. Where shapes for inputs of two sizes
    are ``known``, the first candidate has the sizes that are the same in both, and small ones elsewhere.
    """
    channels = value.map.in_channels
    if value.root_grid is not None:
        shapes = [(2, channels, *value.root_grid)]
    elif value.last:
        shapes = [(2, 3, channels), (6, channels)]
    else:
        m = value.map
        smallest = [_side(r, a, b) for r, a, b in zip(m.reach, m.lo, m.hi, strict=True)]
        shapes = [(2, channels, *(max(4, s) + 1 + j for j, s in enumerate(smallest)))]
    if known is not None and value.root_grid is None:
        small = shapes[0] if len(shapes[0]) == len(known[0]) else range(2, 2 + len(known[0]))
        shapes.insert(0, tuple(n if n == m else s for n, m, s in zip(*known, small, strict=True)))
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(device) for shape in shapes]


def _side(reach: int, lo: int, hi: int) -> int:
    """Points that show all of a kernel; for one that reaches very far, those that leave something of the output."""
    if reach > _FAR:
        return max(1, reach + 1 - lo - hi)
    return reach + 1 + max(0, -lo) + max(0, -hi)


def run_nodes(nodes: Sequence[fx.Node], known: dict[fx.Node, Any], root: nn.Module) -> Any:
    """Execute a piece of a graph in order, in float64; returns the last value."""
    values = dict(known)
    with warnings.catch_warnings(), Float64():  # which writes into private copies only
        warnings.simplefilter("ignore")
        for node in nodes:
            if node not in values:
                values[node] = run_node(node, values, root)
    return values[nodes[-1]]


def run_node(node: fx.Node, values: dict[fx.Node, Any], root: nn.Module) -> Any:
    """Execute one node of a graph."""
    args, kwargs = fx.node.map_arg((node.args, node.kwargs), lambda n: values[n])
    if node.op == "get_attr":
        return attribute(root, str(node.target))
    if node.op == "call_module":
        return affine_part(root.get_submodule(str(node.target)))(*args, **kwargs)
    if node.op == "call_method":
        return getattr(args[0], str(node.target))(*args[1:], **kwargs)
    return node.target(*args, **kwargs)  # type: ignore[operator]


def affine_part(module: nn.Module) -> nn.Module:
    """The module without the activation that follows its affine part, sharing its tensors."""
    rule = rule_of_module(module)
    if rule is None or not rule.rest:
        return module
    part = copy.copy(module)
    part._modules = {k: nn.Identity() if k in rule.rest else m for k, m in module._modules.items()}
    return part


def attribute(root: Any, path: str) -> Any:
    """The tensor or object at a dotted path."""
    for name in path.split("."):
        root = getattr(root, name)
    return root


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Largest difference over largest value of ``theirs``; infinite if shapes differ or values aren't finite."""
    if ours.shape != theirs.shape:
        return float("inf")
    if theirs.numel() == 0:
        return 0.0
    difference = (ours.double() - theirs.double()).abs().max()
    scale = theirs.double().abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    error = float(difference / scale)
    return error if error == error else float("inf")
