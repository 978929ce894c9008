"""Execute nodes of a graph in float64, on random input."""

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
    """Return seeded normal noise for the root of a value, ``(2, channels, *grid)``.

    If the graph fixes the grid of the root, the noise has it; otherwise its sizes differ and exceed the kernel's span.
    With channels on the last axis there are two candidates, of rank 3 and of rank 2. If ``known`` has shapes for inputs
    of two sizes, the first candidate has the sizes that are equal in both, and small sizes elsewhere.
    """
    channels = value.map.in_channels
    if value.root_grid is not None:
        shapes = [(2, channels, *value.root_grid)]
    elif value.channel_axis == -1:
        shapes = [(2, 3, channels), (6, channels)]
    else:
        m = value.conv
        smallest = [_side(r, a, b) for r, a, b in zip(m.span, m.lo, m.hi, strict=True)]
        shapes = [(2, channels, *(max(4, s) + 1 + j for j, s in enumerate(smallest)))]
    if known is not None and value.root_grid is None:
        small = shapes[0] if len(shapes[0]) == len(known[0]) else range(2, 2 + len(known[0]))
        shapes.insert(0, tuple(n if n == m else s for n, m, s in zip(*known, small, strict=True)))
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(device) for shape in shapes]


def _side(reach: int, lo: int, hi: int) -> int:
    """Return a size at which the whole kernel takes effect; for very large kernels, one that leaves some output."""
    if reach > _FAR:
        return max(1, reach + 1 - lo - hi)
    return reach + 1 + max(0, -lo) + max(0, -hi)


def run_nodes(nodes: Sequence[fx.Node], known: dict[fx.Node, Any], root: nn.Module) -> Any:
    """Execute nodes in order, in float64; returns the value of the last one."""
    values = dict(known)
    with warnings.catch_warnings(), Float64():  # writes go to private copies
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
    """Return the module without the activation that follows its affine part; tensors are shared."""
    rule = rule_of_module(module)
    if rule is None or not rule.epilogue:
        return module
    part = copy.copy(module)
    part._modules = {k: nn.Identity() if k in rule.epilogue else m for k, m in module._modules.items()}
    return part


def attribute(root: Any, path: str) -> Any:
    """Return the tensor or object at a dotted path."""
    for name in path.split("."):
        root = getattr(root, name)
    return root


def relative_error(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference over the largest value of ``theirs``; infinite for different shapes or non-finite
    values.
    """
    if ours.shape != theirs.shape:
        return float("inf")
    if theirs.numel() == 0:
        return 0.0
    difference = (ours.double() - theirs.double()).abs().max()
    scale = theirs.double().abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    error = float(difference / scale)
    return error if error == error else float("inf")
