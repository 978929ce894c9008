"""Writes into parts of tensors that a forward makes, read as what they amount to: padding or a concatenation.

``y[:, :, 0] = v`` changes a tensor that other names stand for, so no operation of the graph tells what ``y`` is
afterwards. Here all writes into one tensor are put together: each covers a box. Where the boxes leave a rectangle with
a constant around it, what they make is that rectangle, padded; where they lie side by side along the channels, their
concatenation. Boxes are compared for inputs of two sizes, and have to be given by numbers, counted from either end.
"""

from __future__ import annotations

import functools
import itertools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from unbranch.convert.passes.constants import Constants
from unbranch.convert.passes.inplace import is_view_operation
from unbranch.convert.trace.trace import Call, Trace, follows_a_size, operation_name
from unbranch.rules import rule_of_module
from unbranch.rules.borders import bordered, overwritten

_FILLED = {"zeros": 0.0, "zeros_like": 0.0, "new_zeros": 0.0, "ones": 1.0, "ones_like": 1.0, "new_ones": 1.0}
_UNFILLED = {"empty", "empty_like", "new_empty"}
_FULL = {"full": 1, "full_like": 1, "new_full": 2}  # position of the value
_KERNELS = {F.conv1d, F.conv2d, F.conv3d}
_EXPANDS = {"expand", "expand_as", "broadcast_to"}
_ITEM = {"setitem", "__setitem__"}
_IN_PLACE = {"copy_", "fill_", "zero_", "iadd", "add_"}
_VIEWS = {"getitem", "narrow", "select"}
_CATS = {torch.cat, torch.concat, torch.concatenate}

Interval = tuple[int, int]
Box = tuple[Interval, ...]
"""Start and stop along each axis."""


def read_writes(trace: Trace) -> None:
    """Replace writes into fresh tensors by padding and concatenation, where they amount to that."""
    nodes = list(trace.graph.nodes)
    written = {base for n in nodes if (base := _written_in_part(n)) is not None}
    for base in [n for n in nodes if n in written and _is_fresh(trace, n)]:
        canvas = _Canvas.under(trace, base)
        if canvas is not None and (made := canvas.border() or canvas.slabs()) is not None:
            canvas.replace(made)
    for node in [n for n in nodes if n.target in _CATS]:
        _read_cat(trace, node)
    trace.refresh()


def _written_in_part(node: fx.Node) -> fx.Node | None:
    """What an operation writes to, if it replaces all of it or changes a part of it."""
    name = operation_name(node)
    if name not in _ITEM | _IN_PLACE:
        return None
    whole = name in ("iadd", "add_")
    base = node.args[0]
    while isinstance(base, fx.Node) and (inner := operation_name(base)) in _VIEWS | _IN_PLACE:
        whole = whole and inner not in _VIEWS
        base = base.args[0]
    return base if isinstance(base, fx.Node) and not whole else None


def _is_fresh(trace: Trace, node: fx.Node) -> bool:
    """Whether a node makes a tensor that shares its memory with nothing that was there before."""
    if node.op == "call_module":
        rule = rule_of_module(trace.layer_of(node))
        return rule is not None and rule.kind == "kernel" and not rule.rest and not node.meta.get("passes")
    name = operation_name(node)
    return node.target is F.pad or node.target in _KERNELS or name in {"clone", *_FILLED, *_UNFILLED, *_FULL}


@dataclass(frozen=True, eq=False)
class _View:
    """A part of a canvas, for each of two sizes, and the axes of the canvas that it has."""

    boxes: tuple[Box, Box]
    axes: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Write:
    node: fx.Node
    view: _View
    value: Any
    adds: bool = False


@dataclass(frozen=True, eq=False)
class _Constant:
    """One number, or one for each channel.

    Args:
        value: a number, or a node that is computed from parameters alone.
        numbers: ``(C,)``.
    """

    value: Any
    numbers: Tensor


