"""Operators of ONNX that move numbers: reshapes, transpositions, slices, concatenations."""

from __future__ import annotations

import operator
from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import fx

from unbranch.onnx.layers import channels_at
from unbranch.onnx.operators import FIXED, Operator


def concat(op: Operator) -> fx.Node | None:
    operands = [op.graph.node_of(name) for name in op.inputs]
    if None in operands:
        return None
    return op.graph.function(torch.cat, operands, int(op.attributes.get("axis", 1)))


def split(op: Operator) -> list[fx.Node] | None:
    x, shapes, axis = op.x(), op.shapes(), int(op.attributes.get("axis", 0))
    parts = [op.graph.shapes(name) for name in op.outputs]
    if x is None or shapes is None or None in parts or not -len(shapes[0]) <= axis < len(shapes[0]):
        return None
    sizes = [(part[0][axis], part[1][axis]) for part in parts if part is not None]
    if any(a != b for a, b in sizes) or sum(a for a, _ in sizes) != shapes[0][axis]:
        return None
    whole = op.graph.function(torch.split, x, [a for a, _ in sizes], axis)
    return [op.graph.function(operator.getitem, whole, j) for j in range(len(op.outputs))]


def cut(op: Operator) -> fx.Node | None:
    """``Slice`` by constants."""
    x, shapes = op.x(), op.shapes()
    starts, ends = op.numbers(1, "starts"), op.numbers(2, "ends")
    if x is None or shapes is None or starts is None or ends is None:
        return None
    axes = op.numbers(3, "axes") if op.given(3) or "axes" in op.attributes else list(range(len(starts)))
    steps = op.numbers(4) if op.given(4) else [1] * len(starts)
    if axes is None or steps is None or min(steps, default=1) < 1:
        return None
    index: list[slice] = [slice(None)] * len(shapes[0])
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        found = _slice(start, end, step, shapes[0][axis], shapes[1][axis])
        if found is None:
            return None
        index[axis] = found
    return op.graph.function(operator.getitem, x, tuple(index))


def _slice(start: int, end: int, step: int, first: int, second: int) -> slice | None:
    """Return a slice with a start from the left and an end from the right, the same for both sizes of the axis."""
    found = {slice(start, end).indices(size)[:2] for size in (first, second)}
    if first == second:
        ((low, high),) = found
        return None if high <= low else slice(low or None, high - first or None, None if step == 1 else step)
    if start < 0 or (0 < end < 1 << 31):
        return None  # counted from the other side, so that it depends on the size
    return slice(start or None, end if end < 0 else None, None if step == 1 else step)


def gather(op: Operator) -> fx.Node | None:
    x, shapes, indices = op.x(), op.shapes(), op.constant(1)
    if x is None or shapes is None or indices is None or indices.dim() != 1 or not len(indices):
        return None
    axis = int(op.attributes.get("axis", 0))
    if axis not in (1, 1 - len(shapes[0])) or len(shapes[0]) < 2 or axis == 0:
        return None
    return op.graph.function(channels_at, x, tuple(int(j) for j in indices.tolist()))


def reshape(op: Operator) -> fx.Node | None:
    """By shapes: to a fixed shape of each image, or by joining or dividing axes that depend on the input."""
    x, before, after = op.x(), op.shapes(), op.graph.shapes(op.outputs[0])
    if x is None or before is None or after is None or not before[0] or not after[0]:
        return None
    first, second = after
    if first[1:] == second[1:] and len(first) > 1 and 0 not in first[1:]:
        fixed = (-1, *first[1:])
        joined = len(before[0]) - len(first)
        if first[0] != before[0][0] and joined > 0 and all(b[joined + 1 :] == first[1:] for b in before):
            return _to_fixed(op, op.graph.function(torch.flatten, x, 0, joined), fixed)
        return _to_fixed(op, op.graph.function(torch.reshape, x, fixed), fixed)
    start = next((j for j in range(len(first)) if not _same_axis(before, after, j)), len(first) - 1)
    joins = all(prod(b[start:]) == a[start] for a, b in zip(after, before, strict=True))
    if joins and len(first) == start + 1 < len(before[0]):
        return op.graph.function(torch.flatten, x, start)
    return None


def _to_fixed(op: Operator, node: fx.Node, shape: tuple[int, ...]) -> fx.Node:
    """Note that a reshape to a computed shape always has this one, but for the first axis."""
    if op.constant(1) is None and op.kind == "Reshape" and op.graph.is_fixed(op.outputs[0]):
        node.meta[FIXED] = shape
    return node


def _same_axis(before: Any, after: Any, j: int) -> bool:
    return all(j < len(b) and j < len(a) and a[j] == b[j] for a, b in zip(after, before, strict=True))


def flatten(op: Operator) -> fx.Node | None:
    """To a matrix, with the axes from ``axis`` on in each row."""
    return reshape(op)


def transpose(op: Operator) -> fx.Node | None:
    x, shapes = op.x(), op.shapes()
    if x is None or shapes is None:
        return None
    order = op.attributes.get("perm", list(reversed(range(len(shapes[0])))))
    return op.graph.function(torch.permute, x, tuple(int(j) for j in order))


def squeeze(op: Operator) -> fx.Node | None:
    x, shapes, axes = op.x(), op.shapes(), op.numbers(1, "axes")
    if x is None or shapes is None or axes is None:
        return None
    axes = [j % len(shapes[0]) for j in axes]
    if any(shape[j] != 1 for shape in shapes for j in axes):
        return None
    return op.graph.function(torch.squeeze, x, tuple(axes))


def unsqueeze(op: Operator) -> fx.Node | None:
    x, shapes, axes = op.x(), op.shapes(), op.numbers(1, "axes")
    if x is None or shapes is None or axes is None or len(axes) != 1:
        return None
    return op.graph.function(torch.unsqueeze, x, axes[0])


VIEWS: dict[str, Callable[[Operator], Any]] = {
    "Concat": concat, "Split": split, "Slice": cut, "Gather": gather, "Reshape": reshape, "Flatten": flatten,
    "Transpose": transpose, "Squeeze": squeeze, "Unsqueeze": unsqueeze,
}  # fmt: skip
