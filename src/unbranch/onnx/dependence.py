"""Numbers that are computed from the sizes of tensors, and which of them are equal at several sizes by chance.

A polynomial of the sizes that is the same at several sizes of different remainders is constant. Comparisons, bounds,
remainders and divisions are other functions: ``min(H, 20)`` is the same at all sizes but small ones. So their results
don't become constants, nor does what is computed from them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

MOVES = frozenset({
    "Gather", "Slice", "Reshape", "Squeeze", "Unsqueeze", "Transpose", "Identity", "Flatten", "Expand", "Tile",
})  # fmt: skip
POLYNOMIAL = frozenset({"Add", "Sub", "Mul", "Neg", "Sum", "Cast", "CastLike", "ReduceSum", "ReduceProd", "Size"})
ROUNDING = frozenset({"Ceil", "Floor", "Round"})


@dataclass(frozen=True, eq=False)
class Sizes:
    """Numbers computed from sizes.

    Args:
        values: at each size of the inputs, or one for a constant.
        chance: which of the numbers may be equal by chance, in their shape; None if none.
    """

    values: tuple[Tensor, ...]
    chance: Tensor | None

    @property
    def is_constant(self) -> bool:
        """Whether the numbers are the same at each size, and not by chance."""
        return self.chance is None and _are_equal(self.values)

    def varying(self) -> Tensor:
        """Return which of the numbers differ between sizes, all if their shape does."""
        first = self.values[0]
        if any(v.shape != first.shape for v in self.values):
            return torch.ones(first.shape, dtype=torch.bool)
        return torch.stack([v != first for v in self.values]).any(0)


def depends(
    node: Any, inputs: Sequence[Sizes], results: Sequence[Tensor], run: Callable[[dict[str, Tensor]], Tensor | None]
) -> Tensor | None:  # fmt: skip
    """Return which numbers of a node's result may be equal by chance, None if none.

    Args:
        node: the operator.
        inputs: its inputs.
        results: what it computes at each size.
        run: runs the operator on other inputs, by name.
    """
    marks = [torch.zeros(s.values[0].shape, dtype=torch.bool) if s.chance is None else s.chance for s in inputs]
    if not _is_polynomial(node, inputs, results):
        marks = [mark | s.varying() for mark, s in zip(marks, inputs, strict=True)]
    if not any(bool(mark.any()) for mark in marks):
        return None
    everything = torch.ones(results[0].shape, dtype=torch.bool)
    if any(len({v.shape for v in s.values}) > 1 for s in inputs):
        return everything
    if node.op_type in MOVES or node.op_type == "Concat":
        moving = len(marks) if node.op_type == "Concat" else 1
        if any(bool(mark.any()) for mark in marks[moving:]):
            return everything
        names = [name for name in node.input if name]
        given = {name: s.values[0] for name, s in zip(names, inputs, strict=True)}
        try:
            moved = run(given | {name: marks[j].to(torch.int64) for j, name in enumerate(names[:moving])})
        except Exception:  # the operator isn't evaluated on integers
            return everything
        return everything if moved is None else _or_none(moved != 0)
    try:
        joined = torch.zeros(results[0].shape, dtype=torch.bool)
        for mark in marks:
            joined = joined | mark
    except RuntimeError:  # not an elementwise operator
        return everything
    return _or_none(joined) if joined.shape == results[0].shape and _is_elementwise(node) else everything


def _is_polynomial(node: Any, inputs: Sequence[Sizes], results: Sequence[Tensor]) -> bool:
    """Whether an operator only moves numbers, adds and multiplies, or divides without a remainder."""
    kind = node.op_type
    if kind in MOVES:
        return all(_are_equal(s.values) for s in inputs[1:])
    if kind in POLYNOMIAL or kind == "Concat":
        return True
    if kind in ROUNDING:
        return _are_same(inputs[0].values, results)
    if kind == "Div" and _are_equal(inputs[1].values):
        divisor = inputs[1].values[0]
        whole = [result * divisor for result in results]
        return results[0].is_floating_point() or _are_same(inputs[0].values, whole)
    return False


def _is_elementwise(node: Any) -> bool:
    return node.op_type in POLYNOMIAL | ROUNDING | ELEMENTWISE and not node.op_type.startswith(("Reduce", "Size"))


ELEMENTWISE = frozenset({
    "Div", "Mod", "Min", "Max", "Clip", "Where", "Equal", "Less", "Greater", "LessOrEqual", "GreaterOrEqual", "And",
    "Or", "Not", "Xor", "Abs", "Sign", "Relu", "Pow",
})  # fmt: skip


def _are_equal(values: Sequence[Tensor]) -> bool:
    first = values[0]
    return all(v.dtype == first.dtype and v.shape == first.shape and v.equal(first) for v in values)


def _are_same(first: Sequence[Tensor], second: Sequence[Tensor]) -> bool:
    many = list(first) * len(second) if len(first) == 1 else list(first)
    return all(a.shape == b.shape and bool((a == b).all()) for a, b in zip(many, second, strict=True))


def _or_none(marks: Tensor) -> Tensor | None:
    return marks if bool(marks.any()) else None