@dataclass(eq=False)
class _Canvas:
    """A tensor and what is written into it, before anything reads the result."""

    trace: Trace
    base: fx.Node
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    writes: list[_Write] = field(default_factory=list)
    aliases: list[fx.Node] = field(default_factory=list)
    readers: list[tuple[fx.Node, fx.Node]] = field(default_factory=list)
    views: list[fx.Node] = field(default_factory=list)

    @classmethod
    def under(cls, trace: Trace, base: fx.Node) -> _Canvas | None:
        """The canvas that a base is, if writes to it can be told from reads, and all reads come before or after."""
        known = trace.known(base)
        if known is None or not all(isinstance(v, Tensor) and v.dim() > 2 for v in known):
            return None
        canvas = cls(trace, base, (tuple(known[0].shape), tuple(known[1].shape)))
        whole = [tuple((0, n) for n in shape) for shape in canvas.shapes]
        if not canvas._follow(base, _View((whole[0], whole[1]), tuple(range(known[0].dim())))) or not canvas.writes:
            return None
        order = canvas.order
        canvas.writes.sort(key=lambda write: order[write.node])
        first, last = order[canvas.writes[0].node], order[canvas.writes[-1].node]
        clear = all(
            order[reader] > last or (order[reader] < first and alias is base) for alias, reader in canvas.readers
        )
        return canvas if clear else None

    @functools.cached_property
    def _constants(self) -> Constants:
        return Constants(self.trace, differentiable=False)

    @property
    def order(self) -> dict[fx.Node, int]:
        return {node: j for j, node in enumerate(self.trace.graph.nodes)}

    @property
    def rank(self) -> int:
        return len(self.shapes[0])

    # --- what is written

    def _follow(self, alias: fx.Node, view: _View) -> bool:
        """Enter what is done with the canvas or a part of it; False where that isn't understood."""
        whole = len(view.axes) == self.rank and all(
            box == tuple((0, n) for n in shape) for box, shape in zip(view.boxes, self.shapes, strict=True)
        )
        for user in list(alias.users):
            name = operation_name(user)
            if user in self.trace.sizes or user in self.trace.checks:
                continue
            if name in _EXPANDS and user.args[0] is not alias:
                self.views.append(user)  # of something else, to this one's size
            elif name in _ITEM and user.args[0] is alias:
                part = self._part(view, user.args[1])
                if part is None:
                    return False
                if user.args[2] not in self.aliases:  # ``y[i] += v`` puts back what it has changed in place
                    self.writes.append(_Write(user, part, user.args[2]))
                self.views.append(user)
            elif name in _ITEM and user.args[2] is alias and user.args[0] in (self.base, *self.aliases):
                continue
            elif name in _IN_PLACE and user.args[0] is alias and not user.kwargs:
                value = 0.0 if name == "zero_" else user.args[1]
                self.writes.append(_Write(user, view, value, adds=name in ("iadd", "add_")))
                self.aliases.append(user)
                self.views.append(user)
                if not self._follow(user, view):
                    return False
            elif name in _VIEWS and self._is_written(user):
                part = self._part(view, self._index(user, len(view.axes)))
                if part is None or not self._follow(user, part):
                    return False
                self.views.append(user)
            elif (whole and not is_view_operation(user)) or (whole and all(u in self._before() for u in user.users)):
                self.readers.append((alias, user))
            else:
                return False
        return True

    def _before(self) -> set[fx.Node]:
        """Everything before the first write."""
        found = set()
        for node in self.trace.graph.nodes:
            if operation_name(node) in _ITEM | _IN_PLACE:
                break
            found.add(node)
        return found

    def _is_written(self, view: fx.Node) -> bool:
        """Whether a view is there to be written to alone."""
        sizes = self.trace.sizes | self.trace.checks
        users = [
            u for u in view.users if u not in sizes and not (operation_name(u) in _EXPANDS and u.args[0] is not view)
        ]
        return bool(users) and all(
            (operation_name(u) in _ITEM | _IN_PLACE and u.args[0] is view)
            or (operation_name(u) in _VIEWS and self._is_written(u))
            for u in users
        )

    def _index(self, view: fx.Node, rank: int) -> Any:
        """A view as an index of square brackets; None where it isn't one."""
        name = operation_name(view)
        if name == "getitem":
            return view.args[1]
        names = ("input", "dim", "start", "length") if name == "narrow" else ("input", "dim", "index")
        given = dict(zip(names, view.args, strict=False)) | view.kwargs
        dim = given.get("dim")
        if not isinstance(dim, int):
            return None
        before = (slice(None),) * (dim % rank)
        return (*before, given["index"]) if name == "select" else (*before, _Run(given["start"], given["length"]))

    def _part(self, view: _View, index: Any) -> _View | None:
        """The part of a part at an index of numbers and slices."""
        parts = list(index) if isinstance(index, tuple) else [index]
        if any(p is None or isinstance(p, bool | Tensor | list) for p in parts):
            return None
        if any(p is Ellipsis for p in parts):
            at = next(j for j, p in enumerate(parts) if p is Ellipsis)
            parts[at : at + 1] = [slice(None)] * (len(view.axes) - len(parts) + 1)
        parts += [slice(None)] * (len(view.axes) - len(parts))
        found: list[Box] = []
        for size, box in enumerate(view.boxes):
            new = list(box)
            for axis, part in zip(view.axes, parts, strict=True):
                start, stop = box[axis]
                interval = self._interval(part, stop - start, size)
                if interval is None:
                    return None
                new[axis] = (start + interval[0], start + interval[1])
            found.append(tuple(new))
        left = tuple(axis for axis, part in zip(view.axes, parts, strict=True) if isinstance(part, slice | _Run))
        return _View((found[0], found[1]), left)

    def _interval(self, part: Any, length: int, size: int) -> Interval | None:
        if isinstance(part, slice):
            bounds = [self._number(v, size) for v in (part.start, part.stop, part.step)]
            if ... in bounds or bounds[2] not in (None, 1):
                return None
            start, stop, _ = slice(*bounds).indices(length)
            return start, max(start, stop)
        run = part if isinstance(part, _Run) else _Run(part, 1)
        start, count = self._number(run.start, size), self._number(run.length, size)
        if not isinstance(start, int) or not isinstance(count, int):
            return None
        start += length if start < 0 else 0
        return (start, start + count) if start >= 0 and start + count <= length else None

    def _number(self, value: Any, size: int) -> Any:
        """A bound: a number, or one that follows a size by additions alone; ``...`` where it is neither."""
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        known = self.trace.known(value) if isinstance(value, fx.Node) and follows_a_size(value) else None
        return known[size] if known is not None and all(isinstance(v, int) for v in known) else ...

    # --- what it amounts to

    def border(self) -> _Padded | None:
        """A rectangle and one constant around it."""
        one, two = self._rectangle(0), self._rectangle(1)
        if one is None or two is None:
            return None
        (inner, margins, constants), (other, same, more) = one, two
        if inner is not other or margins != same or not constants:
            return None
        first = constants[0]
        if not all(torch.allclose(c.numbers, first.numbers, rtol=1e-12, atol=0) for c in (*constants, *more)):
            return None
        pads = tuple(p for pair in reversed(margins) for p in pair)
        if inner is self.base:
            return _Padded(inner, pads, first.value, overwrites=True)
        fits = self._padding() == margins or any(w.value is inner and self._fits(w) for w in self.writes)
        return _Padded(inner, pads, first.value) if fits else None

    def slabs(self) -> list[Any] | None:
        """Parts side by side along the channels: nodes, or intervals of the base."""
        found: list[list[Any]] = []
        for size, shape in enumerate(self.shapes):
            slabs: list[Any] = []
            for cell, write in self._cells(size):
                if any(interval != (0, n) for a, (interval, n) in enumerate(zip(cell, shape, strict=True)) if a != 1):
                    return None
                if write is None and self.base.target is not F.pad and self._filling() is ...:
                    slabs.append(cell[1])
                elif write is not None and not write.adds and write.view.boxes[size] == cell and self._fits(write):
                    slabs.append(write.value)
                else:
                    return None
            found.append(slabs)
        return found[0] if found[0] == found[1] and len(found[0]) > 1 else None

    def _cells(self, size: int) -> Iterator[tuple[Box, _Write | None]]:
        """Boxes that together are the canvas, each with the last write into it."""
        edges = []
        for axis, n in enumerate(self.shapes[size]):
            marks = {0, n} | {e for w in self.writes for e in w.view.boxes[size][axis]}
            marks |= set(self._padding_marks(axis, n))
            edges.append(sorted(marks))
        for cell in itertools.product(*(itertools.pairwise(e) for e in edges)):
            shown = None
            for write in self.writes:
                if all(a <= s and e <= b for (s, e), (a, b) in zip(cell, write.view.boxes[size], strict=True)):
                    shown = write
            yield cell, shown

    def _padding(self) -> list[Interval] | None:
        """What ``F.pad`` adds before and after each axis of the grid, where the base is padded with a constant."""
        if self.base.target is not F.pad:
            return None
        given: dict[str, Any] = dict(zip(("input", "pad", "mode", "value"), self.base.args, strict=False))
        given |= self.base.kwargs
        pads: Any = given.get("pad")
        if not isinstance(pads, list | tuple) or not all(isinstance(p, int) for p in pads):
            return None
        if given.get("mode", "constant") != "constant" or len(pads) > 2 * (self.rank - 2):
            return None
        both: list[int] = [*pads, *(0,) * (2 * (self.rank - 2) - len(pads))]
        return [(both[j], both[j + 1]) for j in range(len(both) - 2, -1, -2)]

    def _padding_marks(self, axis: int, n: int) -> tuple[int, ...]:
        pads = self._padding()
        if pads is None or axis < 2:
            return ()
        lo, hi = pads[axis - 2]
        return (lo, n - hi)

    def _filling(self) -> Any:
        """What is in the base before the writes: a constant, None if that is unknown, ``...`` if it isn't one."""
        name, args, kwargs = operation_name(self.base), self.base.args, self.base.kwargs
        if name in _UNFILLED:
            return None
        if name in _FILLED:
            return self._constant(_FILLED[name], ())
        if name in _FULL:
            value = kwargs.get("fill_value", args[_FULL[name]] if len(args) > _FULL[name] else None)
            return self._constant(value, ())
        if self.base.target is F.pad:
            value = kwargs.get("value", args[3] if len(args) > 3 else None)
            return self._constant(value or 0.0, ())
        whole = tuple(range(self.rank))
        return (self._constant(args[0], whole) or ...) if name == "clone" and args else ...

    def _constant(self, value: Any, axes: Sequence[int]) -> _Constant | None:
        """A value that doesn't depend on the input but for its size, as it is written to these axes."""
        channels = self.shapes[0][1]
        if isinstance(value, int | float):
            return _Constant(float(value), torch.full((channels,), float(value), dtype=torch.float64))
        constants = self._constants
        while isinstance(value, fx.Node) and value not in constants and operation_name(value) in _EXPANDS:
            value = value.args[0]
        if not isinstance(value, fx.Node) or value not in constants:
            return None
        try:
            numbers = constants.value(value).detach()
            numbers = torch.zeros(numbers.shape) if numbers.is_meta else numbers.double().cpu()  # taken for granted
        except Exception:  # written to between two uses, say
            return None
        if numbers.numel() == 1:
            return _Constant(value, numbers.reshape(1).expand(channels))
        place = len(axes) - list(axes).index(1) if 1 in axes else 0  # of the channels, from the right
        fits = place and numbers.dim() >= place and numbers.shape[-place] == channels == numbers.numel()
        return _Constant(value, numbers.reshape(-1)) if fits else None

    def _rectangle(self, size: int) -> tuple[fx.Node, list[Interval], list[_Constant]] | None:
        """What is in the middle, the margins around it, and what these hold."""
        shape, pads, filling = self.shapes[size], self._padding(), self._filling()
        if self.base.target is F.pad and pads is None:
            return None
        middle: dict[fx.Node, list[Box]] = {}
        constants: list[_Constant] = []
        for cell, write in self._cells(size):
            if not prod(e - s for s, e in cell):
                continue
            if write is None and pads is not None:
                grid = zip(cell[2:], pads, shape[2:], strict=True)
                inner = self.base.args[0] if all(s >= lo and e <= n - hi for (s, e), (lo, hi), n in grid) else None
                value = filling if inner is None else inner
            elif write is None:
                value = self.base if filling is ... else filling
            elif write.adds:
                empty = isinstance(filling, _Constant) and not filling.numbers.any()
                value = (
                    self._constant(write.value, write.view.axes)
                    if empty and self._is_alone(write, cell, size)
                    else None
                )
            else:
                value = self._constant(write.value, write.view.axes) or write.value
            if isinstance(value, fx.Node):
                middle.setdefault(value, []).append(cell)
            elif isinstance(value, _Constant):
                constants.append(value)
            else:
                return None
        if len(middle) != 1:
            return None
        ((inner, cells),) = middle.items()
        box = [(min(c[a][0] for c in cells), max(c[a][1] for c in cells)) for a in range(self.rank)]
        is_box = sum(prod(e - s for s, e in c) for c in cells) == prod(e - s for s, e in box)
        if not is_box or box[:2] != [(0, n) for n in shape[:2]]:
            return None
        return inner, [(s, n - e) for (s, e), n in zip(box[2:], shape[2:], strict=True)], constants

    def _is_alone(self, write: _Write, cell: Box, size: int) -> bool:
        """Whether nothing else is written into a cell, nor is it in the middle of a padded base."""
        pads = self._padding()
        if pads is not None:
            grid = zip(cell[2:], pads, self.shapes[size][2:], strict=True)
            if all(s >= lo and e <= n - hi for (s, e), (lo, hi), n in grid):
                return False
        inside = [
            w for w in self.writes
            if all(a <= s and e <= b for (s, e), (a, b) in zip(cell, w.view.boxes[size], strict=True))
        ]  # fmt: skip
        return inside == [write]

    def _fits(self, write: _Write) -> bool:
        """Whether what is written has the shape of its box and the canvas's dtype, so that nothing is converted."""
        known = self.trace.known(write.value) if isinstance(write.value, fx.Node) else None
        if known is None or len(write.view.axes) != self.rank or not all(isinstance(v, Tensor) for v in known):
            return False
        dtype = self.trace.known(self.base)[0].dtype
        boxes = [tuple(e - s for s, e in box) for box in write.view.boxes]
        return all(tuple(v.shape) == b and v.dtype == dtype for v, b in zip(known, boxes, strict=True))

    def replace(self, made: _Padded | list[Any]) -> None:
        """Let what reads the canvas after the writes read what they amount to."""
        last = self.writes[-1].node
        if isinstance(made, _Padded):
            new = made.put(self.trace, last)
        else:
            parts = []
            for slab in made:
                if isinstance(slab, tuple):
                    index = (slice(None), slice(*slab))
                    last = slab = self.trace.insert_after(last, operator.getitem, (self.base, index))
                parts.append(slab)
            new = self.trace.insert_after(last, torch.cat, (parts, 1))
        _repoint(self.trace, [self.base, *self.aliases], new, self.writes[-1].node)
        gone = {*self.views, *(w.node for w in self.writes), self.base, *self.trace.sizes}
        for node in reversed(list(self.trace.graph.nodes)):
            if node in gone and not node.users and node.target is not torch._assert:
                self.trace.erase(node)


