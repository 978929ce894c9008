"""A new tensor and the writes into parts of it, followed through its views until something else reads the result."""

from __future__ import annotations

import functools
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, fx

from unbranch.convert.passes.boxes import View, index_of
from unbranch.convert.trace.trace import Trace, follows_a_size
from unbranch.graph.operations import (
    BASIC_INDEXING,
    EXPANSIONS,
    ITEM_ASSIGNMENTS,
    is_view_operation,
    operation_name,
)
from unbranch.rules.arrangement import Shapes

ADDING = frozenset({"iadd", "add_"})
OVERWRITING = frozenset({"copy_", "fill_", "zero_"})
IN_PLACE = ADDING | OVERWRITING
"""Writes that are understood, besides those to items."""


@dataclass(frozen=True, eq=False)
class Write:
    """``value`` replaces a part of a canvas, or is added to it."""

    node: fx.Node
    view: View
    value: Any
    adds: bool = False


@dataclass(eq=False)
class Canvas:
    """A tensor and everything that is written into it before it is read.

    Args:
        shapes: of the tensor, at two input sizes.
        writes: in the order of the forward.
        aliases: results of in-place operations, which are the tensor or a part of it under another name.
        readers: pairs of an alias and an operation that reads it.
        views: views that exist only to be written to.
    """

    trace: Trace
    base: fx.Node
    shapes: Shapes
    writes: list[Write] = field(default_factory=list)
    aliases: list[fx.Node] = field(default_factory=list)
    readers: list[tuple[fx.Node, fx.Node]] = field(default_factory=list)
    views: list[fx.Node] = field(default_factory=list)

    @classmethod
    def at(cls, trace: Trace, base: fx.Node) -> Canvas | None:
        """Return the canvas of a tensor, or None unless every read comes before the first write or after the last."""
        known = trace.known(base)
        if known is None or not all(isinstance(v, Tensor) and v.dim() > 2 for v in known):
            return None
        canvas = cls(trace, base, (tuple(known[0].shape), tuple(known[1].shape)))
        if not canvas._follow(base, View.of_all(canvas.shapes)) or not canvas.writes:
            return None
        order = {node: j for j, node in enumerate(trace.graph.nodes)}
        canvas.writes.sort(key=lambda write: order[write.node])
        first, last = order[canvas.writes[0].node], order[canvas.writes[-1].node]
        clear = all(
            order[reader] > last or (order[reader] < first and alias is base) for alias, reader in canvas.readers
        )
        return canvas if clear else None

    @property
    def rank(self) -> int:
        """Number of axes."""
        return len(self.shapes[0])

    def _follow(self, alias: fx.Node, view: View) -> bool:
        """Record all uses of an alias of the canvas or of a part; returns False if one of them isn't understood."""
        return all(self._follow_use(alias, view, user) for user in list(alias.users))

    def _follow_use(self, alias: fx.Node, view: View, user: fx.Node) -> bool:
        name, target = operation_name(user), user.args[0] if user.args else None
        if user in self.trace.sizes or user in self.trace.checks:
            return True
        if name in EXPANSIONS and target is not alias:  # another value, expanded to the size of this one
            self.views.append(user)
            return True
        if name in ITEM_ASSIGNMENTS and target is alias:
            return self._item_written(view, user)
        if name in ITEM_ASSIGNMENTS and user.args[2] is alias and target in (self.base, *self.aliases):
            return True
        if name in IN_PLACE and target is alias and not user.kwargs:
            return self._written_in_place(view, user)
        if name in BASIC_INDEXING and self._is_written(user):
            part = view.part(index_of(user, len(view.axes)), self._number)
            if part is None or not self._follow(user, part):
                return False
            self.views.append(user)
            return True
        reads = view.is_all(self.shapes) and (not is_view_operation(user) or user.users.keys() <= self._before_writes)
        if reads:
            self.readers.append((alias, user))
        return reads

    def _item_written(self, view: View, user: fx.Node) -> bool:
        part = view.part(user.args[1], self._number)
        if part is None:
            return False
        if user.args[2] not in self.aliases:  # ``y[i] += v`` assigns what it has changed in place
            self.writes.append(Write(user, part, user.args[2]))
        self.views.append(user)
        return True

    def _written_in_place(self, view: View, user: fx.Node) -> bool:
        name = operation_name(user)
        value = 0.0 if name == "zero_" else user.args[1]
        self.writes.append(Write(user, view, value, adds=name in ADDING))
        self.aliases.append(user)
        self.views.append(user)
        return self._follow(user, view)

    @functools.cached_property
    def _before_writes(self) -> set[fx.Node]:
        """Return all operations before the first write of the trace."""
        found = set()
        for node in self.trace.graph.nodes:
            if operation_name(node) in ITEM_ASSIGNMENTS | IN_PLACE:
                break
            found.add(node)
        return found

    def _is_written(self, view: fx.Node) -> bool:
        """Whether a view exists only to be written to."""
        sizes = self.trace.sizes | self.trace.checks
        users = [
            u for u in view.users if u not in sizes and not (operation_name(u) in EXPANSIONS and u.args[0] is not view)
        ]
        return bool(users) and all(
            (operation_name(u) in ITEM_ASSIGNMENTS | IN_PLACE and u.args[0] is view)
            or (operation_name(u) in BASIC_INDEXING and self._is_written(u))
            for u in users
        )

    def _number(self, value: Any, size: int) -> Any:
        """Return a bound that is a number, or a size plus or minus numbers; ``...`` if it is neither."""
        if value is None or (isinstance(value, int) and not isinstance(value, bool)):
            return value
        known = self.trace.known(value) if isinstance(value, fx.Node) and follows_a_size(value) else None
        return known[size] if known is not None and all(isinstance(v, int) for v in known) else ...
