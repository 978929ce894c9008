"""What a canvas holds after all writes: padding around a value, or values side by side along the channels."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from unbranch.convert.passes.boxes import Box, Interval, contains
from unbranch.convert.passes.canvas import Canvas, Write
from unbranch.convert.passes.constants import Constants
from unbranch.convert.trace.trace import Trace
from unbranch.graph.operations import EXPANSIONS, named_arguments, operation_name
from unbranch.grids import last_axis_first
from unbranch.rules.borders import bordered, overwritten

UNFILLED = {"empty", "empty_like", "new_empty"}
FILLED = {"zeros": 0.0, "zeros_like": 0.0, "new_zeros": 0.0, "ones": 1.0, "ones_like": 1.0, "new_ones": 1.0}
FULL = {"full": 1, "full_like": 1, "new_full": 2}  # position of the value


@dataclass(frozen=True, eq=False)
class Constant:
    """One number, or one for each channel.

    Args:
        value: a number, or a node that is computed from parameters alone.
        numbers: ``(C,)``.
    """

    value: Any
    numbers: Tensor


@dataclass(frozen=True, eq=False)
class Padded:
    """A value with a constant around it, or in place of its own border."""

    inner: fx.Node
    pads: tuple[int, ...]
    value: Any
    overwrites: bool = False

    def insert(self, trace: Trace, after: fx.Node) -> fx.Node:
        """Insert this as an operation after a node."""
        function = overwritten if self.overwrites else bordered
        return trace.insert_after(after, function, (self.inner, self.pads, self.value))


def constant_of(constants: Constants, value: Any, axes: Sequence[int], channels: int) -> Constant | None:
    """Return a value that depends on the input by its size at most, as it is written to these axes; None for others."""
    if isinstance(value, int | float):
        return Constant(float(value), torch.full((channels,), float(value), dtype=torch.float64))
    while isinstance(value, fx.Node) and value not in constants and operation_name(value) in EXPANSIONS:
        value = value.args[0]
    if not isinstance(value, fx.Node) or value not in constants:
        return None
    try:
        numbers = constants.value(value).detach()
        numbers = torch.zeros(numbers.shape) if numbers.is_meta else numbers.double().cpu()  # checked by the proof
    except Exception:  # for example, if it is written to between two uses
        return None
    if numbers.numel() == 1:
        return Constant(value, numbers.reshape(1).expand(channels))
    place = len(axes) - list(axes).index(1) if 1 in axes else 0  # of the channels, from the right
    fits = place and numbers.dim() >= place and numbers.shape[-place] == channels == numbers.numel()
    return Constant(value, numbers.reshape(-1)) if fits else None


class CanvasContents:
    """The contents of a canvas after its last write."""

    def __init__(self, canvas: Canvas) -> None:
        self._canvas, self._base, self._trace = canvas, canvas.base, canvas.trace
        self._constants = Constants(canvas.trace, differentiable=False)
        self._pads = self._padding()
        self._filling = self._initial()

    def padding(self) -> Padded | None:
        """Return the contents as a rectangle with one constant around it; None if they aren't."""
        one, two = self._rectangle(0), self._rectangle(1)
        if one is None or two is None:
            return None
        (inner, margins, constants), (other, same, more) = one, two
        if inner is not other or margins != same or not constants:
            return None
        first = constants[0]
        if not all(torch.allclose(c.numbers, first.numbers, rtol=1e-12, atol=0) for c in (*constants, *more)):
            return None
        pads = last_axis_first(margins)
        if inner is self._base:
            return Padded(inner, pads, first.value, overwrites=True)
        fits = self._pads == margins or any(w.value is inner and self._fits(w) for w in self._canvas.writes)
        return Padded(inner, pads, first.value) if fits else None

    def concatenation(self) -> list[Any] | None:
        """Return the contents as values side by side along the channels: nodes, or intervals of the canvas itself."""
        found = [self._slabs(size) for size in (0, 1)]
        return found[0] if found[0] == found[1] and found[0] is not None and len(found[0]) > 1 else None

    def _slabs(self, size: int) -> list[Any] | None:
        shape, slabs = self._canvas.shapes[size], list[Any]()
        for cell, write in self._cells(size):
            if any(interval != (0, n) for a, (interval, n) in enumerate(zip(cell, shape, strict=True)) if a != 1):
                return None
            if write is None and self._base.target is not F.pad and self._filling is ...:
                slabs.append(cell[1])
            elif write is not None and not write.adds and write.view.boxes[size] == cell and self._fits(write):
                slabs.append(write.value)
            else:
                return None
        return slabs

    def _cells(self, size: int) -> Iterator[tuple[Box, Write | None]]:
        """Yield boxes that together are the canvas, each with the last write into it."""
        edges = []
        for axis, n in enumerate(self._canvas.shapes[size]):
            marks = {0, n} | {e for w in self._canvas.writes for e in w.view.boxes[size][axis]}
            if self._pads is not None and axis > 1:
                lo, hi = self._pads[axis - 2]
                marks |= {lo, n - hi}
            edges.append(sorted(marks))
        for cell in itertools.product(*(itertools.pairwise(e) for e in edges)):
            writes = [w for w in self._canvas.writes if contains(w.view.boxes[size], cell)]
            yield cell, writes[-1] if writes else None

    def _padding(self) -> list[Interval] | None:
        """Return what ``F.pad`` adds before and after each axis of the grid, if it made the canvas with a constant."""
        if self._base.target is not F.pad:
            return None
        given, axes = named_arguments(self._base, "input", "pad", "mode", "value"), self._canvas.rank - 2
        pads: Any = given.get("pad")
        if not isinstance(pads, list | tuple) or not all(isinstance(p, int) for p in pads):
            return None
        if given.get("mode", "constant") != "constant" or len(pads) > 2 * axes:
            return None
        both: list[int] = [*pads, *(0,) * (2 * axes - len(pads))]
        return [(both[j], both[j + 1]) for j in range(len(both) - 2, -1, -2)]

    def _initial(self) -> Any:
        """Return what the canvas holds before the writes: a constant, None if unknown, ``...`` if not constant."""
        name, args, kwargs = operation_name(self._base), self._base.args, self._base.kwargs
        if name in UNFILLED:
            return None
        if name in FILLED:
            return self._constant(FILLED[name], ())
        if name in FULL:
            value = kwargs.get("fill_value", args[FULL[name]] if len(args) > FULL[name] else None)
            return self._constant(value, ())
        if self._base.target is F.pad:
            value = kwargs.get("value", args[3] if len(args) > 3 else None)
            return self._constant(value or 0.0, ())
        whole = tuple(range(self._canvas.rank))
        return (self._constant(args[0], whole) or ...) if name == "clone" and args else ...

    def _constant(self, value: Any, axes: Sequence[int]) -> Constant | None:
        return constant_of(self._constants, value, axes, self._canvas.shapes[0][1])

    def _rectangle(self, size: int) -> tuple[fx.Node, list[Interval], list[Constant]] | None:
        """Return the value in the middle, the margins around it, and the constants in these."""
        shape = self._canvas.shapes[size]
        if self._base.target is F.pad and self._pads is None:
            return None
        middle: dict[fx.Node, list[Box]] = {}
        constants: list[Constant] = []
        for cell, write in self._cells(size):
            if not prod(e - s for s, e in cell):
                continue
            value = self._in_cell(cell, write, size)
            if isinstance(value, fx.Node):
                middle.setdefault(value, []).append(cell)
            elif isinstance(value, Constant):
                constants.append(value)
            else:
                return None
        if len(middle) != 1:
            return None
        ((inner, cells),) = middle.items()
        box = [(min(c[a][0] for c in cells), max(c[a][1] for c in cells)) for a in range(self._canvas.rank)]
        is_box = sum(prod(e - s for s, e in c) for c in cells) == prod(e - s for s, e in box)
        if not is_box or box[:2] != [(0, n) for n in shape[:2]]:
            return None
        return inner, [(s, n - e) for (s, e), n in zip(box[2:], shape[2:], strict=True)], constants

    def _in_cell(self, cell: Box, write: Write | None, size: int) -> Any:
        """Return what a cell holds: a node whose values lie there, a constant, or anything else if unknown."""
        if write is None and self._pads is not None:
            return self._base.args[0] if self._is_inside_pads(cell, size) else self._filling
        if write is None:
            return self._base if self._filling is ... else self._filling
        if write.adds:
            empty = isinstance(self._filling, Constant) and not self._filling.numbers.any()
            alone = empty and self._is_only_write(write, cell, size)
            return self._constant(write.value, write.view.axes) if alone else None
        return self._constant(write.value, write.view.axes) or write.value

    def _is_inside_pads(self, cell: Box, size: int) -> bool:
        """Whether a cell lies in the value that ``F.pad`` was given."""
        if self._pads is None:
            return False
        grid = zip(cell[2:], self._pads, self._canvas.shapes[size][2:], strict=True)
        return all(s >= lo and e <= n - hi for (s, e), (lo, hi), n in grid)

    def _is_only_write(self, write: Write, cell: Box, size: int) -> bool:
        """Whether a cell, outside of a padded value, is written to once."""
        inside = [w for w in self._canvas.writes if contains(w.view.boxes[size], cell)]
        return inside == [write] and not self._is_inside_pads(cell, size)

    def _fits(self, write: Write) -> bool:
        """Whether a written value has the shape of its box and the canvas's dtype, so that nothing is converted."""
        known = self._trace.known(write.value) if isinstance(write.value, fx.Node) else None
        if known is None or len(write.view.axes) != self._canvas.rank or not all(isinstance(v, Tensor) for v in known):
            return False
        dtype = self._trace.known(self._base)[0].dtype
        boxes = [tuple(e - s for s, e in box) for box in write.view.boxes]
        return all(tuple(v.shape) == b and v.dtype == dtype for v, b in zip(known, boxes, strict=True))