@dataclass(frozen=True)
class _Run:
    """``length`` places from ``start``, as of ``narrow``."""

    start: Any
    length: Any


@dataclass(frozen=True, eq=False)
class _Padded:
    """A value with a constant around it, or in place of its own border."""

    inner: fx.Node
    pads: tuple[int, ...]
    value: Any
    overwrites: bool = False

    def put(self, trace: Trace, after: fx.Node) -> fx.Node:
        """As an operation behind a node."""
        function = overwritten if self.overwrites else bordered
        return trace.insert_after(after, function, (self.inner, self.pads, self.value))


def _repoint(trace: Trace, aliases: list[fx.Node], new: fx.Node, last: fx.Node) -> None:
    """Let everything behind the last write read what it made."""
    order = {node: j for j, node in enumerate(trace.graph.nodes)}
    at = order[new]
    for alias in aliases:
        for user in list(alias.users):
            if order[user] > at:
                user.replace_input_with(alias, new)

    def renamed(value: Any) -> Any:
        return fx.node.map_aggregate(value, lambda v: new if any(v is a for a in aliases) else v)

    for call in trace.calls:
        own: list[fx.Node] = call.nodes
        if own and order[own[0]] > at:
            call.args, call.kwargs = renamed(call.args), renamed(call.kwargs)
        if _ends_behind(call, last, at, order):
            call.output = renamed(call.output)


