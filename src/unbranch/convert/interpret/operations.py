"""Single operations in an interpretation: their arguments and results, and the operations between two values."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx

from unbranch.errors import InexactError, NotAffineError
from unbranch.rules import Rule
from unbranch.rules.value import Affine, TupleValue


def _not_on_a_grid(*_args: Any, **_kwargs: Any) -> Affine:
    raise NotAffineError("other axes")


PASS = Rule(lambda _module, x, *args, **kwargs: x, "view", arranged=True)  # noqa: ARG005
REARRANGES = Rule(_not_on_a_grid, "view", arranged=True)
CHANGES_SIZE = {torch.nn.functional.pad, torch.cat, torch.concat, torch.concatenate, torch.stack, torch.sum, torch.mean,
                torch.nn.functional.avg_pool1d, torch.nn.functional.avg_pool2d, torch.nn.functional.avg_pool3d,
                "sum", "mean"}  # fmt: skip


class DependentSize:
    """A size that depends on the input, as an argument of a rule."""


_FIRST, _SECOND = ("input", "tensor", "tensors"), ("other", "split_size_or_sections", "shape")


def by_position(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return arguments with the operands as positional ones, as rules expect."""
    kwargs = {"dim" if name == "axis" else name: value for name, value in kwargs.items()}
    for names in (_FIRST, _SECOND):
        found = [kwargs.pop(name) for name in names if name in kwargs]
        args = (*found, *args) if names is _FIRST else (*args, *found)
    return args, kwargs


def first(value: Affine | TupleValue) -> Affine:
    """Return the value, or the first of several."""
    return value if isinstance(value, Affine) else value.parts[0]


def on_meta(value: Any) -> Affine | TupleValue:
    """Return the result of a rule with its maps on the meta device.

    Raises:
        InexactError: if the result isn't a value.
    """
    if isinstance(value, TupleValue):
        return TupleValue(tuple(p.on_meta() for p in value.parts), value.stacked)
    if not isinstance(value, Affine):
        raise InexactError(f"its rule returned {type(value).__name__} instead of a value")
    return value.on_meta()


def operations_between(root: fx.Node, target: fx.Node, order: dict[fx.Node, int]) -> list[fx.Node]:
    """Return the operations on the paths from ``root`` to ``target``, including the target's, in order.

    They include reads of sizes.
    """
    found: set[fx.Node] = set()
    stack = [target]
    while stack:
        node = stack.pop()
        if node in found or node is root or order[node] < order[root]:
            continue
        found.add(node)
        stack += node.all_input_nodes
    reached = {root}
    for node in sorted(found, key=order.__getitem__):
        if any(n in reached for n in node.all_input_nodes):
            reached.add(node)
    return sorted(reached - {root}, key=order.__getitem__)
