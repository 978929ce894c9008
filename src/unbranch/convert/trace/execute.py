"""Execute nodes of a graph, outside of their forward."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from typing import Any

from torch import fx, nn

from unbranch.graph.float64 import Float64
from unbranch.rules import rule_of_module


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
