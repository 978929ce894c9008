"""Replace writes into parts of new tensors by the padding or concatenation that they amount to.

After ``y[:, :, 0] = v`` no operation of the graph says what ``y`` is. This pass collects all writes into one tensor;
each covers a box. If the boxes leave a rectangle with a constant around it, the tensor is that rectangle, padded; if
they lie side by side along the channels, it is their concatenation. Boxes are compared at two input sizes, and their
bounds must be numbers, counted from either end.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional as F

from unbranch.convert.passes.canvas import ADDING, IN_PLACE, Canvas
from unbranch.convert.passes.constants import Constants
from unbranch.convert.passes.contents import FILLED, FULL, UNFILLED, CanvasContents, Padded, constant_of
from unbranch.convert.trace.trace import Call, Trace
from unbranch.graph.operations import (
    BASIC_INDEXING,
    CONCATENATIONS,
    ITEM_ASSIGNMENTS,
    named_arguments,
    operation_name,
)
from unbranch.grids import CONV_FUNCTIONS
from unbranch.rules import rule_of_module

_KERNELS = set(CONV_FUNCTIONS.values())
_NEW_TENSORS = {"clone", *FILLED, *UNFILLED, *FULL}


def read_writes(trace: Trace) -> None:
    """Replace writes into new tensors by padding and concatenation, if they amount to that."""
    nodes = list(trace.graph.nodes)
    written = {base for n in nodes if (base := _written_in_part(n)) is not None}
    for base in [n for n in nodes if n in written and _is_new(trace, n)]:
        canvas = Canvas.at(trace, base)
        if canvas is not None:
            contents = CanvasContents(canvas)
            made = contents.padding() or contents.concatenation()
            if made is not None:
                _replace(canvas, made)
    for node in [n for n in nodes if n.target in CONCATENATIONS]:
        _read_cat(trace, node)
    trace.refresh()


def _written_in_part(node: fx.Node) -> fx.Node | None:
    """Return what an operation writes to, if it replaces all of it or changes a part of it."""
    name = operation_name(node)
    if name not in ITEM_ASSIGNMENTS | IN_PLACE:
        return None
    whole = name in ADDING
    base = node.args[0]
    while isinstance(base, fx.Node) and (inner := operation_name(base)) in BASIC_INDEXING | IN_PLACE:
        whole = whole and inner not in BASIC_INDEXING
        base = base.args[0]
    return base if isinstance(base, fx.Node) and not whole else None


def _is_new(trace: Trace, node: fx.Node) -> bool:
    """Whether a node makes a tensor that shares its memory with no earlier one."""
    if node.op == "call_module":
        rule = rule_of_module(trace.layer_of(node))
        return rule is not None and rule.kind == "linear" and not rule.epilogue and not node.meta.get("passes")
    return node.target is F.pad or node.target in _KERNELS or operation_name(node) in _NEW_TENSORS


def _replace(canvas: Canvas, made: Padded | list[Any]) -> None:
    """Let everything that reads a canvas after the writes read what they amount to."""
    trace, last = canvas.trace, canvas.writes[-1].node
    if isinstance(made, Padded):
        new = made.insert(trace, last)
    else:
        parts = []
        for slab in made:
            if isinstance(slab, tuple):
                index = (slice(None), slice(*slab))
                last = slab = trace.insert_after(last, operator.getitem, (canvas.base, index))
            parts.append(slab)
        new = trace.insert_after(last, torch.cat, (parts, 1))
    _repoint(trace, [canvas.base, *canvas.aliases], new, canvas.writes[-1].node)
    gone = {*canvas.views, *(w.node for w in canvas.writes), canvas.base, *trace.sizes}
    for node in reversed(list(trace.graph.nodes)):
        if node in gone and not node.users and node.target is not torch._assert:
            trace.erase(node)


def _repoint(trace: Trace, aliases: list[fx.Node], new: fx.Node, last: fx.Node) -> None:
    """Let everything after the last write read its result."""
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
    """Read ``cat([v, y, v])`` along the grid, with a constant that is expanded to the size of y, as padding."""
    given = named_arguments(node, "tensors", "dim")
    parts, dim, known = given.get("tensors"), given.get("dim", 0), trace.known(node)
    if known is None or not isinstance(parts, list | tuple) or not isinstance(dim, int) or len(parts) not in (2, 3):
        return
    rank, channels = known[0].dim(), known[0].shape[1] if known[0].dim() > 1 else 0
    axis = dim % rank
    if axis < 2:
        return
    constants = Constants(trace, differentiable=False)
    found = [constant_of(constants, p, range(rank), channels) if isinstance(p, fx.Node) else None for p in parts]
    middle = [j for j, c in enumerate(found) if c is None]
    if len(middle) != 1 or len(parts) - len(middle) > 2 or abs(middle[0] - (len(parts) - 1) / 2) > 0.5:
        return
    widths = [_width(trace, part, rank, axis, fixed=c is not None) for part, c in zip(parts, found, strict=True)]
    around = [c for c in found if c is not None]
    if None in widths or not all(torch.equal(c.numbers, around[0].numbers) for c in around):
        return
    lo, hi = (sum(w for w in some if w is not None) for some in (widths[: middle[0]], widths[middle[0] + 1 :]))
    made = Padded(parts[middle[0]], (*(0, 0) * (rank - 1 - axis), lo, hi), around[0].value)
    _repoint(trace, [node], made.insert(trace, node), node)
    if not node.users:
        trace.erase(node)


def _width(trace: Trace, part: Any, rank: int, axis: int, *, fixed: bool) -> int | None:
    """Return the size of a part along an axis; None if it isn't known, or must be ``fixed`` and isn't."""
    shapes = trace.known(part)
    if shapes is None or not all(isinstance(v, Tensor) and v.dim() == rank for v in shapes):
        return None
    first, second = (int(v.shape[axis]) for v in shapes)
    return None if fixed and first != second else first
