"""Outcomes of conditions on sizes while a forward is traced."""

from __future__ import annotations

import operator
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, NoReturn

import torch
from torch import fx
from torch.nn import functional as F

from unbranch.convert.trace.casts import UnreadableError, is_of_kind
from unbranch.graph.operations import reads_size

MAX_OPERATIONS = 100_000  # operations recorded for one trace, including those that are discarded


_DEEPEST = 64  # conditions on one path


class TooManyPathsError(UnreadableError):
    """Raised for a forward with more control-flow paths than are explored."""


@dataclass(eq=False)
class Decisions:
    """The outcomes of the conditions on one path through a forward: the given ones first, then true.

    Args:
        known: the value of each condition for inputs of two sizes, or None.
    """

    given: tuple[bool, ...] = ()
    taken: list[bool] = field(default_factory=list)
    known: list[Any] = field(default_factory=list)
    outcomes: dict[Any, bool] = field(default_factory=dict)

    def of(self, condition: fx.Node, known: Any = None) -> bool:
        """Return the outcome of a condition; the same for every evaluation of it."""
        key = _key(condition)
        if key not in self.outcomes:
            self.outcomes[key] = self._next(known)
        return self.outcomes[key]

    def clear(self) -> None:
        """Start again from the first condition."""
        self.taken.clear()
        self.known.clear()
        self.outcomes.clear()

    def _next(self, known: Any) -> bool:
        if len(self.taken) >= _DEEPEST:
            raise TooManyPathsError(f"more than {_DEEPEST} conditions depend on the input size")
        outcome = self.given[len(self.taken)] if len(self.taken) < len(self.given) else True
        self.taken.append(outcome)
        self.known.append(known)
        return outcome

    def holds(self) -> tuple[bool, bool]:
        """Whether inputs of the first and of the second size take this path."""
        first, second = (
            all(k is not None and _truth(k[size]) is t for k, t in zip(self.known, self.taken, strict=True))
            for size in (0, 1)
        )
        return first, second


def _truth(value: Any) -> bool | None:
    """Return the outcome of a condition on plain numbers; None for tensors."""
    return bool(value) if isinstance(value, bool | int | float) else None


def _key(value: Any) -> Any:
    """Return a key of a computation, equal for sizes that are computed again in the same way."""
    if isinstance(value, tuple | list):
        return tuple(map(_key, value))
    if not isinstance(value, fx.Node):
        return type(value).__name__, repr(value)
    module = getattr(value.target, "__module__", None)
    computed = value.op == "call_function" and module in _OF_NUMBERS and not value.kwargs
    if reads_size(value) or computed:
        return value.target, _key(value.args)
    return value


_HARMLESS = {
    F.pad, F.interpolate, operator.getitem, torch.narrow, torch.reshape, torch.permute, torch.transpose, torch.flatten,
    torch.flip, torch.roll, torch.cat, "narrow", "contiguous", "reshape", "view", "flatten", "permute", "transpose",
    "flip", "roll", "clone", "size", "dim",
}  # fmt: skip


_OF_NUMBERS = ("_operator", "builtins", "math")


def about_sizes(node: fx.Node, options: Collection[str] = ()) -> bool:
    """Whether a value is computed from sizes alone, or from the optional arguments that are named."""
    if node.op == "placeholder":
        return node.name in options
    if reads_size(node):
        return True
    if node.op != "call_function" or node.kwargs or node.target is getattr:
        return False
    known = node.target in (either, is_of_kind) or getattr(node.target, "__module__", None) in _OF_NUMBERS
    inputs = node.all_input_nodes
    return known and bool(inputs) and all(about_sizes(n, options) for n in inputs)


def either(*_values: Any) -> NoReturn:
    """The node for a value that differs between paths; it is never executed."""
    raise RuntimeError("a forward with several paths can't be written as one")


def is_harmless(node: fx.Node) -> bool:
    """Whether an operation may occur on one path only: padding, cutting, resizing and rearranging may."""
    if node.kwargs.get("out") is not None or node.kwargs.get("inplace"):
        return False
    return about_sizes(node) or (node.op in ("call_function", "call_method") and node.target in _HARMLESS)
