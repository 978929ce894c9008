"""Rectangular parts of a tensor, at two input sizes, and how indices of square brackets select them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx

from unbranch.graph.operations import named_arguments, operation_name
from unbranch.rules.arrangement import Shapes

Interval = tuple[int, int]
Box = tuple[Interval, ...]
"""Start and stop along each axis."""
Number = Callable[[Any, int], Any]
"""Evaluates a bound of an index at one of the two sizes; returns ``...`` if it isn't known."""


@dataclass(frozen=True, eq=False)
class View:
    """A part of a tensor, at each of two sizes, and the axes of the tensor that it still has."""

    boxes: tuple[Box, Box]
    axes: tuple[int, ...]

    @classmethod
    def of_all(cls, shapes: Shapes) -> View:
        """Return the view of a whole tensor."""
        first, second = (tuple((0, n) for n in shape) for shape in shapes)
        return cls((first, second), tuple(range(len(first))))

    def is_all(self, shapes: Shapes) -> bool:
        """Whether this is a whole tensor of these shapes."""
        whole = View.of_all(shapes)
        return self.axes == whole.axes and self.boxes == whole.boxes

    def part(self, index: Any, number: Number) -> View | None:
        """Return the part at an index of numbers and slices; None if it isn't a box that can be determined."""
        parts = _for_each_axis(index, len(self.axes))
        if parts is None:
            return None
        found: list[Box] = []
        for size, box in enumerate(self.boxes):
            new = list(box)
            for axis, part in zip(self.axes, parts, strict=True):
                start, stop = box[axis]
                interval = _interval(part, stop - start, size, number)
                if interval is None:
                    return None
                new[axis] = (start + interval[0], start + interval[1])
            found.append(tuple(new))
        axes = tuple(axis for axis, part in zip(self.axes, parts, strict=True) if isinstance(part, slice | Span))
        return View((found[0], found[1]), axes)


@dataclass(frozen=True)
class Span:
    """``length`` entries from ``start``, as in ``narrow``."""

    start: Any
    length: Any


def index_of(view: fx.Node, rank: int) -> Any:
    """Return a ``getitem``, ``narrow`` or ``select`` as an index of square brackets; None if its axis isn't fixed."""
    name = operation_name(view)
    if name == "getitem":
        return view.args[1]
    given = named_arguments(view, "input", "dim", *(("start", "length") if name == "narrow" else ("index",)))
    dim = given.get("dim")
    if not isinstance(dim, int):
        return None
    before = (slice(None),) * (dim % rank)
    return (*before, given["index"]) if name == "select" else (*before, Span(given["start"], given["length"]))


def _for_each_axis(index: Any, rank: int) -> list[Any] | None:
    """Return one part of an index for each axis, with ``...`` written out."""
    parts = list(index) if isinstance(index, tuple) else [index]
    if any(p is None or isinstance(p, bool | Tensor | list) for p in parts):
        return None
    if any(p is Ellipsis for p in parts):
        at = next(j for j, p in enumerate(parts) if p is Ellipsis)
        parts[at : at + 1] = [slice(None)] * (rank - len(parts) + 1)
    return parts + [slice(None)] * (rank - len(parts))


def _interval(part: Any, length: int, size: int, number: Number) -> Interval | None:
    """Return what one part of an index selects from an axis of ``length`` entries."""
    if isinstance(part, slice):
        bounds = [number(v, size) for v in (part.start, part.stop, part.step)]
        if ... in bounds or bounds[2] not in (None, 1):
            return None
        start, stop, _ = slice(*bounds).indices(length)
        return start, max(start, stop)
    span = part if isinstance(part, Span) else Span(part, 1)
    start, count = number(span.start, size), number(span.length, size)
    if not isinstance(start, int) or not isinstance(count, int):
        return None
    start += length if start < 0 else 0
    return (start, start + count) if start >= 0 and start + count <= length else None


def contains(outer: Box, inner: Box) -> bool:
    """Whether one box lies in another."""
    return all(a <= s and e <= b for (s, e), (a, b) in zip(inner, outer, strict=True))