def _ends_behind(call: Call, last: fx.Node, at: int, order: dict[fx.Node, int]) -> bool:
    return last in call.nodes or bool(call.nodes and order[call.nodes[-1]] > at)


def _read_cat(trace: Trace, node: fx.Node) -> None:
    """``cat([v, y, v])`` along the grid, with a constant that is expanded to y's size, is padding."""
    given = dict(zip(("tensors", "dim"), node.args, strict=False)) | node.kwargs
    parts, dim = given.get("tensors"), given.get("dim", 0)
    known = trace.known(node)
    if known is None or not isinstance(parts, list | tuple) or not isinstance(dim, int) or len(parts) not in (2, 3):
        return
    rank = known[0].dim()
    axis = dim % rank
    if axis < 2:
        return
    canvas = _Canvas(trace, node, (tuple(known[0].shape), tuple(known[1].shape)))
    constants = [canvas._constant(part, range(rank)) if isinstance(part, fx.Node) else None for part in parts]
    middle = [j for j, c in enumerate(constants) if c is None]
    if len(middle) != 1 or len(parts) - len(middle) > 2 or abs(middle[0] - (len(parts) - 1) / 2) > 0.5:
        return
    widths = []
    for part, constant in zip(parts, constants, strict=True):
        shapes = trace.known(part)
        if shapes is None or not all(isinstance(v, Tensor) and v.dim() == rank for v in shapes):
            return
        if constant is not None and shapes[0].shape[axis] != shapes[1].shape[axis]:
            return
        widths.append(shapes[0].shape[axis])
    around = [c for c in constants if c is not None]
    if not all(torch.equal(c.numbers, around[0].numbers) for c in around):
        return
    lo, hi = sum(widths[: middle[0]]), sum(widths[middle[0] + 1 :])
    made = _Padded(parts[middle[0]], (*(0, 0) * (rank - 1 - axis), lo, hi), around[0].value)
    _repoint(trace, [node], made.put(trace, node), node)
    if not node.users:
        trace.erase(node)
